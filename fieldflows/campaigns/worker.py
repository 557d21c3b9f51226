"""A worker process of the local engine: reads orders from standard input, reports to standard output, one JSON a line.

It ends when its input ends: after the batch that it is computing, if need be.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import warnings
from queue import Queue
from typing import IO, Any

from fieldflows.campaigns.chunk import Policy
from fieldflows.campaigns.engines.local import run_chunk_here
from fieldflows.campaigns.stages import StageSpec
from fieldflows.errors import FieldflowsError, ModelError, StoreError


def main() -> None:
    """Work until the input ends."""
    from fieldflows.store import get_store

    warnings.simplefilter("ignore", FutureWarning)  # of libraries, at every job
    reports = _own_output()
    orders: Queue[dict[str, Any] | None] = Queue()
    ended = threading.Event()
    threading.Thread(target=_read, args=(orders, ended), daemon=True).start()
    store = None
    while (order := orders.get()) is not None and not ended.is_set():
        number = order["number"]

        def report(stage: str, done: int, failed: int) -> None:
            _say(reports, {"event": "batch", "stage": stage, "done": done, "failed": failed})

        policy = Policy(retry_failed=order["retry_failed"], should_stop=ended.is_set, report=report)
        try:
            store = store or get_store()
            specs = [StageSpec.from_dict(spec) for spec in order["stages"]]
            output = run_chunk_here(store, order["campaign"], number, specs, policy)
        except FieldflowsError as error:
            for_all = isinstance(error, ModelError | StoreError)
            _say(reports, {"event": "error", "number": number, "message": str(error), "for_all": for_all})
            continue
        _say(reports, {"event": "chunk", "number": number, "complete": output["complete"], "reason": output["reason"]})


def _own_output() -> IO[str]:
    """Return the pipe to the driver, and lead everything else that is printed to standard error."""
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


def _read(orders: Queue[dict[str, Any] | None], ended: threading.Event) -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    ended.set()
    orders.put(None)


def _say(reports: IO[str], event: dict[str, Any]) -> None:
    try:
        reports.write(json.dumps(event) + "\n")
        reports.flush()
    except OSError:  # the driver has gone; the end of the input is next
        return


if __name__ == "__main__":
    main()
