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
        shifts: (e', 3) image shifts in Å; a dummy edge has a constant vector.
        distance: (e',) index of the distinct distance; dummies use one past the last.
        elements: (z,) indices of the elements that occur, ascending.
        species: (n,) place of each atom's element among ``elements``.
        batch: (n,) crystal of each place.
        by_element: (n,) places sorted by element.
        place_by_element: (n,) where each place stands in ``by_element``.
        of_element: Number of atoms of each element.
        names: ``elements`` as numbers.
    """

    order: torch.Tensor
    groups: tuple[tuple[int, int], ...]
    sender: torch.Tensor
    receiver: torch.Tensor
    shifts: torch.Tensor
    distance: torch.Tensor
    elements: torch.Tensor
    species: torch.Tensor
    batch: torch.Tensor
    by_element: torch.Tensor
    place_by_element: torch.Tensor
    of_element: tuple[int, ...]
    names: tuple[int, ...]

    @property
    def sizes(self) -> list[int]:
        """Number of edges, dummies included, of each group."""
        return [atoms * width for atoms, width in self.groups]

    def neighbor_sum(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of rows (e', c) over the edges of each receiver, (n, c)."""
        parts = x.split(self.sizes)
        sums = [part.view(a, w, -1).sum(1) for part, (a, w) in zip(parts, self.groups, strict=True)]
        return torch.cat(sums) if len(sums) > 1 else sums[0]


@dataclass(frozen=True)
class Rows:
    """The distinct rows of a radial table that depends on elements as well.

    Attributes:
        distance: (u,) index of the distinct distance.
        sender: (u,) place of the sender's element among those that occur.
        receiver: (u,) that of the receiver's; zero if rows do not depend on it.
        index: (e',) row of every edge, one past the last for dummies.
    """

    distance: torch.Tensor
    sender: torch.Tensor
    receiver: torch.Tensor
    index: torch.Tensor


def distinct_rows(layout: Layout, n_distances: int, by_receiver: bool) -> Rows:
    """Return the distinct (distance, element of the sender, and of the receiver if asked for) of the edges."""
    count = len(layout.elements)
    sender = layout.species.index_select(0, layout.sender)
    receiver = layout.species.index_select(0, layout.receiver) if by_receiver else torch.zeros_like(sender)
    key = (layout.distance * count + sender) * count + receiver
    dummy = n_distances * count * count
    distinct, index = torch.unique(torch.where(layout.distance < n_distances, key, dummy), return_inverse=True)
    distinct = distinct[distinct < dummy]  # dummies are sorted last
    return Rows(distinct // (count * count), distinct // count % count, distinct % count, index)


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
    elements, species = torch.unique(graph["node_attrs"].argmax(dim=1)[order], return_inverse=True)
    by_element = torch.argsort(species, stable=True)
    place_by_element = torch.empty_like(by_element)
    place_by_element[by_element] = torch.arange(n, device=device)
    return Layout(
        order=order,
        groups=tuple((a, w) for a, w in groups),
        sender=padded_sender,
        receiver=rows,
        shifts=shifts,
        distance=distance,
        elements=elements,
        species=species,
        batch=graph["batch"][order],
        by_element=by_element,
        place_by_element=place_by_element,
        of_element=tuple(torch.bincount(species, minlength=len(elements)).tolist()),
        names=tuple(elements.tolist()),
    )
