"""The sum over neighbors of the first layer, where what a neighbor sends depends on its element and distance alone.

    A_lm,i = Σ_j Y_lm(r̂_ij) T_l(r_ij, Z_j)

Nothing on the edges carries channels but the table T, so that derivatives of any order are matrix products with T, T′
and T″.  The two functions below are each other's adjoints and know their own derivatives.
"""

from __future__ import annotations

from typing import Any

import torch

from fieldflows.backends.mace_field.engine.layout import Layout
from fieldflows.backends.mace_field.engine.radial import Table


class ShellSum(torch.autograd.Function):
    """A = Σ_j Y_j T⁽ᵏ⁾(r_j): (lm, e') harmonics to (lm, n, c)."""

    @staticmethod
    def forward(
        ctx: Any, y: torch.Tensor, r: torch.Tensor, table: Table, k: int, layout: Layout, values: torch.Tensor
    ) -> torch.Tensor:
        """Return (lm, n, c)."""
        ctx.save_for_backward(y, r, values)
        ctx.table, ctx.k, ctx.layout = table, k, layout
        degrees = [2 * l + 1 for l in range(_n_degrees(len(y)))]
        rows = table.at_edges(k)
        channels = rows.shape[1] // len(degrees)
        parts = []
        for (atoms, width), y_part, t_part in zip(
            layout.groups, y.split(layout.sizes, dim=1), rows.split(layout.sizes), strict=True
        ):
            tables = t_part.view(atoms, width, -1).split(channels, dim=2)
            angular = y_part.view(-1, atoms, width).transpose(0, 1).split(degrees, dim=1)
            parts.append(torch.cat([torch.bmm(a, t) for a, t in zip(angular, tables, strict=True)], dim=1))
        result = torch.cat(parts) if len(parts) > 1 else parts[0]
        return result.transpose(0, 1).contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """Return gradients by harmonics, lengths and table."""
        y, r, values = ctx.saved_tensors
        table, k, layout = ctx.table, ctx.k, ctx.layout
        by_y = by_r = by_values = None
        if ctx.needs_input_grad[0]:
            by_y = ShellProjection.apply(gradient, r, table, k, layout, values)
        if ctx.needs_input_grad[1]:
            slope = ShellProjection.apply(gradient, r, table, k + 1, layout, table.derivative(k + 1))
            by_r = (y * slope).sum(0).to(r.dtype)
        if ctx.needs_input_grad[5]:
            by_values = _by_table(y, gradient, table, layout)
        return by_y, by_r, None, None, None, by_values


class ShellProjection(torch.autograd.Function):
    """D = G T⁽ᵏ⁾(r_j)ᵀ: (lm, n, c) to (lm, e')."""

    @staticmethod
    def forward(
        ctx: Any, g: torch.Tensor, r: torch.Tensor, table: Table, k: int, layout: Layout, values: torch.Tensor
    ) -> torch.Tensor:
        """Return (lm, e')."""
        ctx.save_for_backward(g, r, values)
        ctx.table, ctx.k, ctx.layout = table, k, layout
        degrees = [2 * l + 1 for l in range(_n_degrees(len(g)))]
        rows = table.at_edges(k)
        channels = rows.shape[1] // len(degrees)
        atom_sizes = [atoms for atoms, _ in layout.groups]
        parts = []
        for (atoms, width), g_part, t_part in zip(
            layout.groups, g.split(atom_sizes, dim=1), rows.split(layout.sizes), strict=True
        ):
            tables = t_part.view(atoms, width, -1).split(channels, dim=2)
            sent = g_part.transpose(0, 1).split(degrees, dim=1)
            product = torch.cat([torch.bmm(s, t.transpose(1, 2)) for s, t in zip(sent, tables, strict=True)], dim=1)
            parts.append(product.transpose(0, 1).reshape(len(g), atoms * width))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0].contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """Return gradients by G, lengths and table."""
        g, r, values = ctx.saved_tensors
        table, k, layout = ctx.table, ctx.k, ctx.layout
        by_g = by_r = by_values = None
        if ctx.needs_input_grad[0]:
            by_g = ShellSum.apply(gradient, r, table, k, layout, values)
        if ctx.needs_input_grad[1]:
            slope = ShellProjection.apply(g, r, table, k + 1, layout, table.derivative(k + 1))
            by_r = (gradient * slope).sum(0).to(r.dtype)
        if ctx.needs_input_grad[5]:
            by_values = _by_table(gradient, g, table, layout)
        return by_g, by_r, None, None, None, by_values


def shell_sum(y: torch.Tensor, r: torch.Tensor, table: Table, layout: Layout) -> torch.Tensor:
    """Return Σ_j Y_j T(r_j) for every atom, (lm, n, c).

    Args:
        y: (lm, e') harmonics of all degrees up to some l, in the precision of the table.
        r: (e',) lengths in Å.
        table: Rows of width (l + 1) c, channels of one degree together.
        layout: The neighbor lists.
    """
    return ShellSum.apply(y, r, table, 0, layout, table.derivative(0))


def _by_table(y: torch.Tensor, g: torch.Tensor, table: Table, layout: Layout) -> torch.Tensor:
    """Return the gradient Σ_lm y_lm(e) g_lm(n) by the rows of a table, from (lm, e') and (lm, n, c)."""
    degrees = [2 * l + 1 for l in range(_n_degrees(len(y)))]
    atom_sizes = [atoms for atoms, _ in layout.groups]
    parts = []
    for (atoms, width), y_part, g_part in zip(
        layout.groups, y.split(layout.sizes, dim=1), g.split(atom_sizes, dim=1), strict=True
    ):
        angular = y_part.reshape(-1, atoms, width).permute(1, 2, 0).split(degrees, dim=2)
        nodes = g_part.transpose(0, 1).split(degrees, dim=1)
        product = torch.cat([torch.bmm(a, n) for a, n in zip(angular, nodes, strict=True)], dim=2)
        parts.append(product.reshape(atoms * width, -1))
    at_edges = torch.cat(parts) if len(parts) > 1 else parts[0]
    rows = len(table.entries[0])
    return at_edges.new_zeros(rows, at_edges.shape[1]).index_add(0, table.index, at_edges)


def _n_degrees(components: int) -> int:
    """Return L + 1 from the number of components (L + 1)²."""
    return round(components**0.5)
