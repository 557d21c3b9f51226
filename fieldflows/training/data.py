"""Labeled frames as graphs with labels, and what a network needs to know about them before it is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from fieldflows.backends.mace_field.graphs import Graph, build_graph, collate
from fieldflows.errors import LabelError, SettingsError, TrainingError
from fieldflows.observables import OBSERVABLES
from fieldflows.training.chemistry import similar_mean
from fieldflows.training.sampler import FrameCost
from fieldflows.training.symmetry import SECOND_DERIVATIVES, FrameSymmetry, Outcome, Reduction, bring_to_symmetry, join
from fieldflows.units import EPSILON_VACUUM

if TYPE_CHECKING:
    from ase import Atoms

    from fieldflows.datasets.frame import LabeledFrame


@dataclass(frozen=True)
class Frame:
    """One labeled crystal, ready to be trained on.

    Attributes:
        name: What to call it in messages and tables.
        atoms: The crystal, in the cell of the labels.
        labels: Observable to array in internal units.
        graph: The graph with its neighbor list; of the symmetrized primitive cell if the outcome says so.
        baseline: Sum of the atomic energies in eV; the network is trained on the rest, so that single precision
            does not have to hold the large sum.
        outcome: What became of it when it was to be brought to its symmetry.
        weight: Weight w_g in the loss.
        label_weights: Observable to a factor on that weight; 1 for others.
        head: Head of the network that predicts it; None if there is one only.
        targets: Observable to what the loss compares with in place of the label; errors are always those of labels.
    """

    name: str
    atoms: Atoms
    labels: dict[str, np.ndarray]
    graph: Graph
    baseline: float = 0.0
    outcome: Outcome | None = None
    weight: float = 1.0
    label_weights: Mapping[str, float] = field(default_factory=dict)
    head: str | None = None
    targets: dict[str, np.ndarray] = field(default_factory=dict)

    def label_weight(self, key: str) -> float:
        """Return the weight of the frame in the loss of an observable."""
        return self.weight * self.label_weights.get(key, 1.0)

    @property
    def symmetry(self) -> FrameSymmetry | None:
        """How few field directions determine its Z* and α; None for the three axes."""
        return None if self.outcome is None else self.outcome.symmetry

    @property
    def cost(self) -> FrameCost:
        """Atoms and edges of the graph, labels and field directions of the frame."""
        directions = 3 if self.symmetry is None else self.symmetry.count
        atoms, edges = len(self.graph["positions"]), int(self.graph["edge_index"].shape[1])
        return FrameCost(atoms, edges, tuple(sorted(self.labels)), directions)


@dataclass(frozen=True)
class Batch:
    """Several frames in one graph.

    Attributes:
        graph: The batch of graphs, of primitive cells where frames were reduced.
        cells: (g, 3, 3) lattice vectors of the frames as rows, in Å.
        sizes: (g,) atoms of the frames.
        owner: (n,) frame of each atom of the frames.
        targets: Observable to labels: (g, ...) or (n, ...), zero where a frame has none; energies without baseline.
        masks: Observable to (g,), 1 where a frame has the label.
        weights: Observable to (g,), weights w_g m_g of the frames in the loss, zero where a frame has no label.
        frame_weights: (g,) weights w_g of the frames whatever their labels.
        numbers: (n,) atomic number of each atom of the frames.
        names: Names of the frames.
        reduction: The field directions that determine Z* and α of all frames; None for the three axes.
    """

    graph: Graph
    cells: torch.Tensor
    sizes: torch.Tensor
    owner: torch.Tensor
    targets: dict[str, torch.Tensor]
    masks: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]
    frame_weights: torch.Tensor
    numbers: torch.Tensor
    names: tuple[str, ...] = field(default=())
    reduction: Reduction | None = None

    @property
    def n_graphs(self) -> int:
        """Number of frames."""
        return len(self.names)


def make_frames(
    frames: Sequence[LabeledFrame],
    labels: Sequence[str],
    atomic_numbers: Sequence[int],
    cutoff: float,
    dtype: torch.dtype,
    atomic_energies: Sequence[float] | None = None,
    symprec: float | None = None,
    head: tuple[str, int] | None = None,
) -> list[Frame]:
    """Return the frames that hold at least one of the labels, with graphs.

    Labels stay as they are, also where a crystal is brought to its symmetry.

    Args:
        frames: The labeled frames.
        labels: Observables to keep.
        atomic_numbers: Elements of the network, in its order.
        cutoff: Cut-off in Å.
        dtype: Precision of the graphs.
        atomic_energies: Baseline by element in eV, in the same order; zero by default.
        symprec: Bring crystals with labels of Z* or α to their own symmetry, moving nothing by more than this in Å
            (see :func:`~fieldflows.training.symmetry.bring_to_symmetry`); None leaves all as they are.
        head: Name and number of the head that predicts them; the first and only one by default.

    Raises:
        LabelError: If a label has the wrong shape or is not finite; the message names the frame.
        UnknownElementError: If the network does not know an element.
    """
    table = dict(zip(atomic_numbers, atomic_energies or [0.0] * len(atomic_numbers), strict=True))
    made = []
    for item in frames:
        name = item.name
        kept = {key: _checked(key, item.labels[key], len(item.atoms), name) for key in labels if key in item.labels}
        if not kept:
            continue
        crystal, outcome = item.atoms, None
        if symprec is not None:
            if kept.keys() & set(SECOND_DERIVATIVES):
                crystal, outcome = bring_to_symmetry(item.atoms, symprec)
            else:
                outcome = Outcome("not needed", symmetry=FrameSymmetry.nothing(len(item.atoms)))
        graph = build_graph(crystal, atomic_numbers, cutoff, dtype=dtype, head=head[1] if head else 0)
        baseline = float(sum(table[int(z)] for z in item.atoms.numbers))
        made.append(
            Frame(
                name=name,
                atoms=item.atoms,
                labels=kept,
                graph=graph,
                baseline=baseline,
                outcome=outcome,
                weight=_weight(item),
                head=head[0] if head else None,
            )
        )
    return made


def _weight(frame: LabeledFrame) -> float:
    """Return the weight that a dataset gives a frame; 1 by default."""
    weight = float(frame.extra.get("weight", 1.0))
    if not (np.isfinite(weight) and weight > 0):
        raise LabelError(
            f"The weight of {frame.name} is {weight:g}; it must be positive.", "Leave the frame out of the dataset."
        )
    return weight


def _checked(key: str, value: object, n_atoms: int, name: str) -> np.ndarray:
    expected = tuple(n_atoms if extent == "n" else int(extent) for extent in OBSERVABLES[key].shape)
    array = np.asarray(value, dtype=np.float64)
    if array.shape != expected:
        raise LabelError(f"{key} of {name} has shape {array.shape}; {expected} is expected.", "Rebuild the dataset.")
    if not np.isfinite(array).all():
        raise LabelError(f"{key} of {name} has values that are not finite.", "Rebuild the dataset with its filters on.")
    return array


def make_batch(frames: Sequence[Frame], labels: Sequence[str], device: torch.device | str = "cpu") -> Batch:
    """Return frames as one batch; labels that none of them has are left out."""
    # that of the predictions, which are derivatives by positions
    dtype = frames[0].graph["positions"].dtype
    sizes = [len(frame.atoms) for frame in frames]
    targets, masks, weights = {}, {}, {}
    for key in labels:
        have = [key in frame.labels for frame in frames]
        if not any(have):
            continue
        shapes = [tuple(n if extent == "n" else int(extent) for extent in OBSERVABLES[key].shape) for n in sizes]
        known = [{**frame.labels, **frame.targets} for frame in frames]
        arrays = [values.get(key, np.zeros(shape)) for values, shape in zip(known, shapes, strict=True)]
        if key == "energy":
            arrays = [value - frame.baseline for frame, value in zip(frames, arrays, strict=True)]
        joined = np.concatenate(arrays) if OBSERVABLES[key].per_atom else np.stack(arrays)
        targets[key] = torch.as_tensor(joined, dtype=dtype, device=device)
        masks[key] = torch.tensor(have, dtype=dtype, device=device)
        importance = [frame.label_weight(key) if key in frame.labels else 0.0 for frame in frames]
        weights[key] = torch.tensor(importance, dtype=dtype, device=device)
    return Batch(
        graph={key: value.to(device) for key, value in collate([frame.graph for frame in frames]).items()},
        cells=torch.as_tensor(np.stack([frame.atoms.cell[:] for frame in frames]), dtype=dtype, device=device),
        sizes=torch.tensor(sizes, device=device),
        owner=torch.repeat_interleave(torch.arange(len(frames)), torch.tensor(sizes)).to(device),
        targets=targets,
        masks=masks,
        weights=weights,
        frame_weights=torch.tensor([frame.weight for frame in frames], dtype=dtype, device=device),
        numbers=torch.as_tensor(np.concatenate([frame.atoms.numbers for frame in frames]), device=device),
        names=tuple(frame.name for frame in frames),
        # whatever the labels: graphs of primitive cells have to be mapped to the frames
        reduction=join([frame.symmetry for frame in frames], sizes, dtype, device),
    )


def dataset_elements(frames: Sequence[LabeledFrame]) -> list[int]:
    """Return the atomic numbers that occur, in ascending order."""
    return sorted({int(z) for frame in frames for z in frame.atoms.numbers})


def composition_matrix(frames: Sequence[LabeledFrame], atomic_numbers: Sequence[int]) -> np.ndarray:
    """Return the number of atoms of each element in each frame, shape (frames, elements)."""
    return np.array([[np.count_nonzero(frame.atoms.numbers == z) for z in atomic_numbers] for frame in frames], float)


def fit_atomic_energies(frames: Sequence[LabeledFrame], atomic_numbers: Sequence[int]) -> list[float]:
    """Return atomic baselines E₀ in eV: least squares of Σ_κ E₀(Z_κ) = E over the frames with an energy.

    The solution of least norm is taken, so that one composition alone spreads its energy over the elements.  All
    are zero where no frame has an energy.
    """
    labeled = [frame for frame in frames if "energy" in frame.labels]
    if not labeled:
        return [0.0] * len(atomic_numbers)
    matrix = composition_matrix(labeled, atomic_numbers)
    energies = np.array([float(frame.labels["energy"]) for frame in labeled])
    solution, *_ = np.linalg.lstsq(matrix, energies, rcond=None)
    return [float(value) for value in solution]


def fit_element_polarizability(frames: Sequence[LabeledFrame], atomic_numbers: Sequence[int]) -> list[float]:
    """Return polarizabilities a(Z) ≥ 0 in e Å² V⁻¹ that give the best sum of elements, by robust least squares.

    Minimized, by iteratively reweighted non-negative least squares, is

        Σ_f |χ_f − Σ_κ a(Z_κ)/(Ω_f ε_vac)| / (1 + χ_f)^¼ + ½² Σ_Z (a_Z − ā)² + 2² Σ_Z (a_Z − Σ_Z' S_ZZ' a_Z')²

    with χ = tr(ε∞ − I)/3, the common value ā and the mean S over chemically similar elements.  Deviations rather
    than squares, because few crystals with a small gap would else decide over all the others; the pull towards
    similar elements decides for elements that occur rarely or never.  All are zero where no frame has a
    polarizability.
    """
    from scipy.optimize import nnls

    labeled = [frame for frame in frames if "polarizability" in frame.labels]
    if not labeled:
        return [0.0] * len(atomic_numbers)
    volumes = np.array([frame.atoms.get_volume() for frame in labeled])
    rows = composition_matrix(labeled, atomic_numbers) / (volumes * EPSILON_VACUUM)[:, None]
    chi = np.array([np.trace(frame.labels["polarizability"]) / 3 for frame in labeled]) / EPSILON_VACUUM
    common = max(float(np.median(chi / rows.sum(axis=1))), 0.0)
    one = np.eye(len(atomic_numbers))
    prior = np.vstack([0.5 * one, 2.0 * (one - similar_mean(atomic_numbers, 1.0))])
    expected = np.concatenate([np.full(len(one), 0.5 * common), np.zeros(len(one))])
    solution = np.full(len(one), common)
    for _ in range(40):
        deviation = np.maximum(np.abs(rows @ solution - chi), 0.05)
        weight = np.sqrt(1 / (deviation * (1 + np.maximum(chi, 0.0)) ** 0.25))
        solution, _ = nnls(np.vstack([rows * weight[:, None], prior]), np.concatenate([chi * weight, expected]))
    return [float(value) for value in solution]


def average_neighbors(frames: Sequence[LabeledFrame], cutoff: float) -> float:
    """Return the mean number of neighbors of an atom within the cut-off in Å."""
    from matscipy.neighbours import neighbour_list

    atoms = sum(len(frame.atoms) for frame in frames)
    edges = sum(len(neighbour_list("i", frame.atoms, float(cutoff))) for frame in frames)
    if edges == 0:
        raise TrainingError(f"No frame has two atoms within the cut-off of {cutoff} Å.", "Enlarge the cut-off.")
    return edges / atoms


def force_scale(frames: Sequence[LabeledFrame]) -> float:
    """Return the root mean square of all force components in eV/Å, or 1 where there are no forces."""
    forces = [np.asarray(frame.labels["forces"]).ravel() for frame in frames if "forces" in frame.labels]
    if not forces:
        return 1.0
    value = float(np.sqrt(np.mean(np.square(np.concatenate(forces)))))
    return value if value > 1e-3 else 1.0


def label_spread(frames: Sequence[Frame], key: str) -> float:
    """Return the standard deviation of a label over the frames, in its unit (energies: per atom, baselines aside).

    Raises:
        SettingsError: If no frame has the label, or all are equal.
    """
    values = [
        (frame.labels[key] - frame.baseline) / len(frame.atoms) if key == "energy" else frame.labels[key]
        for frame in frames
        if key in frame.labels
    ]
    flat = np.concatenate([np.atleast_1d(value).ravel() for value in values]) if values else np.zeros(0)
    spread = float(flat.std()) if len(flat) else 0.0
    if not spread > 0:
        raise SettingsError(
            f"loss.terms.{key}.scale is 'spread', but the {len(values)} training frames with that label do not differ.",
            "Give the scale as a number.",
        )
    return spread
