"""The progress of a run on a terminal: a bar with the time left, a line per evaluation."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fieldflows.training.result import Reporter

if TYPE_CHECKING:
    from fieldflows.training.setup import Setup
    from fieldflows.training.state import TrainingState


class ProgressBar(Reporter):
    """Shows epoch, steps, elapsed and remaining time, loss, learning rate, and the errors of the last evaluation.

    Args:
        console: Where to show it.
        max_minutes: Limit of the wall time in min; None for no limit.
    """

    def __init__(self, console: Console, max_minutes: float | None = None) -> None:
        self.console = console
        self.limit = None if max_minutes is None else 60 * max_minutes
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[times]}"),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self.task: Any = None
        self.per_epoch, self.total = 1, 1
        self.errors = ""
        self._began, self._first, self._before = 0.0, 0, 0.0

    def start(self, setup: Setup, state: TrainingState, steps_per_epoch: int, epochs: int) -> None:
        """Say what is trained, and show the bar."""
        sizes = ", ".join(f"{split} {len(frames)}" for split, frames in setup.frames.items())
        weights = sum(p.numel() for p in setup.parameters.values())
        self.console.print(f"Frames: {sizes}. Labels: {', '.join(setup.labels)}. Parameters: {weights:,}.")
        self.per_epoch, self.total = steps_per_epoch, steps_per_epoch * epochs
        self._first = state.epoch * steps_per_epoch + state.batch
        self._began, self._before = time.monotonic(), state.seconds
        self.task = self.progress.add_task(
            f"epoch {state.epoch + 1}", total=self.total, completed=self._first, note="", times=""
        )
        self.progress.start()

    def step(self, state: TrainingState, loss: float, learning_rate: float) -> None:
        """Move the bar."""
        done = state.epoch * self.per_epoch + state.batch
        now = time.monotonic() - self._began
        left = remaining(now, done - self._first, self.total - done, self.limit, self._before)
        note = f"loss {loss:.4g}, rate {learning_rate:.2g}"
        self.progress.update(
            self.task,
            completed=done,
            description=f"epoch {state.epoch + 1}",
            times=f"{clock(self._before + now)}, left {clock(left)}",
            note=f"{note}; {self.errors}" if self.errors else note,
        )

    def evaluation(self, record: dict[str, Any], text: str) -> None:
        """Print the errors, and keep them beside the bar."""
        self.errors = text
        self.console.print(
            f"epoch {record['epoch']:g}: loss {record['train'].get('loss', float('nan')):.4g} (train), "
            f"{record['score']:.4g} (valid); MAE {text or 'without validation frames'}",
            highlight=False,
        )

    def message(self, text: str) -> None:
        """Print a message."""
        self.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        """Take the bar away."""
        self.progress.stop()


def remaining(elapsed: float, done: int, to_do: int, limit: float | None, before: float) -> float:
    """Return the time left in s: by the mean time of a step, evaluations included, and by the limit.

    Args:
        elapsed: Time of this process in s.
        done: Steps that it has made.
        to_do: Steps that are left.
        limit: Limit of the wall time of the whole run in s, or None.
        before: Wall time of earlier processes in s.
    """
    by_steps = elapsed / max(done, 1) * max(to_do, 0)
    return by_steps if limit is None else min(by_steps, max(limit - before - elapsed, 0.0))


def clock(seconds: float) -> str:
    """Return a time in hours, minutes and seconds.

    Example:
        >>> clock(3725.4)
        '1:02:05'
    """
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
