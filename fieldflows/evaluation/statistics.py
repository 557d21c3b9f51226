"""Errors of every quantity over a subset of frames, the model beside the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fieldflows.evaluation.baselines import Baselines
from fieldflows.schemas.evaluation import ErrorStatistics, QuantityEvaluation
from fieldflows.training.metrics import ALL_QUANTITIES, FloatArray, Predictions, Quantity, collect, errors

if TYPE_CHECKING:
    from fieldflows.datasets.frame import LabeledFrame

VECTORS = ("forces", "polarization")
"""Quantities whose components come in threes."""


def error_statistics(reference: FloatArray, predicted: FloatArray, vectors: bool = False) -> ErrorStatistics:
    """Return MAE, RMSE and R² over components, and the mean norm of the difference if they are vectors.

    Args:
        reference: (m,) labels.
        predicted: (m,) predictions.
        vectors: Whether each three components are a vector.
    """
    found = errors(reference, predicted)
    distance = None
    if vectors:
        distance = float(np.linalg.norm((predicted - reference).reshape(-1, 3), axis=1).mean())
    return ErrorStatistics(mae=found["mae"], rmse=found["rmse"], r2=found["r2"], distance=distance)


def quantity_evaluation(
    symbol: str,
    unit: str,
    reference: FloatArray,
    predicted: FloatArray,
    baselines: Mapping[str, tuple[FloatArray, FloatArray]],
    frames: int,
    vectors: bool = False,
) -> QuantityEvaluation:
    """Return the record of one quantity.

    Args:
        symbol: Symbol.
        unit: Unit of the numbers.
        reference: (m,) labels.
        predicted: (m,) predictions of the model.
        baselines: Name to labels and predictions.
        frames: Frames or paths that the numbers come from.
        vectors: Whether each three components are a vector.
    """
    return QuantityEvaluation(
        symbol=symbol,
        unit=unit,
        frames=frames,
        count=len(reference),
        label_mean=float(reference.mean()),
        label_spread=float(reference.std()),
        model=error_statistics(reference, predicted, vectors),
        baselines={name: error_statistics(*pair, vectors) for name, pair in baselines.items()},
    )


def evaluate_quantities(
    frames: Sequence[LabeledFrame],
    predictions: Predictions,
    baselines: Baselines,
    quantities: Sequence[Quantity] = ALL_QUANTITIES,
) -> dict[str, QuantityEvaluation]:
    """Return the record of every quantity that the frames have labels of and the model predictions for.

    Args:
        frames: The frames.
        predictions: One mapping per frame, internal units.
        baselines: What is known without the model.
        quantities: What to report.
    """
    result = {}
    for name, (quantity, reference, predicted) in collect(frames, predictions, quantities).items():
        key = quantity.observable
        members = [
            frame
            for frame, prediction in zip(frames, predictions, strict=True)
            if key in frame.labels and key in prediction
        ]
        others = {
            baseline: collect(members, guesses, (quantity,))[name][1:]
            for baseline, guesses in baselines.predict(quantity, members).items()
        }
        result[name] = quantity_evaluation(
            quantity.symbol, quantity.unit, reference, predicted, others, len(members), name in VECTORS
        )
    return result
