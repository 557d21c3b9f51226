"""Errors of predictions."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def _difference(predicted: ArrayLike, reference: ArrayLike) -> NDArray[np.float64]:
    left, right = np.asarray(predicted, dtype=float), np.asarray(reference, dtype=float)
    if left.shape != right.shape:
        raise ValueError(f"predictions have shape {left.shape}, references {right.shape}")
    if left.size == 0:
        raise ValueError("no values to compare")
    return left - right


def mean_absolute_error(predicted: ArrayLike, reference: ArrayLike) -> float:
    """Return the mean of |predicted − reference| over all components, in their unit.

    Raises:
        ValueError: If the shapes differ or nothing is given.
    """
    return float(np.abs(_difference(predicted, reference)).mean())


def root_mean_square_error(predicted: ArrayLike, reference: ArrayLike) -> float:
    """Return √(mean (predicted − reference)²) over all components, in their unit.

    Raises:
        ValueError: If the shapes differ or nothing is given.
    """
    return float(np.sqrt((_difference(predicted, reference) ** 2).mean()))


def r_squared(predicted: ArrayLike, reference: ArrayLike) -> float:
    """Return the coefficient of determination 1 − Σ(predicted − reference)²/Σ(reference − mean)².

    NaN if all references are equal.  Never above 1; negative if the mean would have been the better prediction.

    Raises:
        ValueError: If the shapes differ or nothing is given.
    """
    residual = float((_difference(predicted, reference) ** 2).sum())
    values = np.asarray(reference, dtype=float)
    spread = float(((values - values.mean()) ** 2).sum())
    return 1.0 - residual / spread if spread > 0.0 else float("nan")
