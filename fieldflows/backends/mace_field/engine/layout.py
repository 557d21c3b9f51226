"""Padded neighbor lists: atoms sorted by their number of neighbors, in groups of equal width."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fieldflows.backends.mace_field.graphs import Graph

PADDING = 0.75
"""An atom joins a group if it fills at least this fraction of the group's width."""


@dataclass(frozen=True)
class Layout:
    """Where atoms and edges of a batch sit inside the engine.

    Attributes:
        order: (n,) atom of the graph at each place of the engine.
        groups: (atoms, width) of each group; its edges are ``atoms * width`` consecutive rows.
        sender: (e',) place of the sender, in the engine's order; a dummy edge sends to itself.
        receiver: (e',) place of the receiver.
        source: (e',) edge of the graph, −1 for a dummy.
        shifts: (e', 3) image shifts in Å; a dummy edge has a constant vector.
        distance: (e',) index of the distinct distance; dummies use one past the last.
    """

    order: torch.Tensor
    groups: tuple[tuple[int, int], ...]
    sender: torch.Tensor
    receiver: torch.Tensor
    shifts: torch.Tensor
    distance: torch.Tensor


def neighbor_layout(graph: Graph) -> Layout:
    """Return the padded layout of a batch."""
    distance_index, n_distances = graph["distance_index"], len(graph["distances"])
    sender, receiver = graph["edge_index"]
    device = sender.device
    n = len(graph["positions"])
    counts = torch.bincount(receiver, minlength=n)
    order = torch.argsort(counts, descending=True, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(n, device=device)

    groups: list[list[int]] = []
    for count in counts[order].tolist():
        if groups and count >= PADDING * groups[-1][1] - 1:
            groups[-1][0] += 1
        else:
            groups.append([1, max(count, 1)])
    widths = torch.tensor([width for atoms, width in groups for _ in range(atoms)], device=device)
    starts = torch.cumsum(widths, 0) - widths
    total = int(widths.sum())

    sorted_edges = torch.argsort(place[receiver], stable=True)
    at = place[receiver[sorted_edges]]
    sorted_counts = counts[order]
    first = torch.cumsum(sorted_counts, 0) - sorted_counts
    slots = starts[at] + torch.arange(len(at), device=device) - first[at]

    rows = torch.repeat_interleave(torch.arange(n, device=device), widths)
    padded_sender = rows.clone()
    padded_sender[slots] = place[sender[sorted_edges]]
    shifts = graph["shifts"].new_zeros(total, 3)
    shifts[:, 2] = 1.0
    shifts[slots] = graph["shifts"][sorted_edges]
    distance = torch.full((total,), n_distances, dtype=torch.int64, device=device)
    distance[slots] = distance_index[sorted_edges]
    return Layout(order, tuple((a, w) for a, w in groups), padded_sender, rows, shifts, distance)
