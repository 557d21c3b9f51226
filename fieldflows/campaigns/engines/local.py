"""The local engine: chunks one after the other in this process, or on several processes of this machine.

The processes are told chunk by chunk what to do and report batch by batch.  One that dies is replaced, and its chunk is
handed out again: it goes on from its journal and the store.  When the driver dies, the processes notice that nobody
speaks to them any more, finish their batch and end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from fieldflows.campaigns.chunk import Policy
from fieldflows.campaigns.job import BUSY, Work, chunk_job, working
from fieldflows.campaigns.journal import journal_folder
from fieldflows.campaigns.records import Chunks, chunk_name
from fieldflows.campaigns.stages import StageSpec
from fieldflows.errors import FieldflowsError
from fieldflows.store.claims import Claims
from fieldflows.training.signals import stop_signals

if TYPE_CHECKING:
    from jobflow import JobStore

BUSY_PAUSE_S = 0.5
"""How long to wait before asking again for a chunk that somebody else has."""

MOST_FRUITLESS = 12
"""After so many worker processes in a row that died without a finished batch, the driver gives up."""

MOST_ERRORS = 3
"""After so many errors that are not of a single crystal, a chunk is left for a later run."""

_LOGGER = logging.getLogger(__name__)

BatchReport = Callable[[str, int, int], None]


@dataclass
class LocalOutcome:
    """What a local run did.

    Attributes:
        complete: Chunks that were gone through.
        left: Chunks that were not, with the reason.
        stopped: Whether the run was stopped.
        deaths: Worker processes that died.
    """

    complete: list[int] = field(default_factory=list)
    left: dict[int, str] = field(default_factory=dict)
    stopped: bool = False
    deaths: int = 0


def run_chunk_here(
    store: JobStore, campaign: str, number: int, specs: Sequence[StageSpec], policy: Policy
) -> dict[str, Any]:
    """Run the job of one chunk in this process, with its output in the store; return the output's facts.

    Args:
        store: The store.
        campaign: Name of the campaign.
        number: Number of the chunk.
        specs: The stages.
        policy: What is done again, and when to stop.

    Raises:
        FieldflowsError: If the chunk as a whole cannot be worked on.
    """
    from jobflow import run_locally

    if Claims.of(store).holder(chunk_name(campaign, number)) is not None:
        return {"complete": False, "reason": BUSY, "stages": []}
    items = Chunks.of(store).items(campaign, number)
    made = chunk_job(Work(campaign, number, items, [list(specs)], policy.retry_failed))
    with working(policy):
        responses = run_locally(made, log=False, store=store, ensure_success=True, raise_immediately=True)
    output = responses[made.uuid][made.index].output
    return {"complete": output.complete, "reason": output.reason, "stages": [s.to_json_dict() for s in output.stages]}


def run_serially(
    store: JobStore, campaign: str, numbers: Sequence[int], specs: Sequence[StageSpec], policy: Policy
) -> LocalOutcome:
    """Run chunks one after the other in this process; Ctrl-C stops after the batch.

    Args:
        store: The store.
        campaign: Name of the campaign.
        numbers: Numbers of the chunks.
        specs: The stages.
        policy: What is done again, and when to stop.
    """
    outcome = LocalOutcome()
    todo, errors = deque(numbers), dict.fromkeys(numbers, 0)
    stop = threading.Event()
    asked = policy.should_stop
    policy.should_stop = lambda: stop.is_set() or asked()

    def request() -> bool:
        first = not stop.is_set()
        stop.set()
        return first

    with stop_signals(request):
        while todo and not policy.should_stop():
            number = todo.popleft()
            try:
                output = run_chunk_here(store, campaign, number, specs, policy)
            except FieldflowsError as error:
                errors[number] += 1
                outcome.left[number] = str(error)
                if errors[number] < MOST_ERRORS and not _is_for_all(error):
                    todo.append(number)
                elif _is_for_all(error):
                    outcome.left |= dict.fromkeys(todo, str(error))
                    return outcome
                continue
            if output["complete"]:
                outcome.complete.append(number)
                outcome.left.pop(number, None)
            elif output["reason"] == BUSY:
                todo.append(number)
                stop.wait(BUSY_PAUSE_S)
            else:
                outcome.left[number] = str(output["reason"])
    outcome.stopped = policy.should_stop()
    outcome.left |= dict.fromkeys(todo, "the run was stopped")
    return outcome


def _is_for_all(error: FieldflowsError) -> bool:
    """Return whether an error would meet every other chunk too."""
    from fieldflows.errors import ModelError, StoreError

    return isinstance(error, ModelError | StoreError)


@dataclass
class _Worker:
    """A worker process and what it is doing."""

    process: subprocess.Popen[bytes]
    number: int | None = None
    fruitful: bool = False


class Driver:
    """Hands chunks to worker processes until all are done.

    Args:
        store_spec: What the processes are told in ``FIELDFLOWS_STORE``; None to leave their environment as it is.
        campaign: Name of the campaign.
        specs: The stages.
        workers: Number of processes.
        retry_failed: Try all that failed before again.
        report: Called with (stage, results, failures) after each batch of any process.
    """

    def __init__(
        self,
        store_spec: str | None,
        campaign: str,
        specs: Sequence[StageSpec],
        workers: int,
        retry_failed: bool = False,
        report: BatchReport | None = None,
    ) -> None:
        self._environment = dict(os.environ)
        if store_spec is not None:
            self._environment["FIELDFLOWS_STORE"] = store_spec
        threads = str(max((os.cpu_count() or 1) // workers, 1))
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            self._environment.setdefault(name, threads)
        self.campaign, self.specs, self.count = campaign, list(specs), workers
        self.retry_failed, self._report = retry_failed, report or (lambda stage, done, failed: None)
        self._events: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
        self._workers: list[_Worker] = []
        self._stop = threading.Event()
        self._log = journal_folder() / campaign / "workers.log"

    def run(self, numbers: Sequence[int]) -> LocalOutcome:
        """Run chunks; Ctrl-C and SIGTERM let the processes finish their batch and end.

        Args:
            numbers: Numbers of the chunks.

        Raises:
            EvaluationError: If worker processes die again and again without finishing anything.
        """
        outcome = LocalOutcome()
        todo, errors = deque(numbers), dict.fromkeys(numbers, 0)
        fruitless = 0
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with stop_signals(self._request), self._log.open("ab") as log:
            try:
                while True:
                    self._staff(todo, log)
                    if not self._workers:
                        break
                    try:
                        worker, event = self._events.get(timeout=0.2)
                    except queue.Empty:
                        continue
                    if event is None:
                        fruitless = 0 if worker.fruitful else fruitless + 1
                        self._buried(worker, todo, outcome, log)
                        if fruitless >= MOST_FRUITLESS:
                            raise self._given_up()
                        continue
                    fruitless = 0 if event["event"] != "error" else fruitless
                    self._heard(worker, event, todo, errors, outcome)
            finally:
                self._dismiss()
        outcome.stopped = self._stop.is_set()
        outcome.left |= dict.fromkeys(todo, "the run was stopped")
        return outcome

    def _request(self) -> bool:
        first = not self._stop.is_set()
        self._stop.set()
        return first

    def _staff(self, todo: deque[int], log: IO[bytes]) -> None:
        """Give every idle process a chunk, start processes while there is work for them, and end those without."""
        for worker in list(self._workers):
            if worker.number is None and (self._stop.is_set() or not todo):
                self._end(worker)
            elif worker.number is None:
                self._give(worker, todo.popleft())
            elif self._stop.is_set():
                self._end(worker)
        while todo and not self._stop.is_set() and len(self._workers) < self.count:
            self._give(self._hire(log), todo.popleft())

    def _hire(self, log: IO[bytes]) -> _Worker:
        process = subprocess.Popen(
            [sys.executable, "-m", "fieldflows.campaigns.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=self._environment,
            start_new_session=True,  # Ctrl-C reaches the driver, which tells the processes
        )
        worker = _Worker(process)
        self._workers.append(worker)
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        return worker

    def _listen(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in worker.process.stdout:
                with contextlib.suppress(ValueError):
                    self._events.put((worker, json.loads(line)))
        worker.process.wait()
        self._events.put((worker, None))

    def _give(self, worker: _Worker, number: int) -> None:
        worker.number = number
        order = {
            "campaign": self.campaign,
            "number": number,
            "stages": [spec.to_dict() for spec in self.specs],
            "retry_failed": self.retry_failed,
        }
        assert worker.process.stdin is not None
        with contextlib.suppress(OSError):  # it has died; its end is on its way
            worker.process.stdin.write(json.dumps(order).encode() + b"\n")
            worker.process.stdin.flush()

    def _end(self, worker: _Worker) -> None:
        """Say nothing more to a process: it finishes its batch and ends."""
        assert worker.process.stdin is not None
        with contextlib.suppress(OSError):
            worker.process.stdin.close()

    def _heard(
        self, worker: _Worker, event: dict[str, Any], todo: deque[int], errors: dict[int, int], outcome: LocalOutcome
    ) -> None:
        if event["event"] == "batch":
            worker.fruitful = True
            self._report(event["stage"], event["done"], event["failed"])
            return
        number = int(event["number"])
        worker.number = None
        if event["event"] == "error":
            errors[number] += 1
            outcome.left[number] = event["message"]
            if errors[number] < MOST_ERRORS and not event["for_all"]:
                todo.append(number)
            elif event["for_all"]:
                self._stop.set()
                outcome.left |= dict.fromkeys(todo, event["message"])
                todo.clear()
            return
        worker.fruitful = True
        if event["complete"]:
            outcome.complete.append(number)
            outcome.left.pop(number, None)
        elif event["reason"] == BUSY and not self._stop.is_set():
            todo.append(number)
            time.sleep(BUSY_PAUSE_S / max(len(self._workers), 1))
        else:
            outcome.left[number] = str(event["reason"])

    def _buried(self, worker: _Worker, todo: deque[int], outcome: LocalOutcome, log: IO[bytes]) -> None:
        """Take note that a process has ended; what it was doing is handed out again."""
        self._workers.remove(worker)
        if worker.number is None:
            return
        if self._stop.is_set():
            outcome.left.setdefault(worker.number, "the run was stopped")
            return
        outcome.deaths += 1
        code = worker.process.returncode
        _LOGGER.warning("A worker process ended with status %s; chunk %d goes on in another.", code, worker.number)
        todo.appendleft(worker.number)

    def _given_up(self) -> FieldflowsError:
        from fieldflows.errors import EvaluationError

        return EvaluationError(
            f"{MOST_FRUITLESS} worker processes in a row died without finishing anything.",
            f"Their last words are in {self._log}.",
        )

    def _dismiss(self) -> None:
        """End all processes that are left: gently, and after a while not."""
        for worker in self._workers:
            self._end(worker)
        for worker in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(30.0)
            if worker.process.poll() is None:
                worker.process.kill()
