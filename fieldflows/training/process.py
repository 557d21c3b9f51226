"""The process around a run: its directory and its threads."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fieldflows.errors import TrainingError

LOCK_NAME = "run.lock"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep two runs out of one directory; the lock goes with the process, however it ends."""
    with (directory / LOCK_NAME).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TrainingError(
                f"Another process is training in {directory}.", "Wait for it, or choose another --out."
            ) from error
        yield


@contextmanager
def threads_set_to(count: int | None) -> Iterator[None]:
    """Set the number of threads of torch inside the block."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
