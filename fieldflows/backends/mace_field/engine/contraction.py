"""The symmetric contraction as a sparse polynomial.

mace contracts dense coupling tensors U of shape (lm, lm, lm, path) with the weights of every atom's element.  Most
entries of U are zero, and those that differ in the order of their factors belong to one monomial::

    B_w(x) = Σ_monomials  C[w, monomial] · x_i x_j x_k,      C = Σ_path U · W[element, path, channel]

C is formed once per set of weights, and only for the elements that occur.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch

Monomial = tuple[int, ...]


class SparseContraction:
    """Sparse form of one ``SymmetricContraction`` module.

    Args:
        module: mace's module; its U tables are read once, its weights at every call of :meth:`coefficients`.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        terms: dict[tuple[int, Monomial, int], np.ndarray] = {}
        self.components: list[int] = []
        first = 0
        self.n_inputs = module.contractions[0].U_tensors(1).shape[-2]
        for number, contraction in enumerate(module.contractions):
            accumulated: dict[tuple[int, Monomial], Any] = defaultdict(int)
            for order in range(1, contraction.correlation + 1):
                table = contraction.U_tensors(order).detach().cpu().double().numpy()
                if table.ndim == order + 1:
                    table = table[None]
                count = table.shape[0]
                for row in np.argwhere(np.abs(table).max(axis=-1) > 1e-12):
                    accumulated[first + int(row[0]), tuple(sorted(row[1:].tolist()))] += table[tuple(row)]
            terms.update({(w, monomial, number): vector for (w, monomial), vector in accumulated.items()})
            self.components.append(count)
            first += count
        keys = sorted(terms, key=lambda key: (key[0], len(key[1]), key[1]))
        self._index_monomials([key[1] for key in keys])
        self.segments = [sum(key[0] == w for key in keys) for w in range(first)]
        self._group_tables(keys, terms)

    def _index_monomials(self, used: list[Monomial]) -> None:
        """Lay out all monomials by degree; each one of degree d is one of degree d − 1 times a component."""
        degree = max(map(len, used))
        levels: list[list[Monomial]] = [[(i,) for i in range(self.n_inputs)]]
        for d in range(2, degree + 1):
            needed = {m[:d] for m in used if len(m) >= d}
            levels.append(sorted(needed))
        position = {}
        offset = 0
        self.steps: list[tuple[torch.Tensor, torch.Tensor]] = []
        for d, level in enumerate(levels):
            if d:
                below = {m: i for i, m in enumerate(levels[d - 1])}
                self.steps.append((torch.tensor([below[m[:-1]] for m in level]), torch.tensor([m[-1] for m in level])))
            for i, m in enumerate(level):
                position[m] = offset + i
            offset += len(level)
        self.gather = torch.tensor([position[m] for m in used])

    def _group_tables(self, keys: list[tuple[int, Monomial, int]], terms: dict) -> None:
        """Group the U vectors by contraction and order, which share a weight tensor."""
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, (_, monomial, number) in enumerate(keys):
            groups[number, len(monomial)].append(i)
        order = [i for members in groups.values() for i in members]
        self.tables = [
            (number, degree, torch.tensor(np.array([terms[keys[i]] for i in members])))
            for (number, degree), members in groups.items()
        ]
        inverse = np.empty(len(order), dtype=np.int64)
        inverse[order] = np.arange(len(order))
        self.inverse = torch.tensor(inverse)

    def to(self, like: torch.Tensor) -> SparseContraction:
        """Move the tables to the precision and device of a tensor."""
        self.tables = [(a, b, table.to(like)) for a, b, table in self.tables]
        self.steps = [(a.to(like.device), b.to(like.device)) for a, b in self.steps]
        self.gather, self.inverse = self.gather.to(like.device), self.inverse.to(like.device)
        return self

    def coefficients(self, elements: torch.Tensor) -> torch.Tensor:
        """Return C of shape (terms, len(elements), channels) for some elements, differentiable by the weights."""
        parts = []
        for number, degree, table in self.tables:
            contraction = self.module.contractions[number]
            top = contraction.correlation
            weight = contraction.weights_max if degree == top else contraction.weights[top - 1 - degree]
            if weight.shape[0] != 1:
                weight = weight.index_select(0, elements)
            parts.append(torch.einsum("kp,zpc->kzc", table, weight))
        return torch.cat(parts).index_select(0, self.inverse)

    def __call__(self, x: torch.Tensor, coefficients: torch.Tensor, species: torch.Tensor) -> list[torch.Tensor]:
        """Return the outputs by irrep, each (2l+1, n, c).

        Args:
            x: (lm, n, c) features.
            coefficients: (terms, elements, c), or (terms, 1, c) if they are those of all elements.
            species: (n,) place of each atom's element.
        """
        if coefficients.shape[1] > 1:
            coefficients = coefficients.index_select(1, species)
        levels = [x]
        for lower, factor in self.steps:
            levels.append(levels[-1].index_select(0, lower) * x.index_select(0, factor))
        products = torch.cat(levels).index_select(0, self.gather) * coefficients
        sums = torch.stack([part.sum(0) for part in products.split(self.segments)])
        return list(sums.split(self.components))
