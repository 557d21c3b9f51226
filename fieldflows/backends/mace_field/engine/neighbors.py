"""Sums over neighbors, a few atoms at a time, and their derivatives of any order.

What atom i collects along the paths p of a layer is::

    V_p,i = Σ_j  Y_l(p)(r̂_ij) ⊗ T_p(r_ij) · h_s(p),j

with harmonics Y, tabulated radial weights T (by channel) and features h of the sender.  It is linear in each of Y, T
and h.  With the scalar φ = Σ_p V_p · G_p, the three maps ∂φ/∂G (the sum), ∂φ/∂Y and ∂φ/∂h are enough: each of them is
differentiated by the others, and the derivative by a length takes the next derivative of T.

Nothing that has both edges and channels outlives a block of atoms, which fits the cache of a core.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fieldflows.backends.mace_field.engine.branches import with_gradients
from fieldflows.backends.mace_field.engine.layout import Layout
from fieldflows.backends.mace_field.engine.radial import Table, second_by_parameters

BLOCK = {"cpu": 1 << 17, "cuda": 1 << 27}
"""Numbers (edges times channels times components) of a block, by device."""


@dataclass(frozen=True)
class PathShape:
    """Where a path reads and writes.

    Attributes:
        degree: Degree of its harmonics.
        source: Place of its sender features among the blocks.
        components: 2l+1 of the sender features.
        channels: Channels.
    """

    degree: int
    source: int
    components: int
    channels: int

    @property
    def size(self) -> int:
        """Numbers per atom that it collects."""
        return (2 * self.degree + 1) * self.components * self.channels


@dataclass(frozen=True)
class _Block:
    atoms: slice
    edges: slice
    count: int
    width: int


class NeighborSums:
    """The sums of one layer.

    Args:
        paths: The paths, in the order of the columns of the table.
        sources: (components, channels) of each block of sender features, in the order of the columns of h.
        table: T by distance.
        layout: The neighbor lists.
        lengths: (e',) in Å; derivatives by them use the table's.
    """

    def __init__(
        self,
        paths: tuple[PathShape, ...],
        sources: tuple[tuple[int, int], ...],
        table: Table,
        layout: Layout,
        lengths: torch.Tensor,
    ) -> None:
        self.paths, self.sources = paths, sources
        self.table, self.layout, self.lengths = table, layout, lengths
        self.widths = [path.channels for path in paths]
        self.sizes = [path.size for path in paths]
        self.columns = [components * channels for components, channels in sources]
        self.blocks = list(_blocks(layout, max(self.columns, default=1)))
        self._by_path: dict[int, tuple[torch.Tensor, list[torch.Tensor]]] = {}

    def collect(self, y: torch.Tensor, h: torch.Tensor, k: int = 0) -> torch.Tensor:
        """Return all V_p side by side, (n, Σ size), from Y (lm, e') and h (n, Σ columns), with the k-th T."""
        table = self.table.derivative(k)
        with torch.no_grad():
            value = h.new_empty(len(h), sum(self.sizes))
            for block in self.blocks:
                angular, weights, sent = self._angular(y, block), self._weights(k, table, block), self._sent(h, block)
                outputs = value[block.atoms].split(self.sizes, dim=1)
                for path, weight, output in zip(self.paths, weights, outputs, strict=True):
                    x = (weight[:, None, :] * sent[path.source]).view(block.count, block.width, -1)
                    part = torch.bmm(angular[path.degree], x)
                    output.copy_(part.view(block.count, -1))
        return with_gradients(
            value,
            (y, lambda g: self.project(h, g, k)),
            (h, lambda g: self.spread(y, g, k)),
            (self.lengths, lambda g: self._by_length(y, h, g, k)),
            (table, lambda g: self._by_table(y, h, g, len(table))),
        )

    def project(self, h: torch.Tensor, g: torch.Tensor, k: int = 0) -> torch.Tensor:
        """Return ∂φ/∂Y, (lm, e'), from h and G (n, Σ size)."""
        table = self.table.derivative(k)
        degrees = max(path.degree for path in self.paths) + 1
        with torch.no_grad():
            value = h.new_empty(degrees**2, len(self.layout.sender))
            for block in self.blocks:
                weights, sent, parts = self._weights(k, table, block), self._sent(h, block), self._collected(g, block)
                sums: list[torch.Tensor | None] = [None] * degrees
                for path, weight, part in zip(self.paths, weights, parts, strict=True):
                    x = (weight[:, None, :] * sent[path.source]).view(block.count, block.width, -1).transpose(1, 2)
                    known = sums[path.degree]
                    sums[path.degree] = torch.bmm(part, x) if known is None else known.baddbmm_(part, x)
                for degree, total in enumerate(sums):
                    rows = value[degree**2 : (degree + 1) ** 2, block.edges]
                    if total is None:
                        rows.zero_()
                    else:
                        rows.view(len(rows), block.count, block.width).copy_(total.transpose(0, 1))
        return with_gradients(
            value,
            (h, lambda a: self.spread(a, g, k)),
            (g, lambda a: self.collect(a, h, k)),
            (self.lengths, lambda a: self._by_length(a, h, g, k)),
            (table, lambda a: self._by_table(a, h, g, len(table))),
        )

    def spread(self, y: torch.Tensor, g: torch.Tensor, k: int = 0) -> torch.Tensor:
        """Return ∂φ/∂h, (n, Σ columns), from Y and G."""
        table = self.table.derivative(k)
        with torch.no_grad():
            value = g.new_zeros(len(g), sum(self.columns))
            for block in self.blocks:
                angular, weights, parts = (
                    self._angular(y, block),
                    self._weights(k, table, block),
                    self._collected(g, block),
                )
                received = g.new_zeros(block.count * block.width, sum(self.columns))
                targets = [
                    target.view(-1, components, channels)
                    for target, (components, channels) in zip(
                        received.split(self.columns, dim=1), self.sources, strict=True
                    )
                ]
                for path, weight, part in zip(self.paths, weights, parts, strict=True):
                    z = torch.bmm(angular[path.degree].transpose(1, 2), part)
                    targets[path.source].addcmul_(z.view(-1, path.components, path.channels), weight[:, None, :])
                value.index_add_(0, self.layout.sender[block.edges], received)
        return with_gradients(
            value,
            (y, lambda a: self.project(a, g, k)),
            (g, lambda a: self.collect(y, a, k)),
            (self.lengths, lambda a: self._by_length(y, a, g, k)),
            (table, lambda a: self._by_table(y, a, g, len(table))),
        )

    def _by_length(self, y: torch.Tensor, h: torch.Tensor, g: torch.Tensor, k: int) -> torch.Tensor:
        """Return ∂φ/∂r, (e',), with the k-th T."""
        return (y * self.project(h, g, k + 1)).sum(0).to(self.lengths.dtype)

    def _by_table(self, y: torch.Tensor, h: torch.Tensor, g: torch.Tensor, rows: int) -> torch.Tensor:
        """Return ∂φ/∂T, (rows, Σ channels)."""
        second_by_parameters()
        values = [g.new_zeros(rows, path.channels) for path in self.paths]
        for block in self.blocks:
            angular, sent, parts = self._angular(y, block), self._sent(h, block), self._collected(g, block)
            at = self.table.index[block.edges]
            for path, part, value in zip(self.paths, parts, values, strict=True):
                z = torch.bmm(angular[path.degree].transpose(1, 2), part).view(-1, path.components, path.channels)
                z = z.mul_(sent[path.source])
                value.index_add_(0, at, z[:, 0] if path.components == 1 else z.sum(1))
        return torch.cat(values, dim=1)

    def _angular(self, y: torch.Tensor, block: _Block) -> list[torch.Tensor]:
        """Return harmonics by degree, each (atoms, 2l+1, width)."""
        part = y[:, block.edges].view(len(y), block.count, block.width).transpose(0, 1)
        return list(part.split([2 * l + 1 for l in range(round(len(y) ** 0.5))], dim=1))

    def _weights(self, k: int, table: torch.Tensor, block: _Block) -> Iterator[torch.Tensor]:
        """Yield T by path, each (edges, channels)."""
        known = self._by_path.get(k)
        if known is None or known[0] is not table:
            known = table, [part.contiguous() for part in table.detach().split(self.widths, dim=1)]
            self._by_path[k] = known
        rows = self.table.index[block.edges]
        return (part.index_select(0, rows) for part in known[1])

    def _sent(self, h: torch.Tensor, block: _Block) -> list[torch.Tensor]:
        """Return the features of the senders by block, each (edges, components, channels)."""
        rows = h.index_select(0, self.layout.sender[block.edges])
        return [
            part.view(-1, components, channels)
            for part, (components, channels) in zip(rows.split(self.columns, dim=1), self.sources, strict=True)
        ]

    def _collected(self, g: torch.Tensor, block: _Block) -> list[torch.Tensor]:
        """Return G by path, each (atoms, 2l+1, components · channels)."""
        return [
            part.view(block.count, 2 * path.degree + 1, -1)
            for part, path in zip(g[block.atoms].split(self.sizes, dim=1), self.paths, strict=True)
        ]


def _blocks(layout: Layout, columns: int) -> Iterator[_Block]:
    """Yield runs of atoms of one group whose edges are not too many for a block."""
    most = max(1, BLOCK.get(layout.sender.device.type, BLOCK["cpu"]) // columns)
    atom = edge = 0
    for atoms, width in layout.groups:
        step = max(1, most // width)
        for start in range(0, atoms, step):
            count = min(step, atoms - start)
            yield _Block(
                slice(atom + start, atom + start + count),
                slice(edge + start * width, edge + (start + count) * width),
                count,
                width,
            )
        atom += atoms
        edge += atoms * width
