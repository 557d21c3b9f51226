"""What an evaluation writes: metrics.json, tables, figures and a readable report."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fieldflows.errors import InputError
from fieldflows.training.figures import parity
from fieldflows.training.metrics import ALL_QUANTITIES, collect

if TYPE_CHECKING:
    from fieldflows.evaluation.run import Evaluation

METRICS_NAME = "metrics.json"


def write_report(result: Evaluation, directory: Path, figures: bool = True) -> None:
    """Write the report of an evaluation into a folder, which is made if needed.

    Raises:
        InputError: If the folder cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result.document.to_json_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(directory / METRICS_NAME, text)
        if figures:
            draw_parity(result, directory)
    except OSError as error:
        raise InputError(f"Cannot write to {directory}: {error.strerror}.", "Choose another folder (--out).") from error


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def draw_parity(result: Evaluation, directory: Path) -> None:
    """Draw predictions against labels for every quantity."""
    splits = list(result.document.subsets)
    found = {split: collect(*result.predicted.subset(split), ALL_QUANTITIES) for split in splits}
    for quantity in ALL_QUANTITIES:
        series = {split: found[split][quantity.name][1:] for split in splits if quantity.name in found[split]}
        if series:
            parity(series, quantity.symbol, quantity.unit, directory / f"parity_{quantity.name}.png")
