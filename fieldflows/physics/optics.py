"""Refractive indices from the electronic permittivity."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def refractive_index(epsilon_electronic: ArrayLike) -> float:
    """Return n = √(tr ε∞/3), as the Materials Project and Matbench define it; NaN if the trace is negative.

    Args:
        epsilon_electronic: (3, 3), dimensionless.

    Example:
        >>> refractive_index(np.diag([2.0, 2.0, 2.75]))
        1.5
    """
    mean = float(np.trace(np.asarray(epsilon_electronic, dtype=float))) / 3.0
    return float(np.sqrt(mean)) if mean >= 0.0 else float("nan")


def principal_permittivities(epsilon: ArrayLike) -> FloatArray:
    """Return the eigenvalues of the symmetric part of a permittivity, ascending, (3,)."""
    matrix = np.asarray(epsilon, dtype=float)
    return np.linalg.eigvalsh(0.5 * (matrix + matrix.T))


def principal_refractive_indices(epsilon_electronic: ArrayLike) -> FloatArray:
    """Return √λ_i of the eigenvalues of ε∞, ascending, (3,); NaN where an eigenvalue is negative.

    Their largest difference is the birefringence.
    """
    values = principal_permittivities(epsilon_electronic)
    return np.where(values >= 0.0, np.sqrt(np.abs(values)), np.nan)
