"""Modes at the zone center: frequencies, eigenvectors, mode effective charges, infrared strengths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fieldflows.physics.dielectric import project_translations, translation_free_basis
from fieldflows.units import E_TO_DEBYE_PER_A, SQRT_EV_PER_A2_AMU_TO_THZ, THZ_TO_INVERSE_CM

FloatArray = NDArray[np.float64]

IR_ACTIVE_STRENGTH = 1e-6
"""Oscillator strength in e²/amu above which a degenerate set counts as active, if not below
:data:`IR_ACTIVE_FRACTION` of the strongest."""
IR_ACTIVE_FRACTION = 1e-5


@dataclass(frozen=True)
class Modes:
    """The 3n − 3 transverse optical modes at Γ, in ascending order of ω².

    Attributes:
        omega_squared: (m,) ω² in eV Å⁻² amu⁻¹; negative for imaginary frequencies.
        eigenvectors: (m, n, 3) mass-weighted orthonormal eigenvectors e; displacements are e/√M.
        mode_effective_charges: (m, 3) Z̃_m,i = Σ_κj Z*_κ,ij e_m,κj/√M_κ in e/√amu, or None without Born charges
            (arXiv:2508.17870, Eq. 26).
    """

    omega_squared: FloatArray
    eigenvectors: FloatArray
    mode_effective_charges: FloatArray | None = None

    @property
    def frequencies_thz(self) -> FloatArray:
        """(m,) ω/2π in THz; imaginary frequencies as negative numbers."""
        return np.sign(self.omega_squared) * np.sqrt(np.abs(self.omega_squared)) * SQRT_EV_PER_A2_AMU_TO_THZ

    @property
    def frequencies_inverse_cm(self) -> FloatArray:
        """(m,) wave numbers in cm⁻¹; imaginary ones as negative numbers."""
        return self.frequencies_thz * THZ_TO_INVERSE_CM

    @property
    def oscillator_strengths(self) -> FloatArray:
        """(m,) tr Z̃_m Z̃_mᵀ in e²/amu; within a degenerate set only the sum has a meaning.

        Raises:
            ValueError: If the modes were computed without Born charges.
        """
        if self.mode_effective_charges is None:
            raise ValueError("oscillator strengths need Born charges: pass them to gamma_modes()")
        return np.einsum("mi,mi->m", self.mode_effective_charges, self.mode_effective_charges)

    @property
    def oscillator_strengths_debye(self) -> FloatArray:
        """(m,) tr Z̃_m Z̃_mᵀ in (D/Å)²/amu."""
        return self.oscillator_strengths * E_TO_DEBYE_PER_A**2

    def ir_active(self, frequency_tolerance_thz: float = 0.01) -> NDArray[np.bool_]:
        """Return (m,) whether each mode, with its degenerate partners, absorbs infrared light.

        Args:
            frequency_tolerance_thz: Modes closer than this to their neighbor count as degenerate.
        """
        strengths = self.oscillator_strengths
        groups = np.concatenate([[0], np.cumsum(np.diff(self.frequencies_thz) > frequency_tolerance_thz)])
        if len(strengths) == 0:
            return np.zeros(0, dtype=bool)
        total = np.bincount(groups, weights=strengths)[groups]
        return total > max(IR_ACTIVE_STRENGTH, IR_ACTIVE_FRACTION * float(strengths.max()))


def gamma_modes(hessian: ArrayLike, masses: ArrayLike, born_charges: ArrayLike | None = None) -> Modes:
    """Return the optical modes of a Γ-point Hessian; translations are projected out, not cut off by frequency.

    Diagonalizes D = M^{−1/2} H M^{−1/2} on the 3n − 3 mass-weighted displacements with the center of mass at rest.

    Args:
        hessian: (3n, 3n) H in eV/Å², ordered atom by atom, x, y, z.
        masses: (n,) M in amu.
        born_charges: (n, 3, 3) Z* in e; first index polarization, second displacement.

    Raises:
        ValueError: If the shapes do not fit or a mass is not positive.
    """
    mass = np.asarray(masses, dtype=float)
    matrix = np.asarray(hessian, dtype=float)
    n_atoms = len(mass)
    if matrix.shape != (3 * n_atoms, 3 * n_atoms):
        raise ValueError(f"expected a Hessian of shape {(3 * n_atoms,) * 2} for {n_atoms} masses, found {matrix.shape}")
    if not (mass > 0.0).all():
        raise ValueError("all masses must be positive")
    root = np.repeat(np.sqrt(mass), 3)
    dynamical = project_translations(matrix) / np.outer(root, root)
    basis = translation_free_basis(n_atoms, mass)
    omega_squared, vectors = np.linalg.eigh(basis.T @ dynamical @ basis)
    eigenvectors = (basis @ vectors).T
    charges = None
    if born_charges is not None:
        born = np.asarray(born_charges, dtype=float)
        if born.shape != (n_atoms, 3, 3):
            raise ValueError(f"expected Born charges of shape {(n_atoms, 3, 3)}, found {born.shape}")
        charges = eigenvectors @ (born.transpose(0, 2, 1).reshape(3 * n_atoms, 3) / root[:, None])
    return Modes(omega_squared, eigenvectors.reshape(-1, n_atoms, 3), charges)
