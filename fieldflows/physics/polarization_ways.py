"""The ways to P_s of one path, from P and Born charges of a model: difference, charges, branch, integral."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fieldflows.physics.born_charges import enforce_acoustic_sum
from fieldflows.physics.branches import (
    Branch,
    estimate_from_charges,
    nearest_branch,
    polarization_fractions,
    polarization_of,
)
from fieldflows.physics.path_integral import LinearPath, integrate_charges

FloatArray = NDArray[np.float64]

Way = Literal["charges", "branch", "difference"]


@dataclass(frozen=True)
class Ways:
    """P_s in different ways, (3,) in e/Å² each, and what belongs to them.

    Attributes:
        charges: (1/Ω) Σ ½ [Z*(polar) + Z*(nonpolar)]·Δu.
        by_end: (2, 3) the same with the charges of the nonpolar end alone, and of the polar one alone.
        on_branch: The difference with the whole quanta that bring it nearest to ``charges``.
        difference: Σ [f(polar) − f(nonpolar)] e a/Ω.
        added: (3,) those quanta.
        margin: See :func:`fieldflows.physics.branches.nearest_branch`.
        mean_charges: (n, 3, 3) mean of the charges at both ends, e.
        branch: P along the path.
        integral: ∫ of Born charges and strain, if it was made.
        strain: The strain's share in it.
    """

    charges: FloatArray
    by_end: FloatArray
    on_branch: FloatArray
    difference: FloatArray
    added: FloatArray
    margin: float
    mean_charges: FloatArray
    branch: Branch
    integral: FloatArray | None = None
    strain: FloatArray | None = None

    @property
    def spread(self) -> float:
        """Half the distance of the two estimates from the charges of one end, e/Å²."""
        return 0.5 * float(np.linalg.norm(self.by_end[1] - self.by_end[0]))

    def of(self, way: Way) -> FloatArray:
        """Return P_s by one way, (3,) in e/Å²."""
        return {"charges": self.charges, "branch": self.on_branch, "difference": self.difference}[way]


def ways_to_polarization(path: LinearPath, polarizations: ArrayLike, end_charges: Sequence[ArrayLike]) -> Ways:
    """Return P_s of a path in all ways that need no integral.

    Args:
        path: Cells and coordinates.
        polarizations: (k, 3) P of each frame, e/Å², of a model: single valued.
        end_charges: (n, 3, 3) Z* of the nonpolar and of the polar end in e; the sum rule is enforced.
    """
    pairs = zip(np.asarray(polarizations, dtype=float), path.cells, strict=True)
    fractions = np.array([polarization_fractions(value, cell) for value, cell in pairs])
    branch = Branch(fractions, fractions - fractions[0])
    cell = path.cells[-1]
    ends = [enforce_acoustic_sum(item) for item in end_charges]
    by_end = np.array([estimate_from_charges([item, item], path.slope, cell) for item in ends])
    estimate = by_end.mean(axis=0)
    difference = polarization_of(branch.changes[-1], cell)
    on_branch, added, margin = nearest_branch(difference, estimate, cell)
    return Ways(estimate, by_end, on_branch, difference, added, margin, np.mean(ends, axis=0), branch)


def strained_cells(path: LinearPath, step: float) -> list[tuple[FloatArray, FloatArray]]:
    """Return for each frame the cells at λ − step and λ + step; its coordinates stay."""
    return [(cell - step * path.cell_slope, cell + step * path.cell_slope) for cell in path.cells]


def integrated(
    path: LinearPath, polarizations: ArrayLike, charges: ArrayLike, strained: ArrayLike | None, step: float
) -> tuple[FloatArray, FloatArray]:
    """Return P_s as ∫ of Born charges and strain, and the strain's share, (3,) each in e/Å².

    Args:
        path: Cells and coordinates.
        polarizations: (k, 3) P of each frame, e/Å².
        charges: (k, n, 3, 3) Z* of each frame, e.
        strained: (k, 2, 3) P in the cells of :func:`strained_cells`, e/Å²; None for a path without strain.
        step: Step of λ between them and the frame.
    """
    values = np.asarray(polarizations, dtype=float)
    dipoles = values * np.abs(np.linalg.det(path.cells))[:, None]
    slopes = np.zeros_like(dipoles)
    if strained is not None:
        cells = np.array(strained_cells(path, step))
        moved = np.asarray(strained, dtype=float) * np.abs(np.linalg.det(cells))[..., None]
        slopes = (moved[:, 1] - moved[:, 0]) / (2 * step)
    displaced, stretched = integrate_charges(path, charges, dipoles, slopes)
    cell = path.cells[-1]
    return polarization_of(displaced + stretched, cell), polarization_of(stretched, cell)
