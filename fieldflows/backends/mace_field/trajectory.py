"""One crystal on the move: energy, forces, stress and polarization of successive steps.

Along a trajectory the same atoms move a little at a time.  The neighbor list is built once with a cut-off that is
larger by a skin, and holds as long as no atom has moved by more than half of the skin: two atoms outside of it cannot
have come into the cut-off.  A step computes the lengths of the listed edges, drops those beyond the cut-off, and
takes all observables from one backward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fieldflows.backends.base import Response
from fieldflows.backends.mace_field.derivatives import respond
from fieldflows.backends.mace_field.engine.engine import FastEngine
from fieldflows.backends.mace_field.graphs import Graph, build_graph, to_device
from fieldflows.errors import EvaluationError, InputError, SettingsError
from fieldflows.observables import FIRST_ORDER_OBSERVABLES, OBSERVABLES, check_observables
from fieldflows.structures import MINIMUM_DISTANCE, check_structure

if TYPE_CHECKING:
    from ase import Atoms

    from fieldflows.backends.mace_field.network import MACEFieldNetwork

SKIN = 0.5
"""Default skin in Å; at 300 K a list then serves some hundred steps of 1 fs, at little cost per step."""


class TrajectoryEvaluator:
    """Evaluates first derivatives of one crystal after the other, fast if they are steps of one trajectory.

    Any crystal may follow any other: the neighbor list is rebuilt where cell, species, number of atoms or
    periodicity changed, or where an atom moved by more than half of the skin since it was built (wrapping an atom
    into the cell counts as a move).  Results are those of :meth:`MACEFieldModel.evaluate`.

    Args:
        network: The network, or the fast engine on it.
        head: Index of the head.
        skin: Skin of the neighbor list in Å.

    Attributes:
        rebuilds: How often the neighbor list was built.

    Raises:
        SettingsError: If the skin is negative or not finite.
    """

    def __init__(self, network: MACEFieldNetwork | FastEngine, head: int = 0, skin: float = SKIN) -> None:
        if not (np.isfinite(skin) and skin >= 0):
            raise SettingsError(f"The skin of a neighbor list must be a length in Å of at least 0, found {skin!r}.")
        self.skin = float(skin)
        self.rebuilds = 0
        self._head = head
        self._network = network
        if isinstance(network, FastEngine):
            # no second derivatives by positions: the second derivative of the radial functions is not needed
            self._network = copy.copy(network)
            self._network.order = 1
        self._list: _NeighborList | None = None

    def evaluate(
        self, atoms: Atoms, field: ArrayLike | None = None, observables: Sequence[str] = FIRST_ORDER_OBSERVABLES
    ) -> Response:
        """Return the response of the crystal as it is now.

        Args:
            atoms: The crystal.
            field: (3,) in V/Å; zero by default.
            observables: Of energy, forces, stress and polarization.

        Raises:
            StructureError: If the crystal cannot be computed.
            UnknownElementError: If it holds an element that the model does not know.
            SettingsError: If another observable is asked for.
            InputError: If the field is not three finite numbers.
            EvaluationError: If a result is not finite.
        """
        names = check_observables(observables)
        foreign = [name for name in names if name not in FIRST_ORDER_OBSERVABLES]
        if foreign:
            raise SettingsError(
                f"Steps of a trajectory give {', '.join(FIRST_ORDER_OBSERVABLES)}, not {', '.join(foreign)}.",
                "Use evaluate() of the model for second derivatives.",
            )
        applied = np.zeros(3) if field is None else np.asarray(field, dtype=float)
        if applied.shape != (3,) or not np.isfinite(applied).all():
            raise InputError(f"field must be three finite numbers in V/Å, found {field!r}.")
        graph = self._graph(atoms)
        at = torch.as_tensor(applied[None]).to(graph["positions"]) if applied.any() else None
        values = respond(self._network, graph, names, at)
        parts: dict[str, Any] = {}
        for name, value in values.items():
            array = value.cpu().double().numpy()
            parts[name] = array if OBSERVABLES[name].per_atom else array[0]
            if not np.isfinite(array).all():
                raise EvaluationError(
                    f"{name} of a crystal of {len(atoms)} atoms came out not finite.",
                    "Look for atoms that are too close, or evaluate in float64.",
                )
        if "energy" in parts:
            parts["energy"] = float(parts["energy"])
        return Response(**parts, field=applied.copy())

    def _graph(self, atoms: Atoms) -> Graph:
        """Return the graph of the crystal as it is now, from the neighbor list at hand if it still holds."""
        if self._list is None or not self._list.holds(atoms):
            check_structure(atoms)
            self._list = _NeighborList(atoms, self._network, self._head, self.skin)
            self.rebuilds += 1
        graph = self._list.graph(atoms.positions)
        if len(graph["distances"]) and float(graph["distances"].min()) < MINIMUM_DISTANCE:
            check_structure(atoms)
        return graph


class _NeighborList:
    """The edges of a crystal up to cut-off plus skin, and the atoms that they were made for."""

    def __init__(self, atoms: Atoms, network: Any, head: int, skin: float) -> None:
        config = network.config
        self.cutoff, self.skin = config.r_max, skin
        self.numbers, self.cell, self.pbc = atoms.numbers.copy(), atoms.cell[:].copy(), atoms.pbc.copy()
        self.positions = atoms.positions.copy()
        graph = build_graph(atoms, config.atomic_numbers, config.r_max + skin, network.dtype, head)
        self.dtype = graph["positions"].dtype
        self.device = network.device
        self.sender, self.receiver = graph["edge_index"].numpy()
        self.edge_index = graph["edge_index"]
        self.unit_shifts = graph["unit_shifts"]
        images = self.unit_shifts.double().numpy()
        self.shifts = images @ self.cell
        self.first, self.pair = _pairs(self.sender, self.receiver, images)
        self.constant = {key: graph[key] for key in ("node_attrs", "cell", "batch", "ptr", "head")}

    def holds(self, atoms: Atoms) -> bool:
        """Return whether no edge can be missing for the crystal as it is now."""
        return (
            np.array_equal(atoms.numbers, self.numbers)
            and np.array_equal(atoms.cell[:], self.cell)
            and np.array_equal(atoms.pbc, self.pbc)
            and bool((np.square(atoms.positions - self.positions).sum(axis=1) <= (0.5 * self.skin) ** 2).all())
        )

    def graph(self, positions: NDArray[np.float64]) -> Graph:
        """Return the graph at some positions: edges shorter than the cut-off, one distance per pair of atoms."""
        vectors = positions[self.receiver] - positions[self.sender] + self.shifts
        lengths = np.sqrt(np.einsum("ei,ei->e", vectors, vectors))
        near = lengths < self.cutoff
        of_pairs = lengths[self.first]
        used = of_pairs < self.cutoff
        place = np.cumsum(used) - 1
        kept = torch.as_tensor(near)
        tensor = lambda array: torch.as_tensor(array, dtype=self.dtype)  # noqa: E731
        graph = {
            **self.constant,
            "positions": tensor(positions.copy()),
            "edge_index": self.edge_index[:, kept],
            "shifts": tensor(self.shifts[near]),
            "unit_shifts": self.unit_shifts[kept],
            "distances": tensor(of_pairs[used]),
            "distance_index": torch.as_tensor(place[self.pair[near]]),
        }
        return to_device(graph, self.device)


def _pairs(
    sender: NDArray[np.int64], receiver: NDArray[np.int64], images: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return one edge of each pair of opposite edges, and to which pair each edge belongs.

    Opposite edges (i to j through an image, and j to i through the opposite one) have the same length, to the last
    bit.
    """
    forth = np.lexsort((*images.T, receiver, sender))
    back = np.lexsort((*-images.T, sender, receiver))
    opposite = np.empty(len(sender), dtype=np.int64)
    opposite[forth] = back
    lower = np.minimum(np.arange(len(sender)), opposite)
    first, pair = np.unique(lower, return_inverse=True)
    return first, pair.reshape(-1)
