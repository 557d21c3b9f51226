"""The sum over neighbors of the first layer, where what a neighbor sends depends on its element and distance alone.

    A_lm,i = Σ_j Y_lm(r̂_ij) T_l(r_ij, Z_j)

Nothing on the edges carries channels but the table T, so that derivatives of any order are matrix products with T, T′
and T″.  The two maps below are each other's adjoints, and differentiated by each other.
"""

from __future__ import annotations

import torch

from fieldflows.backends.mace_field.engine.branches import with_gradients
from fieldflows.backends.mace_field.engine.layout import Layout
from fieldflows.backends.mace_field.engine.radial import Table, second_by_parameters


class ShellSums:
    """The sums of the first layer.

    Args:
        table: Rows of width (L + 1) c, channels of one degree together.
        layout: The neighbor lists.
        lengths: (e',) in Å; derivatives by them use the table's.
    """

    def __init__(self, table: Table, layout: Layout, lengths: torch.Tensor) -> None:
        self.table, self.layout, self.lengths = table, layout, lengths

    def collect(self, y: torch.Tensor, k: int = 0) -> torch.Tensor:
        """Return A = Σ_j Y_j T⁽ᵏ⁾(r_j), (lm, n, c), from harmonics (lm, e') of all degrees up to some l."""
        table = self.table.derivative(k)
        with torch.no_grad():
            degrees = _degrees(y)
            parts = []
            for tables, (atoms, width), y_part in zip(
                self._tables(k, len(degrees)), self.layout.groups, y.split(self.layout.sizes, dim=1), strict=True
            ):
                angular = y_part.view(-1, atoms, width).transpose(0, 1).split(degrees, dim=1)
                parts.append(torch.cat([torch.bmm(a, t) for a, t in zip(angular, tables, strict=True)], dim=1))
            value = (torch.cat(parts) if len(parts) > 1 else parts[0]).transpose(0, 1).contiguous()
        return with_gradients(
            value,
            (y, lambda g: self.project(g, k)),
            (self.lengths, lambda g: self._by_length(y, g, k)),
            (table, lambda g: self._by_table(y, g, len(table))),
        )

    def project(self, g: torch.Tensor, k: int = 0) -> torch.Tensor:
        """Return D = G T⁽ᵏ⁾(r_j)ᵀ, (lm, e'), from G (lm, n, c)."""
        table = self.table.derivative(k)
        with torch.no_grad():
            degrees = _degrees(g)
            parts = []
            for tables, (atoms, width), g_part in zip(
                self._tables(k, len(degrees)), self.layout.groups, g.split(self._atoms, dim=1), strict=True
            ):
                nodes = g_part.transpose(0, 1).split(degrees, dim=1)
                product = torch.cat([torch.bmm(a, t.transpose(1, 2)) for a, t in zip(nodes, tables, strict=True)], 1)
                parts.append(product.transpose(0, 1).reshape(len(g), atoms * width))
            value = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0].contiguous()
        return with_gradients(
            value,
            (g, lambda a: self.collect(a, k)),
            (self.lengths, lambda a: self._by_length(a, g, k)),
            (table, lambda a: self._by_table(a, g, len(table))),
        )

    def _by_length(self, y: torch.Tensor, g: torch.Tensor, k: int) -> torch.Tensor:
        return (y * self.project(g, k + 1)).sum(0).to(self.lengths.dtype)

    def _by_table(self, y: torch.Tensor, g: torch.Tensor, rows: int) -> torch.Tensor:
        """Return Σ_lm y_lm(e) g_lm(n) summed over the edges of each row, (rows, (L + 1) c)."""
        second_by_parameters()
        degrees = _degrees(y)
        parts = []
        for (atoms, width), y_part, g_part in zip(
            self.layout.groups, y.split(self.layout.sizes, dim=1), g.split(self._atoms, dim=1), strict=True
        ):
            angular = y_part.reshape(-1, atoms, width).permute(1, 2, 0).split(degrees, dim=2)
            nodes = g_part.transpose(0, 1).split(degrees, dim=1)
            product = torch.cat([torch.bmm(a, n) for a, n in zip(angular, nodes, strict=True)], dim=2)
            parts.append(product.view(atoms * width, -1))
        at_edges = torch.cat(parts) if len(parts) > 1 else parts[0]
        return at_edges.new_zeros(rows, at_edges.shape[1]).index_add(0, self.table.index, at_edges)

    def _tables(self, k: int, count: int) -> list[tuple[torch.Tensor, ...]]:
        """Return T⁽ᵏ⁾ at the edges by group and degree, each (atoms, width, c)."""
        rows = self.table.at_edges(k)
        channels = rows.shape[1] // count
        return [
            part.view(atoms, width, -1).split(channels, dim=2)
            for part, (atoms, width) in zip(rows.split(self.layout.sizes), self.layout.groups, strict=True)
        ]

    @property
    def _atoms(self) -> list[int]:
        return [atoms for atoms, _ in self.layout.groups]


def _degrees(x: torch.Tensor) -> list[int]:
    """Return 2l+1 for all degrees of ((L+1)², ...)."""
    return [2 * l + 1 for l in range(round(len(x) ** 0.5))]
