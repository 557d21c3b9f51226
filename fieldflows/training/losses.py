"""The loss: per observable a function of the error, masked where labels are missing, averaged over frames.

For observable o with weight λ_o, scale s_o and frames g with weight w_g and mask m_g (Martin et al., PRX Intelligence
1, 013006 (2026), Eqs. 29-33)::

    L = Σ_o λ_o (1/W_o) Σ_g w_g m_g ρ̄_g,     W_o = Σ_g w_g m_g,     ρ̄_g = mean over components of ρ(Δ/s_o)

The numerators λ_o Σ_g w_g m_g ρ̄_g and the normalizations W_o are sums over frames, so that a batch may be cut into
parts: both are added up over them, and only then divided.

Δ is the error of one component; energies per atom; polarizations folded into one quantum cell of the frame.
ρ(x) is the Huber function (x²/2 below δ, δ(|x| − δ/2) above), |x| or x².  Where every atom counts the same, N_g ρ̄_g
takes the place of ρ̄_g and Σ_g w_g m_g N_g that of W; with Eq. 31 as printed, only the latter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fieldflows.backends.mace_field.graphs import Graph
from fieldflows.observables import OBSERVABLES
from fieldflows.training.data import Batch, Frame
from fieldflows.training.loss_config import Term


def fold_polarization(difference: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
    """Return polarization differences folded into the cell of polarization quanta, shape (g, 3), e/Å².

    x = ΔP Q⁻¹ with the quanta Q = cell/Ω as rows; ΔP_fold = (x − round(x)) Q.  The number of whole quanta is
    constant, hence the gradient is that of ΔP.

    Args:
        difference: ΔP, (g, 3), in e/Å².
        cell: Lattice vectors as rows, (g, 3, 3), in Å.
    """
    quanta = cell / torch.linalg.det(cell).abs()[:, None, None]
    with torch.no_grad():
        whole = torch.round(torch.linalg.solve(quanta.transpose(1, 2), difference.unsqueeze(-1)).squeeze(-1))
    return difference - torch.einsum("gk,gki->gi", whole, quanta)


def penalty(
    error: torch.Tensor, term: Term, scale: float | torch.Tensor, delta: float | torch.Tensor | None = None
) -> torch.Tensor:
    """Return ρ(error/scale), component by component; ``delta`` in place of that of the term."""
    x = error / scale
    if term.kind == "l1":
        return x.abs()
    if term.kind == "mse":
        return x.square()
    limit = term.delta if delta is None else delta
    size = x.abs()
    return torch.where(size <= limit, 0.5 * x.square(), limit * (size - 0.5 * limit))


def force_delta(labels: torch.Tensor, delta: float) -> torch.Tensor:
    """Return δ by atom, (n, 1): 1, 0.7, 0.4 and 0.1 of its value for labels from 0, 100, 200 and 300 eV/Å on."""
    bounds = torch.tensor([100.0, 200.0, 300.0], dtype=labels.dtype, device=labels.device)
    factors = torch.tensor([1.0, 0.7, 0.4, 0.1], dtype=labels.dtype, device=labels.device)
    sizes = torch.linalg.vector_norm(labels, dim=1, keepdim=True)
    return delta * factors[torch.bucketize(sizes, bounds, right=True)]


def quantum_distance(folded: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
    """Return 3 |ΔP|²/tr(Q Qᵀ), (g,): squared lengths of folded differences relative to the mean quantum.

    With c = ΔP Q⁻¹ this is c M cᵀ with M = 3 Q Qᵀ/tr(Q Qᵀ), the metric of the public code; 1 for a difference as long
    as the root mean square quantum.

    Args:
        folded: (g, 3) in e/Å².
        cell: Lattice vectors as rows, (g, 3, 3), in Å.
    """
    quanta = cell / torch.linalg.det(cell).abs()[:, None, None]
    return 3 * folded.square().sum(dim=1) / quanta.square().sum(dim=(1, 2))


def frame_means(values: torch.Tensor, batch: Batch, per_atom: bool) -> torch.Tensor:
    """Return the mean over the components of each frame, shape (g,)."""
    flat = values.reshape(len(values), -1).mean(dim=1)
    if not per_atom:
        return flat
    return flat.new_zeros(batch.n_graphs).index_add(0, batch.owner, flat) / batch.sizes.to(flat.dtype)


class Loss:
    """The sum over the observables.

    Args:
        terms: Observable to term, weights as numbers.
        scales: Observable to the number that errors are divided by, in the unit of the observable.
        element_scales: Observable per atom to such numbers by atomic number, (119,), in place of the one.
    """

    def __init__(
        self,
        terms: Mapping[str, Term],
        scales: Mapping[str, float],
        element_scales: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.terms = dict(terms)
        self.scales = dict(scales)
        self.element_scales = dict(element_scales or {})

    def per_frame(
        self, predictions: Mapping[str, torch.Tensor], batch: Batch, directions: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Return ρ averaged over the components of each frame, before weights and masks: observable to (g,).

        Args:
            predictions: Observable to prediction.  With ``directions``, Z* and α are products v·Z* of shape (n, 3)
                and α·v of shape (g, 3).
            batch: The labels.
            directions: (g, 3) the vectors v.
        """
        result = {}
        for key, target in batch.targets.items():
            term = self.terms[key]
            if directions is not None and key == "born_effective_charges":
                target = torch.einsum("ni,nij->nj", directions[batch.owner], target)
            elif directions is not None and key == "polarizability":
                target = torch.einsum("gij,gj->gi", target, directions)
            error = predictions[key] - target
            if key == "energy":
                error = error / batch.sizes.to(error.dtype)
            elif key == "polarization":
                error = fold_polarization(error, batch.cells)
            if term.kind == "quantum metric":
                result[key] = quantum_distance(error, batch.cells) / self.scales[key] ** 2
                continue
            delta = force_delta(target, term.delta) if term.kind == "force huber" else None
            values = penalty(error, term, self._scale(key, batch, error), delta)
            result[key] = frame_means(values, batch, OBSERVABLES[key].per_atom)
        return result

    def _scale(self, key: str, batch: Batch, error: torch.Tensor) -> float | torch.Tensor:
        if key not in self.element_scales:
            return self.scales[key]
        by_atom = self.element_scales[key].to(error)[batch.numbers]
        return by_atom.view(-1, *[1] * (error.ndim - 1))

    def normalizations(self, frames: Batch | Sequence[Frame]) -> dict[str, torch.Tensor | float]:
        """Return W_o = Σ_g w_g m_g by observable; Σ_g w_g m_g N_g where a term counts atoms.

        It depends on the labels alone, so that it is known before the first prediction.  Observables without label
        are left out, unless their term counts frames without one.

        Args:
            frames: A batch (the answer is tensors of the precision of its labels) or frames (numbers).
        """
        result: dict[str, torch.Tensor | float] = {}
        if isinstance(frames, Batch):
            for key, term in self.terms.items():
                if key not in frames.targets and not term.count_unlabeled:
                    continue
                weights = frames.weights.get(key, frames.frame_weights)
                if term.count_unlabeled and key in frames.masks:
                    weights = torch.where(frames.masks[key] > 0, weights, frames.frame_weights)
                result[key] = self._counted(key, weights, frames).sum()
            return result
        for key, term in self.terms.items():
            counted = [frame for frame in frames if term.count_unlabeled or key in frame.labels]
            if counted:
                atoms = term.normalization != "structures"
                weights = [f.label_weight(key) if key in f.labels else f.weight for f in counted]
                sizes = [len(f.atoms) if atoms else 1 for f in counted]
                result[key] = float(sum(w * n for w, n in zip(weights, sizes, strict=True)))
        return result

    def numerators(
        self, predictions: Mapping[str, torch.Tensor], batch: Batch, directions: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Return λ_o Σ_g w_g m_g ρ̄_g by observable; L = Σ_o numerators[o] / W_o (see :meth:`normalizations`).

        Args:
            predictions: As in :meth:`per_frame`.
            batch: The labels.
            directions: As in :meth:`per_frame`.
        """
        result = {}
        for key, values in self.per_frame(predictions, batch, directions).items():
            weights, term = batch.weights[key], self.terms[key]
            if term.normalization == "atoms":
                weights = self._counted(key, weights, batch)
            result[key] = float(term.weight) * (weights * values).sum()
        return result

    def __call__(
        self, predictions: Mapping[str, torch.Tensor], batch: Batch, directions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of a batch by itself, and its weighted parts by observable."""
        whole = self.normalizations(batch)
        parts = {key: value / whole[key] for key, value in self.numerators(predictions, batch, directions).items()}
        return torch.stack(list(parts.values())).sum(), parts

    def _counted(self, key: str, weights: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return weights (g,) times the number of atoms where a term counts atoms."""
        if self.terms[key].normalization == "structures":
            return weights
        return weights * batch.sizes.to(weights.dtype)


def step_generator(seed: int, step: int, purpose: int) -> torch.Generator:
    """Return a generator that depends on seed, step and purpose alone."""
    return torch.Generator().manual_seed(((seed * 1_000_003 + step) * 7 + purpose) % (2**63))


def standard_normal(count: int, seed: int, step: int) -> torch.Tensor:
    """Return normally distributed vectors of width 1, (count, 3), that depend on seed and step alone."""
    return torch.randn((count, 3), generator=step_generator(seed, step, 1), dtype=torch.float64)


def displaced(graph: Graph, noise: float, random: torch.Tensor) -> Graph:
    """Return the graph with displacements of vectors (n, 3) times a width in Å; edges stay those of the original."""
    positions = graph["positions"]
    moved = positions + noise * random.to(positions)
    sender, receiver = graph["edge_index"]
    lengths = torch.linalg.vector_norm(moved[receiver] - moved[sender] + graph["shifts"], dim=1)
    every = torch.arange(len(lengths), device=lengths.device)
    return {**graph, "positions": moved, "distances": lengths, "distance_index": every}


def random_directions(count: int, seed: int, step: int, like: torch.Tensor) -> torch.Tensor:
    """Return one random unit vector per frame, shape (count, 3), that depends on seed and step alone.

    The mean over directions of the mean square component of v·Z is that of Z: ⟨|v·Z|²/3⟩ = Σ_ij Z_ij²/9.
    """
    vectors = torch.randn(count, 3, generator=step_generator(seed, step, 0), dtype=torch.float64)
    vectors = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors.to(like)
