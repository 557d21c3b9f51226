"""FireWorks: chunk jobs become fireworks that any number of workers pull from one database."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fieldflows.campaigns.engines.base import (
    Placement,
    Portion,
    counted,
    first_line,
    placements,
    portions,
    without_order,
)
from fieldflows.campaigns.engines.launchpad import find_launchpad, open_launchpad
from fieldflows.errors import StoreError

if TYPE_CHECKING:
    from fireworks import LaunchPad, Workflow
    from jobflow import Job

WIDTH = 200
"""Fireworks per workflow: what FireWorks does after each of them grows with their number."""

UUID_KEY = "job_uuid"
"""Key of a spec that holds the uuid of the job."""

_WORDS = {
    "WAITING": "waiting",
    "PAUSED": "waiting",
    "READY": "ready",
    "RESERVED": "ready",
    "RUNNING": "running",
    "COMPLETED": "done",
    "FIZZLED": "failed",
    "DEFUSED": "canceled",
    "ARCHIVED": "canceled",
}
_OPEN = ("WAITING", "PAUSED", "READY", "RESERVED", "RUNNING")
_T = TypeVar("_T")


@dataclass(frozen=True)
class FireworksEngine:
    """The engine that adds chunk jobs to a LaunchPad of FireWorks.

    No address and no password of the results goes there: each worker takes the store that is configured where it
    runs (:class:`fieldflows.store.worker.WorkerStore`).

    Attributes:
        launchpad_file: The ``launchpad.yaml``; by default the one of ``FW_CONFIG_FILE``, then that of this folder.
        workers: Category of the workers, as in their ``fworker.yaml``, by resource word.
        width: Largest number of fireworks in a workflow.

    Example:
        >>> FireworksEngine(workers={"gpu": "a100", "cpu": "cpu"}).workers["gpu"]
        'a100'
    """

    launchpad_file: str | Path | None = None
    workers: Mapping[str, str] = field(default_factory=lambda: {"gpu": "gpu", "cpu": "cpu"})
    width: int = WIDTH

    def manager_config(self, word: str, priority: int = 0) -> dict[str, Any]:
        """Return the part of a spec that sends a job, added by another one, to its workers."""
        return {"_category": self.workers[word], "_priority": priority}

    def submit(
        self, jobs: Sequence[Job], *, name: str, metadata: Mapping[str, Any], summary: Job | None = None
    ) -> list[str]:
        """Add the jobs in workflows of at most ``width``, and return their uuids.

        Numbers of fireworks are not kept: they begin anew when a LaunchPad is reset, and would then name other jobs.

        Jobs that the LaunchPad holds already, by their uuid, are not added again: a submission that was cut off is
        completed by repeating it.

        Args:
            jobs: Self-contained jobs; ``metadata["campaign"]`` and ``metadata["worker"]`` of each are set.
            name: Of the workflows.
            metadata: Of the workflows.
            summary: A job that runs after all the others, whether or not they fail.

        Raises:
            SettingsError: If the LaunchPad is not configured, or a job does not fit.
            StoreError: If its server does not answer, or refuses.
        """
        everything = [*jobs, *([] if summary is None else [summary])]
        places = placements(everything, self.workers)
        parts = list(portions(jobs, summary, self.width))
        with self._launchpad() as launchpad:
            launchpad.fireworks.create_index(f"spec.{UUID_KEY}", sparse=True)
            known = _latest(launchpad, list(places))
            rest = [part.without(known) for part in parts]
            workflows = [_workflow(part, name, metadata, places) for part in rest if part.all()]
            if workflows:
                # workflows first, then fireworks: what is cut off between them is not run without its workflow
                with contextlib.redirect_stderr(io.StringIO()):
                    launchpad.bulk_add_wfs(workflows)
        return [job.uuid for job in everything]

    def states(self, ids: Sequence[str]) -> dict[str, int]:
        """Return how many of the fireworks are in each of :data:`fieldflows.campaigns.engines.base.STATES`.

        Raises:
            SettingsError: If the LaunchPad is not configured.
            StoreError: If its server does not answer, or refuses.
        """
        with self._launchpad() as launchpad:
            return counted((_WORDS[state] for _, state in _latest(launchpad, ids).values()), len(set(ids)))

    def cancel(self, ids: Sequence[str]) -> int:
        """Defuse the fireworks that are not over, and return how many these were.

        What runs on a worker at the moment goes on to its end there; its results are stored and do no harm.

        Raises:
            SettingsError: If the LaunchPad is not configured.
            StoreError: If its server does not answer, or refuses.
        """
        return self._each(ids, _OPEN, lambda launchpad, number: launchpad.defuse_fw(number))

    def lost(self, ids: Sequence[str], *, rerun: bool = False, silent_s: float | None = None) -> list[str]:
        """Return the fireworks that run according to the LaunchPad, but of which nothing was heard.

        Args:
            ids: Uuids of jobs.
            rerun: Make them ready again.
            silent_s: Seconds without a sign of life; by default ``RUN_EXPIRATION_SECS`` of FireWorks' configuration.

        Raises:
            SettingsError: If the LaunchPad is not configured.
            StoreError: If its server does not answer, or refuses.
        """
        with self._launchpad() as launchpad:
            from fireworks import fw_config

            uuids = {number: uuid for uuid, (number, _) in _latest(launchpad, ids).items()}
            _, found, _ = launchpad.detect_lostruns(
                expiration_secs=fw_config.RUN_EXPIRATION_SECS if silent_s is None else silent_s,
                rerun=rerun,
                query={"fw_id": {"$in": list(uuids)}},
            )
            return [uuids[number] for number in sorted(found)]

    def rerun(self, ids: Sequence[str]) -> int:
        """Make the fizzled fireworks ready again, and return how many these were.

        Raises:
            SettingsError: If the LaunchPad is not configured.
            StoreError: If its server does not answer, or refuses.
        """
        return self._each(ids, ("FIZZLED",), lambda launchpad, number: launchpad.rerun_fw(number))

    def _each(self, ids: Sequence[str], states: Sequence[str], action: Callable[[LaunchPad, int], Any]) -> int:
        with self._launchpad() as launchpad:
            chosen = [number for number, state in _latest(launchpad, ids).values() if state in states]
            for number in chosen:
                action(launchpad, number)
        return len(chosen)

    @contextlib.contextmanager
    def _launchpad(self) -> Iterator[LaunchPad]:
        path = find_launchpad(self.launchpad_file)
        launchpad = open_launchpad(path)
        from fireworks.core.launchpad import LockedWorkflowError
        from pymongo.errors import PyMongoError

        try:
            yield launchpad
        except LockedWorkflowError as error:
            raise StoreError(
                f"A workflow of the LaunchPad of {path} stays locked: {first_line(error)}.",
                f"Repeat the command; if no worker is at work, free it with: lpad -l {path} admin unlock -i ID",
            ) from error
        except PyMongoError as error:
            raise StoreError(
                f"The LaunchPad of {path} failed: {first_line(error)}.",
                "Repeat the command once the server answers; what was done is not done twice.",
            ) from error
        finally:
            launchpad.connection.close()


def _latest(launchpad: LaunchPad, uuids: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Return number and state of those of the jobs that the LaunchPad holds; of several fireworks, the latest."""
    fields = {"fw_id": 1, "state": 1, f"spec.{UUID_KEY}": 1}
    rows = launchpad.fireworks.find({f"spec.{UUID_KEY}": {"$in": list(uuids)}}, fields, sort=[("fw_id", 1)])
    return {row["spec"][UUID_KEY]: (row["fw_id"], row["state"]) for row in rows}


def _workflow(part: Portion, name: str, metadata: Mapping[str, Any], places: Mapping[str, Placement]) -> Workflow:
    from jobflow.managers.fireworks import flow_to_workflow

    from fieldflows.store.worker import WorkerStore

    with without_order():
        workflow = flow_to_workflow(
            part.flow(name, metadata), store=WorkerStore(), allow_external_references=True, metadata=dict(metadata)
        )
    for firework in workflow.fws:
        uuid = firework.tasks[0]["job"].uuid
        firework.spec |= {
            UUID_KEY: uuid,
            "_category": places[uuid].worker,
            "_priority": places[uuid].priority,
        }
    return workflow
