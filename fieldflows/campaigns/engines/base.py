"""What a campaign asks of an engine: take jobs, say how they stand, cancel, find lost ones, run failed ones again."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fieldflows.errors import SettingsError, suggestion

if TYPE_CHECKING:
    from jobflow import Flow, Job

STATES = ("waiting", "ready", "running", "done", "failed", "canceled", "missing")
"""Words for the state of a job in any engine; ``missing`` are those that the engine does not know (any more)."""

RESOURCES = ("gpu", "cpu")
"""Words for what a job needs, in ``metadata["worker"]``."""

SERVER_TIMEOUT_S = 5.0
"""How long to look for the server of an engine before giving up."""


class Engine(Protocol):
    """An engine that runs the chunk jobs of a campaign somewhere.

    Nothing of a campaign depends on what an engine remembers: results are keyed by content, so whatever is submitted
    or run twice is stored once.
    """

    def manager_config(self, word: str, priority: int = 0) -> dict[str, Any]:
        """Return what jobflow passes on to this engine for a job that a running job adds.

        Args:
            word: "gpu" or "cpu".
            priority: Jobs of a higher priority start first.
        """

    def submit(
        self, jobs: Sequence[Job], *, name: str, metadata: Mapping[str, Any], summary: Job | None = None
    ) -> list[str]:
        """Hand jobs over and return their identifiers, in order, that of the summary last.

        Args:
            jobs: Self-contained jobs; ``metadata["campaign"]`` and ``metadata["worker"]`` of each are set.
            name: Of the workflows.
            metadata: Of the workflows.
            summary: A job that runs after all the others, whether or not they fail.
        """

    def states(self, ids: Sequence[str]) -> dict[str, int]:
        """Return how many of the jobs are in each of :data:`STATES`."""

    def cancel(self, ids: Sequence[str]) -> int:
        """Stop those of the jobs that are not over, and return how many these were."""

    def lost(self, ids: Sequence[str], *, rerun: bool = False) -> list[str]:
        """Return those of the jobs whose worker died, after making them ready again on request."""

    def rerun(self, ids: Sequence[str]) -> int:
        """Make those of the jobs that failed ready again, and return how many these were."""


@dataclass(frozen=True)
class Placement:
    """Where one job goes.

    Attributes:
        worker: Name of a worker or category of workers, as the engine calls it.
        priority: Jobs of a higher priority start first.
    """

    worker: str
    priority: int = 0


@dataclass(frozen=True)
class Portion:
    """The jobs of one workflow.

    Attributes:
        jobs: The jobs.
        summary: The job after them.
    """

    jobs: tuple[Job, ...]
    summary: Job | None = None

    def all(self) -> tuple[Job, ...]:
        """Return the jobs, the summary last."""
        return self.jobs if self.summary is None else (*self.jobs, self.summary)

    def without(self, known: Container[str]) -> Portion:
        """Return the portion without the jobs of these uuids."""
        summary = None if self.summary is None or self.summary.uuid in known else self.summary
        return Portion(tuple(job for job in self.jobs if job.uuid not in known), summary)

    def flow(self, name: str, metadata: Mapping[str, Any]) -> Flow:
        """Return the flow of these jobs, in which the summary waits for all the others, even failed ones."""
        from jobflow import Flow, JobOrder, OnMissing

        if self.summary is not None:
            self.summary.config.on_missing_references = OnMissing.NONE
        if self.summary is None or not self.jobs:
            return Flow(list(self.all()), name=name, metadata=dict(metadata))
        parts = [Flow(list(self.jobs), name=name), self.summary]
        return Flow(parts, name=name, order=JobOrder.LINEAR, metadata=dict(metadata))


def portions(jobs: Sequence[Job], summary: Job | None, width: int) -> Iterator[Portion]:
    """Yield the jobs in workflows of at most ``width`` jobs.

    Raises:
        SettingsError: If there is a summary, which must be in one workflow with all its jobs, and they are too many.
    """
    if summary is None:
        for start in range(0, len(jobs), width):
            yield Portion(tuple(jobs[start : start + width]))
        return
    if len(jobs) >= width:
        raise SettingsError(
            f"A summary after {len(jobs)} jobs does not fit into one workflow of at most {width}.",
            "Submit without a summary, or make the chunks larger.",
        )
    yield Portion(tuple(jobs), summary)


def placements(jobs: Iterable[Job], workers: Mapping[str, str]) -> dict[str, Placement]:
    """Return where each job goes, by its uuid.

    Args:
        jobs: Jobs with ``campaign``, ``worker`` and perhaps ``priority`` in their metadata.
        workers: Names of workers by resource word.

    Raises:
        SettingsError: If a job has no campaign, or asks for a resource that no worker is named for.
    """
    found = {}
    for job in jobs:
        if not job.metadata.get("campaign"):
            raise SettingsError(f"The job {job.name!r} does not say which campaign it belongs to.")
        word = job.metadata.get("worker")
        if word not in workers:
            raise SettingsError(
                f"The job {job.name!r} asks for the worker {word!r}, for which no worker is named.",
                suggestion(str(word), workers),
            )
        found[job.uuid] = Placement(workers[word], int(job.metadata.get("priority", 0)))
    return found


@contextlib.contextmanager
def without_order() -> Iterator[None]:
    """Keep jobflow from warning that jobs that do not depend on each other have no order."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some jobs are not connected")
        yield


def counted(words: Iterable[str], asked: int) -> dict[str, int]:
    """Return the number of each of :data:`STATES`; what is not among the words is missing.

    Args:
        words: The states that were found.
        asked: Number of the jobs.
    """
    count = Counter(words)
    count["missing"] += asked - count.total()
    return {state: count[state] for state in STATES}


def first_line(error: BaseException) -> str:
    """Return kind and first line of an error without the passwords of addresses, for messages of one line."""
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    text = without_passwords(text).split(", Timeout:")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def without_passwords(text: str) -> str:
    """Return the first 200 characters of a text, without user names and passwords of addresses.

    Example:
        >>> without_passwords("mongodb://me:secret@db.example.org/x is away")
        'mongodb://db.example.org/x is away'
    """
    return re.sub(r"//[^\s/]*@", "//", text.strip())[:200]
