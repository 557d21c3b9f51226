"""Handing a campaign to an engine, and asking or stopping it there; what is left follows from the store alone."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fieldflows.campaigns.campaign import cancel, lift_cancellation, ready_manifest
from fieldflows.campaigns.config import EngineConfig
from fieldflows.campaigns.flow import chunk_jobs, summary_job
from fieldflows.campaigns.records import Campaigns, Chunks
from fieldflows.campaigns.stages import asked_for
from fieldflows.campaigns.survey import Survey, specs_of, survey
from fieldflows.errors import FieldflowsError, SettingsError, suggestion
from fieldflows.properties.base import covers
from fieldflows.schemas.identity import failure_key

if TYPE_CHECKING:
    from jobflow import JobStore

    from fieldflows.campaigns.engines.base import Engine

ENGINES = ("local", "fireworks", "remote")

LARGEST_SUMMARY = 200
"""With so many jobs or more, none adds up what the others did; the status does that anyway."""

OPEN_STATES = ("waiting", "ready", "running")
"""States of jobs that may still do something."""

_LOGGER = logging.getLogger(__name__)


def with_engine(settings: EngineConfig, name: str | None, workers: int | None) -> EngineConfig:
    """Return the settings with another engine or number of processes.

    Raises:
        SettingsError: If there is no such engine, or it has no processes of its own.
    """
    if name is not None and name not in ENGINES:
        raise SettingsError(f"There is no engine {name!r}.", suggestion(name, ENGINES))
    changes: dict[str, Any] = {} if name is None else {"name": name}
    chosen = name or settings.name
    if workers is not None:
        if chosen != "local":
            raise SettingsError("--workers is for the local engine.", f"The workers of {chosen} are started there.")
        changes["workers"] = workers
    return settings.model_copy(update=changes)


def make_engine(settings: EngineConfig) -> Engine:
    """Return the engine of some settings.

    Raises:
        FieldflowsError: If it is not installed, or its configuration is not there.
    """
    names: dict[str, Any] = {"workers": settings.worker_names} if settings.worker_names else {}
    if settings.name == "fireworks":
        from fieldflows.campaigns.engines.fireworks import FireworksEngine

        return FireworksEngine(launchpad_file=settings.launchpad, **names)
    if settings.name == "remote":
        from fieldflows.campaigns.engines.remote import RemoteEngine

        return RemoteEngine(project=settings.project, **names)
    raise SettingsError(f"{settings.name!r} is no engine with a queue.", suggestion(settings.name, ENGINES[1:]))


def submit_to_engine(
    store: JobStore, name: str, settings: EngineConfig, retry_failed: bool = False, force: bool = False
) -> list[str]:
    """Submit what is left of a campaign to an engine, and return its ids of the jobs.

    Args:
        store: The store.
        name: Name of the campaign.
        settings: The engine.
        retry_failed: Try all that failed before again.
        force: Also if jobs of an earlier submission are still in the queue.

    Raises:
        SettingsError: If jobs of an earlier submission may still do the work.
        FieldflowsError: If the engine cannot be used.
    """
    manifest = ready_manifest(store, name)
    collect_outputs(store, name)
    engine = make_engine(settings)
    if not force:
        _refuse_twice(manifest, settings, engine)
    lift_cancellation(store, manifest)
    state = survey(store, manifest)
    numbers = sorted(set(state.open_chunks) | (set(state.failed_chunks) if retry_failed else set()))
    if not numbers:
        return []
    chunks = Chunks.of(store)
    specs = specs_of(manifest)
    jobs = chunk_jobs(
        name,
        [(number, chunks.items(name, number)) for number in numbers],
        specs,
        retry_failed,
        {"priority": settings.priority},
        {spec.worker: engine.manager_config(spec.worker, settings.priority) for spec in specs},
    )
    attempt = len(manifest["submissions"]) + 1
    # a job that waits for all others must be in one workflow with them, and those are kept small
    summary = summary_job(name, jobs) if len(jobs) < LARGEST_SUMMARY else None
    if summary is not None:
        summary.update_metadata({"priority": settings.priority})
    metadata = {"campaign": name, "submission": attempt}
    ids = engine.submit(jobs, name=f"{name} {attempt}", metadata=metadata, summary=summary)
    manifest["submissions"].append(
        {
            "engine": settings.name,
            "settings": settings.model_dump(mode="json"),
            "ids": list(ids),
            "chunks": numbers,
            "created_at": datetime.now(UTC).isoformat(),
        }
    )
    Campaigns.of(store).save(manifest)
    return list(ids)


def _refuse_twice(manifest: dict[str, Any], settings: EngineConfig, engine: Engine) -> None:
    ids = [one for entry in manifest["submissions"] if entry["engine"] == settings.name for one in entry["ids"]]
    counts = engine.states(ids) if ids else {}
    still = {state: counts[state] for state in OPEN_STATES if counts.get(state)}
    if still:
        found = ", ".join(f"{count} {state}" for state, count in still.items())
        raise SettingsError(
            f"Jobs of campaign {manifest['campaign']!r} are still in the queue of {settings.name}: {found}.",
            "Let them run, recover lost ones, cancel the campaign, or resume it with --force.",
        )


def engine_states(manifest: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Return the states of the jobs of a campaign by engine; an engine that cannot be asked says why."""
    found: dict[str, dict[str, int]] = {}
    for entry in manifest["submissions"]:
        try:
            counts = make_engine(EngineConfig(**entry["settings"])).states(entry["ids"])
        except FieldflowsError as error:
            counts = {f"that cannot be asked ({error.message})": len(entry["ids"])}
        into = found.setdefault(entry["engine"], {})
        for state, count in counts.items():
            into[state] = into.get(state, 0) + count
    return found


def status_of(store: JobStore, name: str) -> Survey:
    """Return where a campaign stands, outputs of workers without a store included.

    Raises:
        InputError: If there is no such campaign.
        StoreError: If the store does not answer.
    """
    manifest = ready_manifest(store, name)
    collect_outputs(store, name)
    found = survey(store, manifest)
    found.engines = engine_states(manifest)
    return found


def cancel_everywhere(store: JobStore, name: str) -> int:
    """Cancel a campaign in the store and in the queues of engines; return how many jobs were taken back.

    Raises:
        InputError: If there is no such campaign.
        FieldflowsError: If an engine cannot be reached; workers stop all the same.
    """
    cancel(store, name)
    taken = 0
    for entry in Campaigns.of(store).require(name)["submissions"]:
        taken += make_engine(EngineConfig(**entry["settings"])).cancel(entry["ids"])
    return taken


def collect_outputs(store: JobStore, name: str) -> int:
    """Copy results that came in the outputs of jobs to where results are; return how many were written.

    Needed after jobs on workers that do not reach the store.  What was copied is noted in the manifest.  A result that
    is there already, with more in it or computed later, stays.

    Raises:
        StoreError: If the store does not answer.
    """
    from fieldflows.store import ResultsCollection
    from fieldflows.store.failures import FailuresCollection
    from fieldflows.store.versions import put_better

    campaigns = Campaigns.of(store)
    manifest = campaigns.require(name)
    if not any(entry["engine"] != "local" for entry in manifest["submissions"]):
        return 0
    seen = set(manifest.get("collected") or ())
    new: set[str] = set()
    count = 0
    criteria = {"metadata.campaign": name, "metadata.task": "campaign_chunk"}
    found = [(row["uuid"], row["index"]) for row in store.query(criteria, properties=["uuid", "index"])]
    for uuid, index in found:
        if f"{uuid}:{index}" in seen:
            continue
        try:
            output = store.get_output(uuid, index, load=True)
        except ValueError as error:  # one output must not hide the others; it is looked at again next time
            _LOGGER.warning("The output of job %s cannot be read: %s", uuid, error)
            continue
        results = [_plain(row) for row in output.get("results") or ()]
        count += put_better(ResultsCollection.of(store), results)
        failures = FailuresCollection.of(store)
        failures.put([_plain(row) for row in output.get("failures") or ()])
        failures.remove([name for row in results for name in _overcome(row)])
        new.add(f"{uuid}:{index}")
    if new:
        manifest = campaigns.require(name)  # others may have written it meanwhile, such as a cancellation
        manifest["collected"] = sorted(new.union(manifest.get("collected") or ()))
        campaigns.save(manifest)
    return count


def _overcome(row: dict[str, Any]) -> list[str]:
    """Return the keys of failures that a result makes void."""
    task = str(row["task"])
    extents: list[str | None] = [None]
    if task == "dielectric":
        extents = [extent for extent in ("electronic", "ionic") if covers(asked_for(task, extent), row)]
    return [failure_key(key=row["key"], task=task, extent=extent) for extent in extents]


def _plain(row: Any) -> dict[str, Any]:
    """Return a document without what engines add to it; what it holds itself, marks of classes too, stays."""
    return {name: value for name, value in dict(row).items() if not name.startswith("@") and name != "_id"}
