"""Branches of the polarization along a path, and the spontaneous polarization that follows.

In every frame the polarization is taken apart along the frame's own lattice vectors,

    P = Σ_i f_i e a_i/Ω,

so that one branch differs from another by whole numbers, whatever strain and rotation lie between frames.  Changes of f
from frame to frame are folded to the nearest branch, component by component, and

    P_s = Σ_i [f_i(polar) − f_i(nonpolar)] e a_i(polar)/Ω(polar).

This reproduces the norm of every published path (Smidt et al., Sci. Data 7, 72 (2020)).  Where a step is so large that
the nearest branch need not be the right one, Born charges tell: the step is then folded around (1/Ω) Σ_κ Z*_κ·Δu_κ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fieldflows.physics.polarization import fold_polarization, polarization_from_charges

FloatArray = NDArray[np.float64]

AMBIGUOUS_STEP = 0.35
"""Largest step of f from frame to frame, in quanta, whose branch is beyond doubt."""

BROKEN_BRANCH = 0.15
"""Largest second difference of f along a path, in quanta, that a smooth path has."""

OFFSET = 1e-3
"""Distance of f from a whole number, in quanta, above which a nonpolar end counts as being on another branch."""


@dataclass(frozen=True)
class Branch:
    """A polarization that was followed along a path.

    Attributes:
        fractions: (k, 3) f of each frame as given.
        changes: (k, 3) f − f(nonpolar) on one branch; the first row is zero.
        guided: Steps, by the number of the frame they start from, that were folded around a guide.
    """

    fractions: FloatArray
    changes: FloatArray
    guided: tuple[int, ...] = ()

    @property
    def steps(self) -> FloatArray:
        """(k − 1, 3) changes from frame to frame, in quanta."""
        return np.diff(self.changes, axis=0)

    @property
    def max_step(self) -> float:
        """Largest component of a step, in quanta."""
        return float(np.abs(self.steps).max())

    @property
    def max_second_difference(self) -> float:
        """Largest component of f_{k+1} − 2 f_k + f_{k−1}, in quanta; 0 for two frames."""
        return float(np.abs(np.diff(self.changes, n=2, axis=0)).max(initial=0.0))

    @property
    def offset(self) -> float:
        """Largest distance of a component of f(nonpolar) from a whole number, in quanta."""
        return float(np.abs(self.fractions[0] - np.round(self.fractions[0])).max())

    def large_steps(self, threshold: float = AMBIGUOUS_STEP) -> tuple[int, ...]:
        """Return the numbers of the frames from which a larger step starts."""
        return tuple(int(k) for k in np.flatnonzero(np.abs(self.steps).max(axis=1) > threshold))


def polarization_fractions(polarization: ArrayLike, cell: ArrayLike) -> FloatArray:
    """Return f with P = Σ_i f_i e a_i/Ω, (3,), dimensionless.

    Args:
        polarization: (3,) in e/Å².
        cell: (3, 3) lattice vectors as rows, in Å.
    """
    matrix = np.asarray(cell, dtype=float)
    return np.asarray(polarization, dtype=float) @ np.linalg.inv(matrix) * abs(float(np.linalg.det(matrix)))


def polarization_of(fractions: ArrayLike, cell: ArrayLike) -> FloatArray:
    """Return P = Σ_i f_i e a_i/Ω, (3,) in e/Å², from fractions of the quanta along the lattice vectors.

    Args:
        fractions: (3,) f_i, dimensionless.
        cell: (3, 3) rows are the lattice vectors of the frame itself, in Å.
    """
    matrix = np.asarray(cell, dtype=float)
    return np.asarray(np.asarray(fractions, dtype=float) @ matrix) / abs(float(np.linalg.det(matrix)))


def spontaneous_polarization(
    polar: ArrayLike, polar_cell: ArrayLike, nonpolar: ArrayLike, nonpolar_cell: ArrayLike
) -> FloatArray:
    """Return P_s of a path from the polarization at its ends, (3,) in e/Å², in the frame of the polar end.

    Each polarization is taken apart in its own cell, since the ends differ by strain, and may by a rotation.

    Args:
        polar: (3,) P at the polar end, e/Å².
        polar_cell: (3, 3) its lattice vectors as rows, Å.
        nonpolar: (3,) P at the nonpolar end, e/Å².
        nonpolar_cell: (3, 3) its lattice vectors as rows, Å.
    """
    change = polarization_fractions(polar, polar_cell) - polarization_fractions(nonpolar, nonpolar_cell)
    return polarization_of(change, polar_cell)


def follow_branch(fractions: ArrayLike, guides: ArrayLike | None = None, threshold: float = AMBIGUOUS_STEP) -> Branch:
    """Return fractions of the quanta put on one branch, frame by frame, whatever whole numbers were added to them.

    Args:
        fractions: (k, 3) f of each frame, nonpolar end first, each modulo 1.
        guides: (k − 1, 3) expected change of f in each step, in quanta; used where a step, folded to the nearest
            branch, is above the threshold.  None: always the nearest branch.
        threshold: In quanta.

    Raises:
        ValueError: If the shapes do not belong together, or there are fewer than two frames.
    """
    values = np.asarray(fractions, dtype=float)
    if values.ndim != 2 or values.shape[1] != 3 or len(values) < 2:
        raise ValueError(f"fractions must have the shape (k, 3) with k of two at least, found {values.shape}")
    steps = np.diff(values, axis=0)
    steps -= np.round(steps)
    guided: tuple[int, ...] = ()
    if guides is not None:
        expected = np.asarray(guides, dtype=float)
        if expected.shape != steps.shape:
            raise ValueError(f"guides must have the shape {steps.shape}, found {expected.shape}")
        guided = tuple(int(k) for k in np.flatnonzero(np.abs(steps).max(axis=1) > threshold))
        rows = list(guided)
        steps[rows] -= np.round(steps[rows] - expected[rows])
    return Branch(values, np.vstack([np.zeros(3), np.cumsum(steps, axis=0)]), guided)


def estimate_from_charges(charges: ArrayLike, differences: ArrayLike, polar_cell: ArrayLike) -> FloatArray:
    """Return the estimate of P_s from Born charges at both ends, (1/Ω) Σ_κ ½ [Z*_κ(polar) + Z*_κ(nonpolar)]·Δu_κ.

    Δu_κ is the change of the fractional coordinates times the polar lattice.  The trapezoidal rule over the two ends is
    no identity: it knows the branch where a single-valued P does not.

    Args:
        charges: (2, n, 3, 3) Z* of the nonpolar and of the polar end, in e, both in the frame of the polar end.
        differences: (n, 3) fractional coordinates of the polar end less those of the nonpolar one.
        polar_cell: (3, 3) lattice vectors as rows, in Å.

    Returns:
        (3,) in e/Å².
    """
    cell = np.asarray(polar_cell, dtype=float)
    mean = np.asarray(charges, dtype=float).mean(axis=0)
    return polarization_from_charges(mean, np.asarray(differences, dtype=float) @ cell, abs(float(np.linalg.det(cell))))


def nearest_branch(polarization: ArrayLike, target: ArrayLike, cell: ArrayLike) -> tuple[FloatArray, FloatArray, float]:
    """Return the branch of a polarization that lies nearest to a target, lattice component by lattice component.

    Args:
        polarization: (3,) in e/Å².
        target: (3,) in e/Å².
        cell: (3, 3) lattice vectors as rows, in Å.

    Returns:
        (3,) the polarization on that branch, e/Å²; (3,) the whole numbers of quanta that were added; the margin
        ½ − max |distance| in quanta: how far the target may move before another branch is the nearest.
    """
    value, goal = np.asarray(polarization, dtype=float), np.asarray(target, dtype=float)
    rest = fold_polarization(value - goal, cell)
    added = polarization_fractions(goal + rest - value, cell)
    return goal + rest, np.round(added), 0.5 - float(np.abs(polarization_fractions(rest, cell)).max())
