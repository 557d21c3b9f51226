"""Real spherical harmonics of unit vectors as polynomials, component by component."""

from __future__ import annotations

from functools import cache
from itertools import combinations_with_replacement, pairwise

import numpy as np
import torch

from fieldflows.backends.mace_field._mace import o3


class Harmonics:
    """All harmonics up to a degree, in the normalization and order of e3nn ('component').

    Args:
        degree: Highest degree.
        device: Where vectors will be.
    """

    def __init__(self, degree: int, device: torch.device) -> None:
        steps, matrix = _polynomials(degree)
        self.steps = [(torch.tensor(a, device=device), torch.tensor(b, device=device)) for a, b in steps]
        self.matrix = torch.tensor(matrix, device=device)

    def __call__(self, unit: torch.Tensor) -> torch.Tensor:
        """Return ((L + 1)², e) from unit vectors (3, e) in float64."""
        levels = [torch.ones_like(unit[:1]), unit]
        for lower, factor in self.steps:
            levels.append(levels[-1].index_select(0, lower) * unit.index_select(0, factor))
        return self.matrix @ torch.cat(levels[: len(self.steps) + 2])


@cache
def _polynomials(degree: int) -> tuple[list[tuple[list[int], list[int]]], np.ndarray]:
    """Return how monomials of each degree above one follow from the one below, and the coefficients.

    Homogeneous polynomials of degree l that agree with a harmonic on many directions agree everywhere.
    """
    monomials = [list(combinations_with_replacement(range(3), d)) for d in range(max(degree, 1) + 1)]
    steps = []
    for below, level in pairwise(monomials[1:]):
        place = {m: i for i, m in enumerate(below)}
        steps.append(([place[m[:-1]] for m in level], [m[-1] for m in level]))
    directions = np.random.default_rng(0).normal(size=(200, 3))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    total = sum(map(len, monomials))
    matrix = np.zeros(((degree + 1) ** 2, total))
    offset = 0
    for d, level in enumerate(monomials[: degree + 1]):
        values = o3.spherical_harmonics(d, torch.tensor(directions), normalize=True, normalization="component").numpy()
        powers = np.stack([np.prod(directions[:, list(m)], axis=1) for m in level], axis=1)
        solution = np.linalg.lstsq(powers, values, rcond=None)[0].T
        solution[np.abs(solution) < 1e-12] = 0.0
        matrix[d * d : (d + 1) ** 2, offset : offset + len(level)] = solution
        offset += len(level)
    return steps, matrix
