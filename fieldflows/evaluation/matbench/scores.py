"""The metrics of Matbench: four per fold, and their mean and spread over the folds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from fieldflows.datasets.matbench import N_FOLDS, official_folds, official_mbid
from fieldflows.errors import DataError
from fieldflows.schemas.matbench import MatbenchScore, MatbenchScores, Spread

METRICS: tuple[str, ...] = ("mae", "rmse", "mape", "max_error")
"""The metrics of a regression task of Matbench."""

SMALLEST = 1e-5
"""Labels below this size do not count in the relative error, as Matbench has it; no refractive index is so small."""


def fold_key(fold: int) -> str:
    """Return the name of a fold in Matbench's files.

    Example:
        >>> fold_key(0)
        'fold_0'
    """
    return f"fold_{fold}"


def fold_of_mbids() -> dict[str, int]:
    """Return the official fold of every identifier of the task."""
    return {official_mbid(row): int(fold) for row, fold in enumerate(official_folds())}


def score(reference: ArrayLike, predicted: ArrayLike) -> MatbenchScores:
    """Return the four metrics over some rows.

    mae = ⟨|p − r|⟩, rmse = √⟨(p − r)²⟩, mape = ⟨|p − r|/|r|⟩, max_error = max |p − r| (Dunn et al., npj Comput. Mater.
    6, 138 (2020), as its software defines them).

    Args:
        reference: (m,) labels n.
        predicted: (m,) predictions of n.

    Raises:
        DataError: If there are no rows, or a number is not finite.

    Example:
        >>> score([2.0, 4.0], [2.0, 3.0]).mape
        0.125
    """
    labels, values = np.asarray(reference, dtype=float), np.asarray(predicted, dtype=float)
    if not len(labels) or labels.shape != values.shape or not (np.isfinite(labels).all() and np.isfinite(values).all()):
        raise DataError(
            f"Matbench metrics need as many finite predictions as labels, found {values.shape} and {labels.shape}."
        )
    errors = np.abs(values - labels)
    counted = np.abs(labels) > SMALLEST
    return MatbenchScores(
        rows=len(labels),
        mae=float(errors.mean()),
        rmse=float(np.sqrt(np.square(errors).mean())),
        mape=float((errors[counted] / np.abs(labels[counted])).mean()) if counted.any() else 0.0,
        max_error=float(errors.max()),
    )


def score_folds(labels: Mapping[str, float], predictions: Mapping[str, float]) -> MatbenchScore:
    """Return the metrics of predictions by fold, and over the folds.

    The fold of a row follows from its identifier, whatever other rows there are.

    Args:
        labels: Identifier to n, of the rows to judge by.
        predictions: Identifier to predicted n; must hold all of them.

    Raises:
        DataError: If an identifier is none of the task, a prediction is missing, or there are no rows.
    """
    folds = fold_of_mbids()
    foreign = [name for name in labels if name not in folds]
    missing = [name for name in labels if name not in predictions]
    if foreign or missing:
        what = f"{foreign[0]!r} is no row of matbench_dielectric" if foreign else f"there is no prediction {missing[0]}"
        raise DataError(f"The rows cannot be scored: {what} ({len(foreign or missing)} of {len(labels)} rows).")
    found: dict[str, MatbenchScores] = {}
    for fold in range(N_FOLDS):
        names = [name for name in labels if folds[name] == fold]
        if names:
            found[fold_key(fold)] = score([labels[name] for name in names], [predictions[name] for name in names])
    if not found:
        raise DataError("There are no rows to score.")
    return MatbenchScore(
        rows=len(labels),
        folds=found,
        over_folds={metric: spread([getattr(item, metric) for item in found.values()]) for metric in METRICS},
        median_error=float(np.median([abs(predictions[name] - label) for name, label in labels.items()])),
    )


def spread(values: ArrayLike) -> Spread:
    """Return mean, standard deviation (divided by the number of folds), least and largest of a metric over folds."""
    array = np.asarray(values, dtype=float)
    return Spread(mean=float(array.mean()), std=float(array.std()), min=float(array.min()), max=float(array.max()))


def dummy_predictions(labels: Mapping[str, float]) -> dict[str, float]:
    """Return the mean n of the other folds for each row: the predictor that knows nothing.

    Args:
        labels: Identifier to n.
    """
    folds = fold_of_mbids()
    values = np.array(list(labels.values()))
    places = np.array([folds[name] for name in labels])
    means = {fold: float(values[places != fold].mean()) for fold in set(places.tolist()) if (places != fold).any()}
    return {name: means.get(int(fold), float(values.mean())) for name, fold in zip(labels, places, strict=True)}
