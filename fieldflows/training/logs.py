"""What a run writes down while it goes on: every step as JSON, every evaluation as a line with units, TensorBoard."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fieldflows.errors import SettingsError, TrainingError
from fieldflows.training.metrics import QUANTITIES, Quantity

LOG_NAME = "log.jsonl"
TABLE_NAME = "training.log"
TENSORBOARD_NAME = "tensorboard"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write inside the block into an error that says what is kept.

    Raises:
        TrainingError: If the disk is full, or the file cannot be written for another reason.
    """
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"Cannot write {path}: {error.strerror}.",
            "Free disk space or permissions, then run the same command again: it goes on from the last state.",
        ) from error


class RunLog:
    """The logs of a run directory.

    Args:
        directory: The run directory.
        labels: Observables that are trained on.
        active: Whether anything is written; false on all processes but one.
        tensorboard: Whether scalars are written for TensorBoard, too.

    Raises:
        SettingsError: If TensorBoard is wanted, but not installed.
    """

    def __init__(self, directory: Path, labels: Sequence[str], active: bool = True, tensorboard: bool = False) -> None:
        self.path, self.table = directory / LOG_NAME, directory / TABLE_NAME
        self.active = active
        self.columns = [quantity for quantity in QUANTITIES if quantity.observable in labels]
        self.folder = directory / TENSORBOARD_NAME
        self.writer: Any = None
        self.tensorboard = tensorboard
        if tensorboard:
            summary_writer()

    @property
    def size(self) -> int:
        """Length of log.jsonl in bytes."""
        return self.path.stat().st_size if self.active and self.path.exists() else 0

    def begin(self, step: int, log_bytes: int, history: Sequence[Mapping[str, Any]]) -> None:
        """Bring the logs to the state of a run: what was written after it is dropped.

        Args:
            step: Steps so far; 0 starts anew.
            log_bytes: Length of log.jsonl.
            history: Records of the evaluations so far.
        """
        if not self.active:
            return
        with writing(self.path):
            if step == 0:
                self.path.unlink(missing_ok=True)
            elif self.path.exists() and self.path.stat().st_size > log_bytes:
                os.truncate(self.path, log_bytes)
        with writing(self.table):
            self.table.write_text("\n".join([*self._header(), *map(self._row, history), ""]), encoding="utf-8")
        if self.tensorboard:
            with writing(self.folder):
                self.writer = summary_writer()(str(self.folder), purge_step=step + 1 if step else None)

    def event(self, event: str, **values: Any) -> None:
        """Append a line to log.jsonl."""
        if not self.active:
            return
        with writing(self.path), self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"event": event, **values}) + "\n")

    def step(self, step: int, epoch: int, loss: float, rate: float, gradient_norm: float) -> None:
        """Log a step."""
        self.event("step", step=step, epoch=epoch, loss=loss, rate=rate, gradient_norm=gradient_norm)
        if self.writer is not None:
            scalars = {"loss/train step": loss, "learning rate": rate, "gradient norm": gradient_norm}
            self._scalars(scalars, step)

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """Log an evaluation."""
        if not self.active:
            return
        self.event("evaluation", **record)
        with writing(self.table), self.table.open("a", encoding="utf-8") as handle:
            handle.write(self._row(record) + "\n")
        if self.writer is not None:
            self._scalars(tensorboard_scalars(record), record["step"])

    def remark(self, text: str) -> None:
        """Append a remark to the table."""
        if self.active:
            with writing(self.table), self.table.open("a", encoding="utf-8") as handle:
                handle.write(f"# {text}\n")

    def close(self) -> None:
        """Close what is open."""
        if self.writer is not None:
            with writing(self.folder):
                self.writer.close()
            self.writer = None

    def _scalars(self, scalars: Mapping[str, float], step: int) -> None:
        with writing(self.folder):
            for tag, value in scalars.items():
                self.writer.add_scalar(tag, value, step)
            self.writer.flush()

    def _header(self) -> list[str]:
        """Return names and units of the columns of the table."""
        names = ["epoch", "step", "time", "rate", "train", "valid", *(quantity.symbol for quantity in self.columns)]
        units = ["", "", "min", "", "loss", "loss", *(quantity.unit for quantity in self.columns)]
        return [
            "# losses without unit; errors are mean absolute errors on the validation frames, in the units given",
            "# " + _line(names, self.columns)[2:],
            "# " + _line(units, self.columns)[2:],
        ]

    def _row(self, record: Mapping[str, Any]) -> str:
        """Return the line of an evaluation."""
        losses = (record["train"].get("loss"), record["valid"].get("loss"))
        cells = [f"{record['epoch']:g}", str(record["step"]), f"{record['seconds'] / 60:.2f}"]
        cells += [f"{record['learning_rate']:.2e}", *("-" if loss is None else f"{loss:.4g}" for loss in losses)]
        for quantity in self.columns:
            found = record["metrics"].get(quantity.name)
            cells.append("-" if found is None else f"{found['mae']:.4g}")
        return _line(cells, self.columns)


def _line(cells: Sequence[str], columns: Sequence[Quantity]) -> str:
    widths = [8, 9, 9, 10, 11, 11, *(max(len(quantity.symbol), 9) + 2 for quantity in columns)]
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def tensorboard_scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Return what TensorBoard shows of an evaluation: tag, with the unit, to number."""
    scalars = {"epoch": record["epoch"], "score": record["score"]}
    for split in ("train", "valid"):
        scalars |= {f"loss/{split}" + ("" if key == "loss" else f" {key}"): v for key, v in record[split].items()}
    for quantity in QUANTITIES:
        found = record["metrics"].get(quantity.name)
        if found is not None:
            unit = "" if quantity.unit == "1" else f" ({quantity.unit})"
            scalars[f"validation MAE/{quantity.symbol}{unit}"] = found["mae"]
            scalars[f"validation RMSE/{quantity.symbol}{unit}"] = found["rmse"]
    return scalars


def summary_writer() -> Any:
    """Return the class that writes for TensorBoard.

    Raises:
        SettingsError: If TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SettingsError(
            f"run.tensorboard is set, but TensorBoard is not installed ({error}).",
            "Install it with `pip install 'fieldflows[tensorboard]'`, or leave run.tensorboard out.",
        ) from None
    return SummaryWriter
