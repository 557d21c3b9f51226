"""The process around a run: its directory, its threads, its signals."""

from __future__ import annotations

import fcntl
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


@contextmanager
def stop_signals(request: Callable[[], bool], insist: bool = True) -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C into requests to stop, inside the block and in the main thread only.

    Args:
        request: Called at each signal; returns whether it is the first request.
        insist: Whether a second Ctrl-C is a ``KeyboardInterrupt`` as usual.  Not for one of several processes, which
            may get the signal from the terminal and again from what has started it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: object) -> None:
        if not request() and number == signal.SIGINT and insist:
            raise KeyboardInterrupt

    before: dict[int, Any] = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
