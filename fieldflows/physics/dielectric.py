"""Permittivities from polarizability, Born charges and Hessian."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fieldflows.errors import EvaluationError
from fieldflows.units import EPSILON_VACUUM

FloatArray = NDArray[np.float64]


def electronic_permittivity(polarizability: ArrayLike) -> FloatArray:
    """Return ε∞ = I + α/ε_vac.

    Args:
        polarizability: (..., 3, 3) α per volume in e/(V·Å).

    Returns:
        (..., 3, 3), dimensionless.

    Example:
        >>> from fieldflows.units import EPSILON_VACUUM
        >>> electronic_permittivity(2 * EPSILON_VACUUM * np.eye(3))[0, 0]
        np.float64(3.0)
    """
    return np.eye(3) + np.asarray(polarizability, dtype=float) / EPSILON_VACUUM


def polarizability(permittivity: ArrayLike) -> FloatArray:
    """Return α = ε_vac (ε∞ − I) in e/(V·Å), the inverse of :func:`electronic_permittivity`."""
    return EPSILON_VACUUM * (np.asarray(permittivity, dtype=float) - np.eye(3))


def translation_free_basis(n_atoms: int, weights: ArrayLike | None = None) -> FloatArray:
    """Return an orthonormal basis of the displacements that move no center.

    The columns span the complement of the three vectors √w_κ δ_ij: with unit weights the displacements without
    mean, with masses as weights the mass-weighted displacements that leave the center of mass at rest.

    Args:
        n_atoms: Number of atoms n.
        weights: (n,) positive weights; ones by default.

    Returns:
        (3n, 3n − 3).
    """
    root = np.ones(n_atoms) if weights is None else np.sqrt(np.asarray(weights, dtype=float))
    unit = root / np.linalg.norm(root)
    # Householder reflection that maps the first axis on the translation; its other columns are the complement.
    axis = unit.copy()
    axis[0] += 1.0
    reflection = np.eye(n_atoms) - 2.0 * np.outer(axis, axis) / (axis @ axis)
    return np.kron(reflection[:, 1:], np.eye(3))


def project_translations(hessian: ArrayLike) -> FloatArray:
    """Return the symmetric part of a Hessian with translations projected out from both sides.

    Args:
        hessian: (3n, 3n) in any unit.

    Returns:
        (3n, 3n) whose rows and columns sum to zero over the atoms for each component.
    """
    matrix = np.asarray(hessian, dtype=float)
    blocks = (0.5 * (matrix + matrix.T)).reshape(len(matrix) // 3, 3, len(matrix) // 3, 3)
    blocks = blocks - blocks.mean(axis=0, keepdims=True)
    blocks = blocks - blocks.mean(axis=2, keepdims=True)
    return blocks.reshape(matrix.shape)


def ionic_permittivity(born_charges: ArrayLike, hessian: ArrayLike, volume: float) -> FloatArray:
    """Return ε_ion = Z* H⁺ Z*ᵀ/(ε_vac Ω), with H⁺ the inverse on the 3n − 3 space without translations.

    This is the relaxed-ion response: a field moves the ions by H⁺ Z*ᵀ𝓔, which polarizes the cell by Z* H⁺ Z*ᵀ𝓔/Ω.
    No frequency threshold enters.  The sum over modes (:func:`mode_sum_permittivity`) is the same number.
    At a saddle point the result is a formal one: see :mod:`fieldflows.properties.dielectric`.

    Args:
        born_charges: (n, 3, 3) Z* in e; first index polarization, second displacement.
        hessian: (3n, 3n) in eV/Å².
        volume: Ω in Å³.

    Returns:
        (3, 3), dimensionless, symmetric.

    Raises:
        EvaluationError: If the Hessian is singular without translations, so that no response exists.
    """
    charges = np.asarray(born_charges, dtype=float)
    n_atoms = len(charges)
    if n_atoms == 1:
        return np.zeros((3, 3))
    basis = translation_free_basis(n_atoms)
    matrix = np.asarray(hessian, dtype=float)
    reduced = basis.T @ (0.5 * (matrix + matrix.T)) @ basis
    coupling = charges.transpose(1, 0, 2).reshape(3, 3 * n_atoms) @ basis
    values, vectors = np.linalg.eigh(reduced)
    largest = np.abs(values).max()
    if largest == 0.0 or np.abs(values).min() < 1e-13 * largest:
        raise EvaluationError(
            f"The Hessian without translations is singular (eigenvalues {values[0]:.3g} to {values[-1]:.3g} eV/Å²).",
            "Some atoms move without any restoring force; check that all of them interact.",
        )
    projected = coupling @ vectors
    return (projected / values) @ projected.T / (EPSILON_VACUUM * volume)


def mode_sum_permittivity(mode_charges: ArrayLike, omega_squared: ArrayLike, volume: float) -> FloatArray:
    """Return ε_ion = Σ_m Z̃_m Z̃_mᵀ/ω_m² /(ε_vac Ω), over all the modes given.

    Args:
        mode_charges: (m, 3) Z̃ in e/√amu.
        omega_squared: (m,) ω² in eV Å⁻² amu⁻¹; negative values enter with their sign.
        volume: Ω in Å³.

    Returns:
        (3, 3), dimensionless.
    """
    charges = np.asarray(mode_charges, dtype=float)
    return (charges.T / np.asarray(omega_squared, dtype=float)) @ charges / (EPSILON_VACUUM * volume)
