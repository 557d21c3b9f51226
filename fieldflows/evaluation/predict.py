"""Predictions of any model for labeled frames; a frame that fails costs that frame alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fieldflows.backends.base import FieldModel, Response
from fieldflows.backends.symmetric import SymmetrySettings, evaluate_each
from fieldflows.errors import CapabilityError, EvaluationError, FieldflowsError, UnknownElementError
from fieldflows.observables import OBSERVABLES
from fieldflows.schemas.evaluation import FrameProblem
from fieldflows.training.config import TRAINABLE_LABELS
from fieldflows.training.metrics import Predictions

if TYPE_CHECKING:
    from fieldflows.datasets.frame import LabeledFrame

BATCH = 8
"""Frames that are handed to a model at once."""

Progress = Callable[[int, int], None]
"""Called with the number of frames done and in all."""

OpenHead = Callable[[str], FieldModel]
"""Returns the same model with another of its heads."""


@dataclass
class Predicted:
    """Frames that a model could evaluate.

    Attributes:
        labels: Observables that are compared.
        frames: Frames that were evaluated, in the order of the dataset.
        predictions: Observable to array for each of them, internal units.
        problems: Frames that were left out, with the reason.
    """

    labels: tuple[str, ...]
    frames: list[LabeledFrame] = field(default_factory=list)
    predictions: Predictions = field(default_factory=list)
    problems: list[FrameProblem] = field(default_factory=list)

    def subset(self, split: str, head: str | None = None) -> tuple[list[LabeledFrame], Predictions]:
        """Return the frames of a subset, or of one head in it, and the predictions for them."""
        pairs = [
            (frame, prediction)
            for frame, prediction in zip(self.frames, self.predictions, strict=True)
            if frame.split == split and (head is None or frame.head == head)
        ]
        return [frame for frame, _ in pairs], [prediction for _, prediction in pairs]


def choose_labels(
    model: FieldModel, frames: Sequence[LabeledFrame], labels: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Return the observables to compare: those asked for, or those that the model was trained on, as frames have them.

    Raises:
        CapabilityError: If the model cannot tell anything about what was asked for.
        EvaluationError: If no frame has such a label; names the labels that there are.
    """
    if labels is None:
        asked = tuple(key for key in TRAINABLE_LABELS if key in model.info.trained_labels)
    else:
        asked = tuple(labels)
        model.info.require(asked, "evaluation")
    wanted = tuple(key for key in asked if any(key in frame.labels for frame in frames))
    if wanted:
        return wanted
    have = sorted({key for frame in frames for key in frame.labels})
    possible = [key for key in have if key in OBSERVABLES and _supports(model, key)] if labels is None else []
    hint = (
        f"The model can be asked for {', '.join(possible)} nevertheless, although it saw no such labels: name it "
        f"explicitly (--label {possible[0]})."
        if possible
        else "Choose another dataset, or labels that it holds."
    )
    raise EvaluationError(
        f"None of the {len(frames)} frames has a label for {', '.join(asked) or 'what the model was trained on'}; "
        f"they hold {', '.join(have) or 'nothing'}.",
        hint,
    )


def _supports(model: FieldModel, label: str) -> bool:
    try:
        model.info.require((label,))
    except CapabilityError:
        return False
    return True


def predict_frames(
    model: FieldModel,
    frames: Sequence[LabeledFrame],
    labels: Sequence[str] | None = None,
    symmetry: bool = True,
    progress: Progress = lambda done, total: None,
    open_head: OpenHead | None = None,
) -> Predicted:
    """Evaluate a model on all frames that have one of the labels.

    Args:
        model: The model.
        frames: The labeled frames.
        labels: Observables to compare; those that the model was trained on by default.
        symmetry: Use the symmetry of crystals where second derivatives are asked for.
        progress: Called with the number of frames done and in all.
        open_head: Gives the model's other heads; frames that name one of them are evaluated with it.

    Raises:
        CapabilityError: If the model was not trained on what is asked for.
        EvaluationError: If no frame has such a label, or none can be evaluated.
    """
    wanted = choose_labels(model, frames, labels)
    result = Predicted(wanted)
    reduced = SymmetrySettings() if symmetry and {"born_effective_charges", "polarizability"} & set(wanted) else None
    chosen = _with_known_elements(model, [f for f in frames if any(key in f.labels for key in wanted)], result)
    outcomes: dict[int, Response | Exception] = {}
    for head, places in _by_head(model, chosen, open_head).items():
        used = model if head is None or open_head is None else open_head(head)
        for start in range(0, len(places), BATCH):
            part = places[start : start + BATCH]
            needed = tuple(key for key in wanted if any(key in chosen[i].labels for i in part))
            found = evaluate_each(used, [chosen[i].atoms for i in part], None, needed, reduced)
            outcomes.update(zip(part, found, strict=True))
            progress(len(outcomes), len(chosen))
    for i, frame in enumerate(chosen):
        _keep(result, frame, outcomes[i])
    if not result.frames:
        first = result.problems[0]
        reason = first.reason.rstrip(".")
        raise EvaluationError(
            f"None of the {len(result.problems)} frames could be evaluated; the first: {first.frame}: {reason}.",
            "Choose a model that knows the elements of this dataset."
            if all(problem.kind == "unknown_element" for problem in result.problems)
            else None,
        )
    return result


def predict_charges(
    model: FieldModel, frames: Sequence[LabeledFrame], symmetry: bool = True, open_head: OpenHead | None = None
) -> list[NDArray[np.float64] | None]:
    """Return the Born effective charges of each frame, (n, 3, 3) in e; None where the model cannot tell them.

    Args:
        model: The model; one that has no Born charges gives None for all frames.
        frames: Frames whose elements the model knows.
        symmetry: Use the symmetry of crystals.
        open_head: Gives the model's other heads; frames that name one of them are evaluated with it.
    """
    charges: list[NDArray[np.float64] | None] = [None] * len(frames)
    if not _supports(model, "born_effective_charges"):
        return charges
    reduced = SymmetrySettings() if symmetry else None
    for head, places in _by_head(model, frames, open_head).items():
        used = model if head is None or open_head is None else open_head(head)
        for start in range(0, len(places), BATCH):
            part = places[start : start + BATCH]
            found = evaluate_each(used, [frames[i].atoms for i in part], None, ("born_effective_charges",), reduced)
            for i, outcome in zip(part, found, strict=True):
                if not isinstance(outcome, Exception):
                    value = np.asarray(outcome.get("born_effective_charges"), dtype=float)
                    charges[i] = value if np.isfinite(value).all() else None
    return charges


def _with_known_elements(model: FieldModel, frames: list[LabeledFrame], result: Predicted) -> list[LabeledFrame]:
    """Return the frames that the model has all elements of, and list the others as problems."""
    known, kept = set(model.info.elements), []
    for frame in frames:
        missing = sorted(set(frame.atoms.symbols) - known)
        if missing:
            reason = f"the model does not know {', '.join(missing)}"
            result.problems.append(
                FrameProblem(frame=frame.name, split=frame.split or "", kind="unknown_element", reason=reason)
            )
        else:
            kept.append(frame)
    return kept


def _by_head(
    model: FieldModel, frames: Sequence[LabeledFrame], open_head: OpenHead | None
) -> dict[str | None, list[int]]:
    """Return the numbers of the frames by the head that they are evaluated with; None for the model as it is."""
    groups: dict[str | None, list[int]] = {}
    for i, frame in enumerate(frames):
        known = open_head is not None and frame.head in model.info.heads and len(model.info.heads) > 1
        groups.setdefault(frame.head if known else None, []).append(i)
    return groups


def _keep(result: Predicted, frame: LabeledFrame, outcome: Response | Exception) -> None:
    reason = ""
    if isinstance(outcome, Exception):
        reason = str(outcome) if isinstance(outcome, FieldflowsError) else f"{type(outcome).__name__}: {outcome}"
    else:
        arrays = {key: np.asarray(outcome.get(key), dtype=float) for key in result.labels if key in frame.labels}
        bad = [key for key, value in arrays.items() if not np.isfinite(value).all()]
        bad += [key for key, value in arrays.items() if value.shape != frame.labels[key].shape]
        if not bad:
            result.frames.append(frame)
            result.predictions.append(arrays)
            return
        reason = f"the model's {', '.join(bad)} is not finite or has another shape than the label"
    kind = "unknown_element" if isinstance(outcome, UnknownElementError) else "failed"
    result.problems.append(FrameProblem(frame=frame.name, split=frame.split or "", kind=kind, reason=reason))  # type: ignore[arg-type]
