"""Signals that ask a process to stop, turned into requests that it can follow when it is ready."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


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
