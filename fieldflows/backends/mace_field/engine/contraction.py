"""The symmetric contraction as a sparse polynomial in nested form.

mace contracts dense coupling tensors U of shape (lm, lm, lm, path) with the weights of every atom's element.  Most
entries of U are zero, and those that differ in the order of their factors belong to one monomial::

    B_w(x) = Σ_i x_i (C_wi + Σ_j≥i x_j (C_wij + Σ_k≥j x_k C_wijk)),      C = Σ_path U · W[element, path, channel]

C is formed once per set of weights, and only for the elements that occur.  The innermost sums, which are most of the
work, are linear in x.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch

from fieldflows.backends.mace_field.engine.layout import Layout

FEW = 4
"""Atoms per element below which coefficients are copied to every atom rather than used element by element."""

Node = tuple[int, ...]
"""An output component, followed by factors in ascending order."""


class SparseContraction:
    """Sparse form of one ``SymmetricContraction`` module.

    Args:
        module: mace's module; its U tables are read once, its weights at every call of :meth:`coefficients`.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.components: list[int] = []
        terms: dict[Node, np.ndarray] = {}
        owner: list[int] = []
        for number, contraction in enumerate(module.contractions):
            first = len(owner)
            for order in range(1, contraction.correlation + 1):
                table = contraction.U_tensors(order).detach().cpu().double().numpy()
                table = table[None] if table.ndim == order + 1 else table
                for row in np.argwhere(np.abs(table).max(axis=-1) > 1e-12):
                    node = (first + int(row[0]), *sorted(row[1:].tolist()))
                    terms[node] = terms.get(node, 0.0) + table[tuple(row)]
                self.components += [] if order > 1 else [len(table)]
            owner += [number] * self.components[-1]
        self.owner = owner
        self._plant(terms)

    def _plant(self, terms: dict[Node, np.ndarray]) -> None:
        """Lay out the nodes by depth: each is a sum over nodes with one more factor."""
        deepest = max(map(len, terms)) - 1
        levels = [{node for node in terms if len(node) == depth + 1} for depth in range(deepest + 1)]
        levels[0] = {(w,) for w in range(len(self.owner))}
        above: dict[Node, Node] = {}
        for depth in range(deepest, 0, -1):
            chosen = _parents(levels[depth], levels[depth - 1])
            above.update(chosen)
            levels[depth - 1] |= set(chosen.values())
        ordered = [sorted(level, key=lambda node: (node[0], above.get(node, ()), node)) for level in levels]
        self.parents: list[torch.Tensor] = []
        self.factors: list[torch.Tensor] = []
        self.tables: list[list[tuple[int, torch.Tensor, torch.Tensor]]] = []
        for depth in range(1, deepest + 1):
            level, place = ordered[depth], {node: i for i, node in enumerate(ordered[depth - 1])}
            self.parents.append(torch.tensor([place[above[node]] for node in level]))
            self.factors.append(torch.tensor([_removed(node, above[node]) for node in level]))
            groups: dict[int, list[int]] = defaultdict(list)
            for i, node in enumerate(level):
                if node in terms:
                    groups[self.owner[node[0]]].append(i)
            self.tables.append(
                [
                    (number, torch.tensor(rows), torch.tensor(np.array([terms[level[i]] for i in rows])))
                    for number, rows in groups.items()
                ]
            )
        self.counts = [len(level) for level in levels]

    def to(self, like: torch.Tensor) -> SparseContraction:
        """Move the tables to the precision and device of a tensor."""
        device = like.device
        self.parents = [index.to(device) for index in self.parents]
        self.factors = [index.to(device) for index in self.factors]
        self.tables = [[(number, rows.to(device), t.to(like)) for number, rows, t in level] for level in self.tables]
        return self

    def coefficients(self, elements: torch.Tensor) -> list[torch.Tensor]:
        """Return C by depth, each (nodes, elements, c), differentiable by the weights.

        Where all elements share their weights there is one of them.
        """
        result = []
        for degree, level in enumerate(self.tables, start=1):
            parts, rows = [], []
            for number, row, table in level:
                contraction = self.module.contractions[number]
                top = contraction.correlation
                weight = contraction.weights_max if degree == top else contraction.weights[top - 1 - degree]
                if weight.shape[0] != 1:
                    weight = weight.index_select(0, elements)
                parts.append(torch.einsum("kp,zpc->kzc", table, weight))
                rows.append(row)
            found = torch.cat(parts)
            result.append(found.new_zeros(self.counts[degree], *found.shape[1:]).index_add(0, torch.cat(rows), found))
        return result

    def __call__(self, x: torch.Tensor, coefficients: list[torch.Tensor], layout: Layout) -> list[torch.Tensor]:
        """Return the outputs by irrep, each (2l+1, n, c).

        Args:
            x: (lm, n, c) features.
            coefficients: Those of the elements that occur, by depth (see :meth:`coefficients`).
            layout: Which atom is of which element.
        """
        n_elements = max(level.shape[1] for level in coefficients)
        if n_elements == 1:
            sums = self._nested(x, coefficients)
        elif len(layout.species) < FEW * n_elements:
            sums = self._nested(x, [level.index_select(1, layout.species) for level in coefficients])
        else:
            parts = x.index_select(1, layout.by_element).split(layout.of_element, dim=1)
            by_element = zip(*(level.split(1, dim=1) for level in coefficients), strict=True)
            found = [self._nested(part, list(own)) for part, own in zip(parts, by_element, strict=True)]
            sums = torch.cat(found, dim=1).index_select(1, layout.place_by_element)
        return list(sums.split(self.components))

    def _nested(self, x: torch.Tensor, coefficients: list[torch.Tensor]) -> torch.Tensor:
        """Return all outputs (components, n, c) from coefficients by depth, of every atom or one for all of them."""
        values = coefficients[-1] * x.index_select(0, self.factors[-1])
        for depth in reversed(range(len(coefficients) - 1)):
            own = coefficients[depth].expand(-1, x.shape[1], -1)
            inner = own.index_add(0, self.parents[depth + 1], values)
            values = inner * x.index_select(0, self.factors[depth])
        return values.new_zeros(self.counts[0], *x.shape[1:]).index_add(0, self.parents[0], values)


def _parents(nodes: set[Node], known: set[Node]) -> dict[Node, Node]:
    """Return for every node one with a factor less, from few different ones; those that exist anyway come first."""
    found: dict[Node, set[Node]] = defaultdict(set)
    for node in nodes:
        for i in range(1, len(node)):
            found[node[:i] + node[i + 1 :]].add(node)
    candidates = dict(found)
    chosen: dict[Node, Node] = {}

    def worth(candidate: Node) -> tuple[bool, int, Node]:
        return candidate in known, len(candidates[candidate]), candidate

    while candidates:
        best = max(candidates, key=worth)
        for node in candidates.pop(best):
            chosen[node] = best
            for i in range(1, len(node)):
                candidates.get(node[:i] + node[i + 1 :], set()).discard(node)
        candidates = {candidate: served for candidate, served in candidates.items() if served}
    return chosen


def _removed(node: Node, parent: Node) -> int:
    """Return the factor that a node has and its parent lacks."""
    left = list(node[1:])
    for factor in parent[1:]:
        left.remove(factor)
    return left[0]
