"""A small correction on top of a model: kernel ridge regression of ln χ, fitted to rows that it may learn from.

With χ = n² − 1, the target is y = ln χ(label) − ln χ(model); predicted is

    y(x) = ȳ + Σ_m a_m k(x, x_m),   a = (K + λ 1)⁻¹ (y − ȳ),

with features x standardized over the rows of the fit and either k = x·x′/d (linear ridge) or k = exp(−|x − x′|²/2ℓ²d)
(Saunders, Gammerman and Vovk, ICML (1998), Eq. 10).  Kernel, λ and ℓ are chosen by cross-validation by formula among
those same rows.  There is no correction unless the best of them lowers the mean absolute error of n there by more than
one standard error of that gain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fieldflows.schemas.matbench import HeadChoice

FloatArray = NDArray[np.float64]

LEAST_CHI = 0.05
"""χ below this counts as this: n of 1.025."""

PENALTIES: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)
LENGTHS: tuple[float, ...] = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Kernel:
    """One choice of the regression.

    Attributes:
        kind: "linear" or "radial".
        penalty: λ.
        length: ℓ of the radial kernel.
    """

    kind: Literal["linear", "radial"]
    penalty: float
    length: float | None = None

    def matrix(self, rows: FloatArray, columns: FloatArray) -> FloatArray:
        """Return k between standardized features, (a, d) and (b, d): (a, b)."""
        size = rows.shape[1]
        if self.length is None:
            return rows @ columns.T / size
        squared = np.square(rows).sum(axis=1)[:, None] + np.square(columns).sum(axis=1) - 2 * rows @ columns.T
        return np.exp(-np.maximum(squared, 0.0) / (2 * self.length**2 * size))


CHOICES: tuple[Kernel, ...] = (
    *(Kernel("linear", penalty) for penalty in PENALTIES),
    *(Kernel("radial", penalty, length) for penalty in PENALTIES for length in LENGTHS),
)
"""What is tried."""


def susceptibility(n: FloatArray | float) -> FloatArray:
    """Return ln χ = ln(n² − 1), of χ at least LEAST_CHI."""
    return np.log(np.maximum(np.square(np.asarray(n, dtype=float)) - 1.0, LEAST_CHI))


@dataclass(frozen=True)
class Regression:
    """A fitted kernel ridge regression.

    Attributes:
        kernel: The kernel.
        center: (d,) means of the features.
        scale: (d,) their standard deviations, 1 where they are constant.
        rows: (m, d) standardized features of the fit.
        weights: (m,) a.
        mean: ȳ.
        limits: Least and largest target of the fit; predictions stay between them.
    """

    kernel: Kernel
    center: FloatArray
    scale: FloatArray
    rows: FloatArray
    weights: FloatArray
    mean: float
    limits: tuple[float, float]

    @classmethod
    def fit(cls, kernel: Kernel, features: FloatArray, target: FloatArray) -> Regression:
        """Return the regression of targets (m,) on features (m, d)."""
        center, scale = features.mean(axis=0), features.std(axis=0)
        scale = np.where(scale > 1e-12, scale, 1.0)
        rows = (features - center) / scale
        mean = float(target.mean())
        matrix = kernel.matrix(rows, rows) + kernel.penalty * np.eye(len(rows))
        weights = np.asarray(np.linalg.solve(matrix, target - mean), dtype=np.float64)
        return cls(kernel, center, scale, rows, weights, mean, (float(target.min()), float(target.max())))

    def predict(self, features: FloatArray) -> FloatArray:
        """Return y of features (a, d): (a,)."""
        rows = (features - self.center) / self.scale
        return np.clip(self.mean + self.kernel.matrix(rows, self.rows) @ self.weights, *self.limits)


@dataclass(frozen=True)
class CorrectionHead:
    """The correction of one fold.

    Attributes:
        choice: How it was chosen.
        regression: The fitted regression; None for no correction.
    """

    choice: HeadChoice
    regression: Regression | None = None

    def correct(self, n: FloatArray, features: FloatArray) -> FloatArray:
        """Return corrected refractive indices, √(1 + χ e^y).

        Args:
            n: (a,) predictions of the model.
            features: (a, d) features of the same crystals.
        """
        if self.regression is None or not len(n):
            return np.asarray(n, dtype=float)
        return corrected(n, self.regression.predict(features))


def corrected(n: FloatArray, shift: FloatArray) -> FloatArray:
    """Return √(1 + χ e^y) for n (a,) and shifts y (a,) of ln χ."""
    return np.sqrt(1.0 + np.exp(susceptibility(n) + shift))


def fit_head(
    labels: FloatArray,
    n: FloatArray,
    features: FloatArray,
    formulas: Sequence[str],
    inner_folds: int = 5,
    least_rows: int = 30,
) -> CorrectionHead:
    """Return the head fitted to rows that may be learned from.

    Args:
        labels: (m,) n of the rows.
        n: (m,) predictions of the model, which was not trained on them.
        features: (m, d).
        formulas: Reduced formula of each; rows of one formula are never on both sides of the inner cross-validation.
        inner_folds: Parts of the inner cross-validation.
        least_rows: Fewer rows give no correction.
    """
    known = {"rows": len(labels), "formulas": len(set(formulas)), "features": features.shape[1] if len(labels) else 0}
    if len(labels) < least_rows or len(set(formulas)) < inner_folds:
        reason = f"only {len(labels)} rows to learn from, at least {least_rows} are needed"
        return CorrectionHead(HeadChoice(kind="none", reason=reason, **known))
    target = susceptibility(labels) - susceptibility(n)
    parts = np.array([_part(formula, inner_folds) for formula in formulas])
    before = np.abs(n - labels)
    found = [np.abs(_left_out(kernel, n, features, target, parts) - labels) for kernel in CHOICES]
    best = int(np.argmin([after.mean() for after in found]))
    kernel, gain = CHOICES[best], before - found[best]
    errors = {"inner_mae": float(found[best].mean()), "inner_mae_without": float(before.mean())}
    least = float(gain.std(ddof=1) / np.sqrt(len(gain)))
    if not gain.mean() > least:
        reason = (
            f"the best correction changes the error in cross-validation among the rows to learn from by "
            f"{-gain.mean():+.3g}; a gain of more than one standard error ({least:.3g}) is needed"
        )
        return CorrectionHead(HeadChoice(kind="none", reason=reason, **errors, **known))
    choice = HeadChoice(kind=kernel.kind, penalty=kernel.penalty, length=kernel.length, **errors, **known)
    return CorrectionHead(choice, Regression.fit(kernel, features, target))


def _part(formula: str, parts: int) -> int:
    """Return the part of the inner cross-validation that a formula is in: a hash, so that others move nobody."""
    return int.from_bytes(hashlib.sha256(f"matbench head:{formula}".encode()).digest()[:8], "big") % parts


def _left_out(
    kernel: Kernel, n: FloatArray, features: FloatArray, target: FloatArray, parts: NDArray[np.intp]
) -> FloatArray:
    """Return corrected n, (m,), of each part by a fit to the others."""
    found = np.array(n, dtype=float)
    for part in np.unique(parts):
        inside = parts == part
        if inside.all():
            continue
        shift = Regression.fit(kernel, features[~inside], target[~inside]).predict(features[inside])
        found[inside] = corrected(n[inside], shift)
    return found
