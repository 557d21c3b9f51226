"""Any model against any labeled dataset: errors beside those of trivial predictors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fieldflows.backends.base import FieldModel
from fieldflows.errors import EvaluationError, FieldflowsError
from fieldflows.training.config import TRAINABLE_LABELS
from fieldflows.training.data import fit_atomic_energies
from fieldflows.training.metrics import Predictions, TrivialPredictor, evaluate_metrics

if TYPE_CHECKING:
    from fieldflows.datasets.frame import LabeledFrame

BATCH = 8
"""Frames that are handed to a model at once."""


@dataclass
class Assessment:
    """Errors of a model on labeled frames.

    Attributes:
        labels: Observables that were compared.
        frames: Frames that could be evaluated.
        predictions: Predictions for them.
        metrics: Quantity to errors.
        trivial: The same of medians of the reference frames.
        failures: Name of a frame and why it could not be evaluated.
    """

    labels: tuple[str, ...]
    frames: list[LabeledFrame]
    predictions: Predictions
    metrics: dict[str, Any] = field(default_factory=dict)
    trivial: dict[str, Any] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)


def assess(
    model: FieldModel,
    frames: Sequence[LabeledFrame],
    reference: Sequence[LabeledFrame] = (),
    labels: Sequence[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Assessment:
    """Compare a model with labels.

    Args:
        model: The model.
        frames: The labeled frames.
        reference: Frames whose medians make the trivial predictor; without them there is none.
        labels: Observables to compare; those that the model was trained on by default.
        progress: Called with the number of frames done and in all.

    Raises:
        CapabilityError: If the model was not trained on what is asked for.
        EvaluationError: If no frame has such a label, or none can be evaluated.
    """
    if labels is None:
        labels = [key for key in TRAINABLE_LABELS if key in model.info.trained_labels]
    else:
        model.info.require(tuple(labels), "evaluation")
    wanted = tuple(key for key in labels if any(key in frame.labels for frame in frames))
    if not wanted:
        have = sorted({key for frame in frames for key in frame.labels})
        raise EvaluationError(
            f"None of the {len(frames)} frames has a label for {', '.join(labels) or 'what the model was trained on'}; "
            f"they hold {', '.join(have) or 'nothing'}."
        )
    result = Assessment(wanted, [], [])
    chosen = [frame for frame in frames if any(key in frame.labels for key in wanted)]
    for start in range(0, len(chosen), BATCH):
        for frame, prediction in _evaluate(model, chosen[start : start + BATCH], wanted, result.failures):
            result.frames.append(frame)
            result.predictions.append(prediction)
        progress(min(start + BATCH, len(chosen)), len(chosen))
    if not result.frames:
        name, reason = result.failures[0]
        raise EvaluationError(f"None of the {len(chosen)} frames could be evaluated; the first: {name}: {reason}")
    result.metrics = evaluate_metrics(result.frames, result.predictions)
    if reference:
        numbers = sorted({int(z) for frame in reference for z in frame.atoms.numbers})
        energies = dict(zip(numbers, fit_atomic_energies(reference, numbers), strict=True))
        trivial = TrivialPredictor(reference, energies)
        guesses = [{k: v for k, v in trivial.predict(f).items() if k in wanted} for f in result.frames]
        result.trivial = evaluate_metrics(result.frames, guesses)
    return result


def _evaluate(
    model: FieldModel, frames: Sequence[LabeledFrame], labels: tuple[str, ...], failures: list[tuple[str, str]]
) -> list[tuple[LabeledFrame, dict[str, Any]]]:
    """Evaluate a batch; one bad frame costs that frame only."""
    import numpy as np

    try:
        responses = model.evaluate([frame.atoms for frame in frames], observables=labels)
    except FieldflowsError as error:
        if len(frames) == 1:
            failures.append((frames[0].name, str(error)))
            return []
        return [pair for frame in frames for pair in _evaluate(model, [frame], labels, failures)]
    return [
        (frame, {key: np.asarray(response.get(key), dtype=float) for key in labels})
        for frame, response in zip(frames, responses, strict=True)
    ]
