"""What an evaluation is worth, and when to stop: the score, and patience with it and with single labels."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from fieldflows.errors import SettingsError
from fieldflows.training.config import RunSection
from fieldflows.training.state import TrainingState


class Judge:
    """Scores evaluations and says when there is nothing more to wait for.

    The score is Σ_o c_o L_o with the parts L_o of the loss on the validation frames (on the training frames where
    there are none) and the weights c_o of ``run.score``; the whole loss without them.

    Args:
        run: The settings.
        judged: Observables that the frames of the evaluation have labels of.

    Raises:
        SettingsError: If an observable that is to be judged has no label there.
    """

    def __init__(self, run: RunSection, judged: Collection[str]) -> None:
        self.run = run
        for name in ("score", "label_patience"):
            missing = [key for key in getattr(run, name) if key not in judged]
            if missing:
                raise SettingsError(
                    f"run.{name} names {missing[0]}, but no frame of the evaluation has such a label (there are: "
                    f"{', '.join(judged) or 'none'}).",
                    "Take it out, or add validation frames with that label.",
                )

    def score(self, parts: Mapping[str, float], loss: float) -> float:
        """Return the score of an evaluation; lower is better."""
        if not self.run.score:
            return loss
        return sum(weight * parts[key] for key, weight in self.run.score.items() if weight)

    def observe(self, parts: Mapping[str, float], state: TrainingState) -> None:
        """Take the parts of an evaluation in: how long each observable that is watched has not improved."""
        for key in self.run.label_patience:
            watched = state.watched.setdefault(key, {"loss": math.inf, "waited": 0})
            watched["waited"] += 1
            if parts[key] < watched["loss"]:
                state.watched[key] = {"loss": parts[key], "waited": 0}

    def exhausted(self, state: TrainingState) -> bool:
        """Return whether the score has not improved for too long, or each of the watched observables."""
        run = self.run
        if run.patience is not None and state.best["waited"] >= run.patience:
            return True
        waited = {key: state.watched[key]["waited"] for key in run.label_patience if key in state.watched}
        return bool(run.label_patience) and all(waited.get(key, 0) >= k for key, k in run.label_patience.items())
