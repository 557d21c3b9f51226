"""The polarization lattice: quanta, folding, units."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fieldflows.units import E_PER_A2_TO_UC_PER_CM2

FloatArray = NDArray[np.float64]


def polarization_quantum(cell: ArrayLike) -> FloatArray:
    """Return the quanta of polarization, one per row: Q_k = e a_k/Ω.

    Args:
        cell: (3, 3) lattice vectors as rows, in Å.

    Returns:
        (3, 3) in e/Å².

    Raises:
        ValueError: If the cell has no volume.
    """
    matrix = np.asarray(cell, dtype=float)
    volume = abs(float(np.linalg.det(matrix)))
    if volume < 1e-12:
        raise ValueError("the cell has zero volume, so there is no quantum of polarization")
    return matrix / volume


def fold_polarization(difference: ArrayLike, cell: ArrayLike) -> FloatArray:
    """Return a polarization difference folded to the nearest branch: (x − round(x)) Q with x = ΔP Q⁻¹.

    Folding is done in lattice components, so that it holds for triclinic cells; the result has components within
    half a quantum along each lattice vector, which need not be the shortest vector of a very skewed cell.

    Args:
        difference: (..., 3) ΔP in e/Å².
        cell: (3, 3) lattice vectors as rows, in Å.

    Returns:
        (..., 3) in e/Å².
    """
    quantum = polarization_quantum(cell)
    fractions = np.asarray(difference, dtype=float) @ np.linalg.inv(quantum)
    return (fractions - np.round(fractions)) @ quantum


def polarization_from_charges(charges: ArrayLike, displacements: ArrayLike, volume: float) -> FloatArray:
    """Return the change of polarization of a displacement at fixed charges, ΔP_i = (1/Ω) Σ_κ Σ_j Z*_κ,ij Δu_κj.

    With the charges at one point it is the linear term; with the mean over both ends the trapezoidal rule.

    Args:
        charges: (n, 3, 3) Born effective charges in e, first index polarization.
        displacements: (n, 3) in Å.
        volume: Ω in Å³.

    Returns:
        (3,) in e/Å².
    """
    return np.einsum("nij,nj->i", np.asarray(charges, dtype=float), np.asarray(displacements, dtype=float)) / volume


def to_microcoulomb_per_cm2(polarization: ArrayLike) -> FloatArray:
    """Return a polarization in µC/cm², given in e/Å²."""
    return np.asarray(polarization, dtype=float) * E_PER_A2_TO_UC_PER_CM2
