"""What a run tells while it goes on, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from fieldflows.training.setup import Setup
    from fieldflows.training.state import TrainingState

Status = Literal["epochs", "time", "patience", "interrupted"]


class Reporter:
    """What a run tells while it goes on.  This one keeps silent; front ends override what they show."""

    def start(self, setup: Setup, state: TrainingState, steps_per_epoch: int, epochs: int) -> None:
        """The first step is about to be made."""

    def step(self, state: TrainingState, loss: float, learning_rate: float) -> None:
        """A step was made."""

    def evaluation(self, record: dict[str, Any], text: str) -> None:
        """The validation frames were evaluated; ``text`` holds the errors in physical units."""

    def message(self, text: str) -> None:
        """Anything else that the user should know."""


@dataclass
class TrainingResult:
    """What came out of a run.

    Attributes:
        status: Why it ended: all epochs, the time limit, no more improvement, or a request to stop.
        directory: The run directory.
        checkpoint: The model; the best on the validation frames.
        sha256: Hash of that file.
        best: Score and epoch of that model.
        history: One record per evaluation.
        metrics: Split to quantity to errors; empty if the run was interrupted.
        baselines: The same of the trivial predictor.
        seconds: Wall time of training, summed over resumed runs.
        steps: Optimizer steps.
        epochs: Complete epochs.
    """

    status: Status
    directory: Path
    checkpoint: Path | None
    sha256: str | None
    best: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    baselines: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    steps: int = 0
    epochs: int = 0
