"""Crystals as graphs: neighbor lists, and many crystals in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from matscipy.neighbours import neighbour_list

from fieldflows.errors import UnknownElementError

if TYPE_CHECKING:
    from ase import Atoms

Graph = dict[str, torch.Tensor]

DISTANCE_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-6}
"""Edge lengths in Å that differ by less are one distance, by precision of the evaluation."""


def element_indices(atoms: Atoms, atomic_numbers: Sequence[int]) -> np.ndarray:
    """Return the position of each atom's element in ``atomic_numbers``.

    Raises:
        UnknownElementError: Names the elements that are not in the list.
    """
    table = {z: i for i, z in enumerate(atomic_numbers)}
    unknown = sorted({symbol for symbol, z in zip(atoms.symbols, atoms.numbers, strict=True) if int(z) not in table})
    if unknown:
        raise UnknownElementError(
            f"{atoms.get_chemical_formula(empirical=True)} holds {', '.join(unknown)}, which the model was not built "
            f"for (it knows {len(table)} elements).",
            "See `fieldflows model info` for its elements, or use another model.",
        )
    return np.array([table[int(z)] for z in atoms.numbers])


def build_graph(
    atoms: Atoms,
    atomic_numbers: Sequence[int],
    cutoff: float,
    dtype: torch.dtype = torch.float64,
    head: int = 0,
) -> Graph:
    """Return the graph of one crystal.

    Edges run from sender j to receiver i over all periodic images with |r_i − r_j + shift| < cutoff.  Geometry is
    float64 whatever ``dtype`` is.

    Args:
        atoms: The crystal.
        atomic_numbers: Elements of the model, in its order.
        cutoff: Cut-off in Å.
        dtype: Precision of the network: that of node_attrs; it also decides which distances count as equal.
        head: Index of the head.

    Returns:
        positions (n, 3), node_attrs (n, z) one-hot, edge_index (2, e) as [sender, receiver], shifts (e, 3) and
        unit_shifts (e, 3), cell (3, 3), batch (n,), ptr (2,), head (1,); distances (u,) the distinct edge lengths in Å
        and distance_index (e,) which of them each edge has.

    Raises:
        UnknownElementError: If an element is not in ``atomic_numbers``.
    """
    index = element_indices(atoms, atomic_numbers)
    receiver, sender, images, lengths = neighbour_list("ijSd", atoms, float(cutoff))
    _, first, distance_index = np.unique(
        np.round(lengths / DISTANCE_TOLERANCE[dtype]), return_index=True, return_inverse=True
    )
    # matscipy: r_j + S·cell − r_i; the backbone uses r_receiver − r_sender + shift, hence the minus sign
    unit_shifts = -images.astype(np.float64)
    one_hot = np.zeros((len(atoms), len(atomic_numbers)))
    one_hot[np.arange(len(atoms)), index] = 1.0
    as_tensor = lambda array: torch.as_tensor(np.ascontiguousarray(array), dtype=torch.float64)  # noqa: E731
    return {
        "positions": as_tensor(atoms.positions),
        "node_attrs": as_tensor(one_hot).to(dtype),
        "edge_index": torch.as_tensor(np.stack([sender, receiver]).astype(np.int64)),
        "shifts": as_tensor(unit_shifts @ atoms.cell[:]),
        "unit_shifts": as_tensor(unit_shifts),
        "cell": as_tensor(atoms.cell[:]),
        "batch": torch.zeros(len(atoms), dtype=torch.int64),
        "ptr": torch.tensor([0, len(atoms)]),
        "head": torch.tensor([head]),
        "distances": as_tensor(lengths[first]),
        "distance_index": torch.as_tensor(distance_index.reshape(-1)),
    }


def collate(graphs: Sequence[Graph]) -> Graph:
    """Return one graph that holds all of them side by side; they do not interact."""
    if len(graphs) == 1:
        return dict(graphs[0])
    sizes = torch.tensor([len(g["positions"]) for g in graphs])
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(sizes, 0)])
    joined = {
        key: torch.cat([g[key] for g in graphs])
        for key in ("positions", "node_attrs", "shifts", "unit_shifts", "cell", "head", "distances")
    }
    known = np.cumsum([0] + [len(g["distances"]) for g in graphs]).tolist()
    joined["distance_index"] = torch.cat([g["distance_index"] + known[i] for i, g in enumerate(graphs)])
    joined["edge_index"] = torch.cat([g["edge_index"] + ptr[i] for i, g in enumerate(graphs)], dim=1)
    joined["batch"] = torch.repeat_interleave(torch.arange(len(graphs)), sizes)
    joined["ptr"] = ptr
    return joined


def to_device(graph: Graph, device: torch.device | str) -> Graph:
    """Return the graph with all tensors on a device."""
    return {key: value.to(device) for key, value in graph.items()}


def volumes(graph: Graph) -> torch.Tensor:
    """Return the cell volumes Ω, shape (g,), in Å³."""
    return torch.linalg.det(graph["cell"].view(-1, 3, 3)).abs()
