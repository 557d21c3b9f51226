"""jobflow-remote: a runner carries chunk jobs to workers and their outputs back; workers need no database."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fieldflows.campaigns.engines.base import (
    Placement,
    Portion,
    counted,
    first_line,
    placements,
    portions,
    without_order,
)
from fieldflows.campaigns.engines.project import check_project, find_project, open_controller
from fieldflows.errors import SettingsError, StoreError

if TYPE_CHECKING:
    from jobflow import Job
    from jobflow_remote.config.base import Project
    from jobflow_remote.jobs.jobcontroller import JobController

WIDTH = 1000
"""Jobs per flow."""

LOCK_WAIT_S = 60
"""How long to wait for a job or flow that the runner has locked."""

KILLED = ("likely killed", "was not present in the download folder")
"""What jobflow-remote says of a job that ended without a result and without an error, or before it could start."""

_WORDS = {
    "WAITING": "waiting",
    "PAUSED": "waiting",
    "READY": "ready",
    "CHECKED_OUT": "ready",
    "UPLOADED": "ready",
    "SUBMITTED": "ready",
    "BATCH_SUBMITTED": "ready",
    "RUNNING": "running",
    "BATCH_RUNNING": "running",
    "RUN_FINISHED": "running",
    "DOWNLOADED": "running",
    "COMPLETED": "done",
    "FAILED": "failed",
    "REMOTE_ERROR": "failed",
    "STOPPED": "canceled",
    "USER_STOPPED": "canceled",
}
_BEFORE = ("WAITING", "PAUSED")
_OPEN = tuple(state for state, word in _WORDS.items() if word in ("ready", "running"))


@dataclass(frozen=True)
class RemoteEngine:
    """The engine that adds chunk jobs to the queue of a project of jobflow-remote.

    Identifiers of jobs are their uuids, which stay the same when a job is run again.

    Attributes:
        project: Name of the project; by default the one that ``JFREMOTE_PROJECT`` or jobflow-remote's own
            configuration selects.
        workers: Names of workers of the project, by resource word.
        exec_config: Name of an ``exec_config`` of the project.
        resources: What to ask of the scheduler, in place of what the worker asks for.
        width: Largest number of jobs in a flow.

    Example:
        >>> RemoteEngine("screening", workers={"gpu": "a100", "cpu": "milan"}).workers["cpu"]
        'milan'
    """

    project: str | None = None
    workers: Mapping[str, str] = field(default_factory=lambda: {"gpu": "gpu_worker", "cpu": "cpu_worker"})
    exec_config: str | None = None
    resources: Mapping[str, Any] | None = None
    width: int = WIDTH

    def manager_config(self, word: str, priority: int = 0) -> dict[str, Any]:
        """Return what sends a job, added by another one, to its worker."""
        return {"worker": self.workers[word], "priority": priority}

    def submit(
        self, jobs: Sequence[Job], *, name: str, metadata: Mapping[str, Any], summary: Job | None = None
    ) -> list[str]:
        """Add the jobs to the queue in flows of at most ``width``, and return their uuids.

        Jobs that the queue holds already are not added again: a submission that was cut off is completed by
        repeating it.

        Args:
            jobs: Self-contained jobs; ``metadata["campaign"]`` and ``metadata["worker"]`` of each are set.
            name: Of the flows.
            metadata: Of the flows.
            summary: A job that runs after all the others, whether or not they fail.

        Raises:
            SettingsError: If the project is not configured for these jobs, or a job does not fit.
            StoreError: If a database does not answer, or refuses.
        """
        everything = [*jobs, *([] if summary is None else [summary])]
        places = placements(everything, self.workers)
        parts = list(portions(jobs, summary, self.width))
        project = find_project(self.project)
        check_project(project, {place.worker for place in places.values()}, self.exec_config, everything)
        with self._controller(project) as controller:
            known = {row["uuid"] for row in _rows(controller, list(places))}
            for part in parts:
                rest = part.without(known)
                if rest.all():
                    self._add(controller, rest, name, metadata, places)
        return [job.uuid for job in everything]

    def states(self, ids: Sequence[str]) -> dict[str, int]:
        """Return how many of the jobs are in each of :data:`fieldflows.campaigns.engines.base.STATES`.

        Raises:
            SettingsError: If the project is not configured.
            StoreError: If its database does not answer, or refuses.
        """
        with self._controller() as controller:
            return counted((_WORDS[row["state"]] for row in _rows(controller, ids)), len(set(ids)))

    def cancel(self, ids: Sequence[str]) -> int:
        """Stop the jobs that are not over, and return how many these were.

        Jobs in the queue of a scheduler are canceled there.  What a local worker or a batch runs at the moment may go
        on to its end; its output is not fetched.

        Raises:
            SettingsError: If the project is not configured.
            StoreError: If its database does not answer, refuses, or the runner keeps a job locked.
        """
        from jobflow_remote.jobs.state import JobState

        with self._controller() as controller:
            rows = _rows(controller, ids)
            before = [row["db_id"] for row in rows if row["state"] in _BEFORE]
            started = [row["db_id"] for row in rows if row["state"] in _OPEN]
            for number in before:
                controller.set_job_state(JobState.USER_STOPPED, db_id=number, wait=LOCK_WAIT_S)
            for number in started:
                # a job that is over in the meantime refuses, and is none of those that were stopped
                with contextlib.suppress(ValueError):
                    controller.stop_job(db_id=number, wait=LOCK_WAIT_S)
            chosen = [row["uuid"] for row in rows if row["db_id"] in (*before, *started)]
            return sum(_WORDS[row["state"]] == "canceled" for row in _rows(controller, chosen))

    def lost(self, ids: Sequence[str], *, rerun: bool = False) -> list[str]:
        """Return the failed jobs that were killed, by their uuid; the runner notices that by itself.

        Args:
            ids: Uuids of jobs.
            rerun: Make them ready again.

        Raises:
            SettingsError: If the project is not configured.
            StoreError: If its database does not answer, refuses, or the runner keeps a job locked.
        """
        with self._controller() as controller:
            rows = [row for row in _rows(controller, ids) if _WORDS[row["state"]] == "failed" and _was_killed(row)]
            for row in rows if rerun else ():
                controller.rerun_job(db_id=row["db_id"], wait=LOCK_WAIT_S)
            return [row["uuid"] for row in rows]

    def rerun(self, ids: Sequence[str]) -> int:
        """Make the failed jobs ready again, and return how many these were.

        What failed on the way to or from a worker is taken up at that step.

        Raises:
            SettingsError: If the project is not configured.
            StoreError: If its database does not answer, refuses, or the runner keeps a job locked.
        """
        with self._controller() as controller:
            rows = [row for row in _rows(controller, ids) if _WORDS[row["state"]] == "failed"]
            for row in rows:
                again = controller.rerun_job if row["state"] == "FAILED" else controller.retry_job
                again(db_id=row["db_id"], wait=LOCK_WAIT_S)
            return len(rows)

    def _add(
        self,
        controller: JobController,
        part: Portion,
        name: str,
        metadata: Mapping[str, Any],
        places: Mapping[str, Placement],
    ) -> None:
        for job in part.all():
            job.config.manager_config = {
                **job.config.manager_config,
                "worker": places[job.uuid].worker,
                "priority": places[job.uuid].priority,
            }
        with without_order():
            controller.add_flow(
                part.flow(name, metadata),
                worker=places[part.all()[0].uuid].worker,
                exec_config=self.exec_config,  # type: ignore[arg-type]  # a name does as well
                resources=None if self.resources is None else dict(self.resources),
                allow_external_references=True,
            )

    @contextlib.contextmanager
    def _controller(self, project: Project | None = None) -> Iterator[JobController]:
        chosen = find_project(self.project) if project is None else project
        controller = open_controller(chosen)
        from jobflow_remote.utils.db import LockedDocumentError
        from pymongo.errors import PyMongoError

        try:
            yield controller
        except PyMongoError as error:
            raise StoreError(
                f"The queue of the project {chosen.name!r} failed: {first_line(error)}.",
                "Repeat the command once the server answers; what was done is not done twice.",
            ) from error
        except LockedDocumentError as error:
            raise StoreError(
                f"A job of the project {chosen.name!r} stays locked: {first_line(error)}.",
                "Repeat the command; if no runner is at work, free it with: jf admin unlock",
            ) from error
        except ValueError as error:
            raise SettingsError(f"The project {chosen.name!r} refuses: {first_line(error)}.") from error
        finally:
            controller.close()


def _rows(controller: JobController, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the queue holds of jobs; of several runs of a job, the last."""
    fields = {"uuid": 1, "db_id": 1, "state": 1, "error": 1, "remote.error": 1}
    found = controller.jobs.find({"uuid": {"$in": list(ids)}}, fields, sort=[("index", 1)])
    return list({row["uuid"]: row for row in found}.values())


def _was_killed(row: Mapping[str, Any]) -> bool:
    said = f"{row.get('error')} {(row.get('remote') or {}).get('error')}"
    return any(words in said for words in KILLED)
