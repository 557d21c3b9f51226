"""Sum rule and symmetry of Born effective charges."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fieldflows.physics.symmetry import SymmetryOperations

FloatArray = NDArray[np.float64]


def acoustic_sum(born_charges: ArrayLike) -> FloatArray:
    """Return Σ_κ Z*_κ, (3, 3) in e, which is zero for an exact calculation of a neutral crystal."""
    return np.asarray(born_charges, dtype=float).sum(axis=0)


def acoustic_sum_residual(born_charges: ArrayLike) -> float:
    """Return the largest component of |Σ_κ Z*_κ| in e."""
    return float(np.abs(acoustic_sum(born_charges)).max())


def enforce_acoustic_sum(born_charges: ArrayLike) -> FloatArray:
    """Return the charges less their mean over the atoms, so that they sum to zero.

    Args:
        born_charges: (n, 3, 3) in e.
    """
    charges = np.asarray(born_charges, dtype=float)
    return charges - charges.mean(axis=0)


def isotropic_charges(born_charges: ArrayLike) -> FloatArray:
    """Return tr Z*_κ/3 of each atom, (n,) in e."""
    return np.trace(np.asarray(born_charges, dtype=float), axis1=1, axis2=2) / 3.0


def symmetrize_born_charges(born_charges: ArrayLike, operations: SymmetryOperations) -> FloatArray:
    """Return the charges averaged over the space group: Z*_s(κ) ← mean over s of R_s Z*_κ R_sᵀ.

    Args:
        born_charges: (n, 3, 3) in e, Cartesian, in the frame of the operations.
        operations: Of the same crystal.
    """
    return operations.symmetrize_site_tensors(born_charges)


def site_symmetry_violation(born_charges: ArrayLike, operations: SymmetryOperations) -> float:
    """Return the largest component in e by which the charges of symmetry-equivalent atoms differ.

    The maximum over operations s and atoms κ of |Z*_s(κ) − R_s Z*_κ R_sᵀ|.  Labels with rotated tensors or
    another order of atoms show up here; transposed ones do not, since R Zᵀ Rᵀ = (R Z Rᵀ)ᵀ.

    Args:
        born_charges: (n, 3, 3) in e, Cartesian, in the frame of the operations.
        operations: Of the same crystal.
    """
    charges = np.asarray(born_charges, dtype=float)
    worst = 0.0
    for rotation, permutation in zip(operations.rotations, operations.permutations, strict=True):
        image = rotation @ charges @ rotation.T
        worst = max(worst, float(np.abs(charges[permutation] - image).max()))
    return worst
