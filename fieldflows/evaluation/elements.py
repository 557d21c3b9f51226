"""Born effective charges by element, the acoustic sum rule, and the worst frames of every quantity."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols

from fieldflows.physics.born_charges import acoustic_sum_residual
from fieldflows.schemas.evaluation import ElementEvaluation, Outlier, SumRule
from fieldflows.training.metrics import ALL_QUANTITIES, FloatArray, Predictions, Quantity, collect

if TYPE_CHECKING:
    from fieldflows.datasets.frame import LabeledFrame

LABEL = "born_effective_charges"
_DIAGONAL = np.eye(3, dtype=bool)


def with_charges(
    frames: Sequence[LabeledFrame], predictions: Predictions
) -> list[tuple[LabeledFrame, FloatArray, FloatArray]]:
    """Return frame, label and prediction of Z*, (n, 3, 3) in e each, of the frames that have both."""
    return [
        (frame, frame.labels[LABEL], prediction[LABEL])
        for frame, prediction in zip(frames, predictions, strict=True)
        if LABEL in frame.labels and LABEL in prediction
    ]


def evaluate_elements(
    split: str, frames: Sequence[LabeledFrame], predictions: Predictions, medians: dict[int, float] | None = None
) -> list[ElementEvaluation]:
    """Return the errors of Z* by element, the worst first.

    Args:
        split: Name of the subset.
        frames: Its frames.
        predictions: One mapping per frame, internal units.
        medians: Atomic number to the median of the training diagonal in e, if there are training frames.
    """
    rows: dict[int, list[tuple[LabeledFrame, FloatArray, FloatArray]]] = defaultdict(list)
    for frame, label, predicted in with_charges(frames, predictions):
        for z in np.unique(frame.atoms.numbers):
            chosen = frame.atoms.numbers == z
            rows[int(z)].append((frame, label[chosen], predicted[chosen]))
    found = [_element(split, z, members, medians) for z, members in rows.items()]
    return sorted(found, key=lambda item: (-item.mae_diagonal, item.element))


def _element(
    split: str,
    z: int,
    members: Sequence[tuple[LabeledFrame, FloatArray, FloatArray]],
    medians: dict[int, float] | None,
) -> ElementEvaluation:
    label, predicted = (np.concatenate([item[k] for item in members]) for k in (1, 2))
    difference = predicted - label
    traces = [np.trace(value, axis1=1, axis2=2) / 3 for value in (label, predicted)]
    extremes = [(item[2] - item[1]).ravel()[np.argmax(np.abs(item[2] - item[1]))] for item in members]
    worst = int(np.argmax(np.abs(extremes)))
    baseline = None
    if medians is not None:
        baseline = float(np.abs(label[:, _DIAGONAL] - medians.get(z, 0.0)).mean())
    return ElementEvaluation(
        element=chemical_symbols[z],
        split=split,
        atoms=len(label),
        materials=len({item[0].material for item in members}),
        label_mean=float(traces[0].mean()),
        label_spread=float(traces[0].std()),
        predicted_mean=float(traces[1].mean()),
        mae_diagonal=float(np.abs(difference[:, _DIAGONAL]).mean()),
        mae_off_diagonal=float(np.abs(difference[:, ~_DIAGONAL]).mean()),
        baseline_mae_diagonal=baseline,
        worst_frame=members[worst][0].name,
        worst_error=float(extremes[worst]),
    )


def published_charges(frame: LabeledFrame) -> FloatArray:
    """Return the Z* labels as published, (n, 3, 3) in e: with the mean over the atoms that the cleaning removed."""
    residual = frame.extra.get("sum_rule_residual")
    label = frame.labels[LABEL]
    return label if residual is None else label + np.asarray(residual, dtype=float).reshape(3, 3)


def evaluate_sum_rule(split: str, frames: Sequence[LabeledFrame], predictions: Predictions) -> SumRule | None:
    """Return the acoustic sum rule over a subset, or None if no frame of it has Z*."""
    members = with_charges(frames, predictions)
    if not members:
        return None
    published = [acoustic_sum_residual(published_charges(frame)) for frame, _, _ in members]
    predicted = [acoustic_sum_residual(value) for _, _, value in members]
    return SumRule(
        split=split,
        frames=len(members),
        published_mean=float(np.mean(published)),
        published_max=max(published),
        label_max=max(acoustic_sum_residual(label) for _, label, _ in members),
        predicted_mean=float(np.mean(predicted)),
        predicted_max=max(predicted),
    )


def find_outliers(split: str, frames: Sequence[LabeledFrame], predictions: Predictions, number: int) -> list[Outlier]:
    """Return the frames with the largest mean absolute error of every quantity, worst first.

    Args:
        split: Name of the subset.
        frames: Its frames.
        predictions: One mapping per frame, internal units.
        number: How many per quantity.
    """
    found: dict[str, list[Outlier]] = defaultdict(list)
    for frame, prediction in zip(frames, predictions, strict=True):
        for quantity, label, predicted in collect([frame], [prediction], ALL_QUANTITIES).values():
            found[quantity.name].append(_outlier(split, quantity, frame, label, predicted, prediction))
    worst = []
    for quantity in ALL_QUANTITIES:
        worst += sorted(found[quantity.name], key=lambda item: -item.mae)[:number]
    return worst


def _outlier(
    split: str, quantity: Quantity, frame: LabeledFrame, label: FloatArray, predicted: FloatArray, prediction: dict
) -> Outlier:
    difference = np.abs(predicted - label)
    place = int(np.argmax(difference))
    element, label_sum, predicted_sum = None, None, None
    if quantity.observable in (LABEL, "forces"):
        element = chemical_symbols[int(frame.atoms.numbers[place // (len(label) // len(frame.atoms))])]
    if quantity.observable == LABEL:
        label_sum = acoustic_sum_residual(published_charges(frame))
        predicted_sum = acoustic_sum_residual(prediction[LABEL])
    return Outlier(
        name=quantity.name,
        unit=quantity.unit,
        split=split,
        frame=frame.name,
        material=frame.material,
        element=element,
        mae=float(difference.mean()),
        label=float(label[place]),
        predicted=float(predicted[place]),
        label_sum=label_sum,
        predicted_sum=predicted_sum,
    )
