"""The jobs of a campaign: one for each chunk, and one that adds up."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from jobflow import CURRENT_JOB, Job, JobConfig, OnMissing, Response, job

from fieldflows import __version__
from fieldflows.campaigns.chunk import Passage, Policy, known_facts, run_chunk
from fieldflows.campaigns.items import Item
from fieldflows.campaigns.journal import Journal
from fieldflows.campaigns.records import Campaigns, Progress, chunk_name
from fieldflows.campaigns.sink import Sink
from fieldflows.campaigns.stages import Stage, StageSpec
from fieldflows.errors import StoreError
from fieldflows.schemas.campaign import CampaignSummary, ChunkDocument, StageCounts
from fieldflows.store.claims import Claims
from fieldflows.store.owners import Owner
from fieldflows.training.signals import stop_signals

if TYPE_CHECKING:
    from jobflow import JobStore

LEASE_S = 120.0
"""How long a worker that is not heard of keeps its chunk; one that has ended on the same machine loses it at once."""

BEAT_S = 10.0
"""How often a worker renews its claim, notes its progress, and looks whether the campaign was canceled."""

BUSY = "another worker has it"
"""Why a chunk is left where somebody else is at work on it."""

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What a chunk job is given, as JSON text: the crystals, the stages, and what is done again.

    Attributes:
        campaign: Name of the campaign.
        number: Number of the chunk.
        items: The crystals.
        groups: The stages, in groups that need the same kind of worker; the job runs the first.
        retry_failed: Try all that failed before again.
        wait: Seconds to wait for another worker that has this chunk.
        placements: What tells the engine where a job of the later groups goes, by kind of worker.
    """

    campaign: str
    number: int
    items: Sequence[Item]
    groups: Sequence[Sequence[StageSpec]]
    retry_failed: bool = False
    wait: float = 0.0
    placements: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def to_text(self) -> str:
        """Return the work as JSON text, which no engine and no database looks into."""
        data = {
            "campaign": self.campaign,
            "number": self.number,
            "items": [item.to_dict() for item in self.items],
            "groups": [[spec.to_dict() for spec in group] for group in self.groups],
            "retry_failed": self.retry_failed,
            "wait": self.wait,
            "placements": dict(self.placements),
        }
        return json.dumps(data, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_text(cls, text: str) -> Work:
        """Return the work of :meth:`to_text`; nothing but these fields is read."""
        data = json.loads(text)
        data["items"] = [Item.from_dict(entry) for entry in data["items"]]
        data["groups"] = [[StageSpec.from_dict(spec) for spec in group] for group in data["groups"]]
        return cls(**data)

    @property
    def chunk(self) -> str:
        """Name of the chunk."""
        return chunk_name(self.campaign, self.number)


_POLICY: list[Policy] = []


@contextlib.contextmanager
def working(policy: Policy) -> Iterator[None]:
    """Within the block, chunk jobs of this process stop and report as this policy says."""
    _POLICY.append(policy)
    try:
        yield
    finally:
        _POLICY.pop()


def current_policy() -> Policy | None:
    """Return the policy of the innermost :func:`working`, or None."""
    return _POLICY[-1] if _POLICY else None


@job(output_schema=ChunkDocument, config=JobConfig(expose_store=True, pass_manager_config=False), data=["results"])
def campaign_chunk(work: str) -> Response[ChunkDocument]:
    """Bring the crystals of a chunk through the stages; results go to the store batch by batch.

    Harmless to repeat: what is stored is not computed again.  Where stages need another kind of worker, what is left
    of the crystals goes on in a job of its own.

    Args:
        work: :meth:`Work.to_text`.
    """
    given = Work.from_text(work)
    document, passage = work_on(given, store_of_job(), current_policy())
    rest = given.groups[1:]
    if not rest or not document.complete:
        return Response(output=document)
    survivors = [_carried(item, passage, rest) for item in given.items if _goes_on(item, passage, rest)]
    if not survivors:
        return Response(output=document)
    following = chunk_job(
        replace(given, items=survivors, groups=rest),
        f"{given.chunk} {rest[0][0].name}",
        {} if CURRENT_JOB.job is None else CURRENT_JOB.job.metadata,
    )
    following.config.manager_config = dict(given.placements.get(rest[0][0].worker, {}))
    return Response(output=document, addition=following)


def chunk_job(work: Work, name: str | None = None, metadata: Mapping[str, Any] | None = None) -> Job:
    """Return the job of a chunk; ``metadata["worker"]`` says which kind of worker its stages need."""
    made = campaign_chunk(work.to_text())
    made.name = name or work.chunk
    specs = work.groups[0]
    made.update_metadata(
        {
            **(metadata or {}),
            "campaign": work.campaign,
            "chunk": work.chunk,
            "task": "campaign_chunk",
            "stages": [spec.name for spec in specs],
            "worker": specs[0].worker,
            "n_structures": len(work.items),
            "model_sha256": specs[0].model.sha256,
            "code_version": __version__,
        },
        dynamic=False,  # jobs that this one adds say for themselves what they are
    )
    return made


@job(output_schema=CampaignSummary, config=JobConfig(on_missing_references=OnMissing.NONE))
def campaign_summary(campaign: str, outputs: Sequence[Any]) -> CampaignSummary:
    """Return the sums over the chunks of a campaign; chunks without an output are left out.

    Args:
        campaign: Name of the campaign.
        outputs: Counts of the chunks, ``(stages, complete)`` of each.
    """
    sums: dict[str, dict[str, float]] = {}
    complete = 0
    for output in outputs:
        if not output or output.get("stages") is None:
            continue
        complete += bool(output.get("complete"))
        for stage in output["stages"]:
            row = stage if isinstance(stage, Mapping) else stage.to_json_dict()
            into = sums.setdefault(row["name"], {})
            for name in StageCounts.model_fields:
                if name != "name":
                    into[name] = into.get(name, 0) + (row.get(name) or 0)
    return CampaignSummary(
        campaign=campaign,
        chunks=len(outputs),
        chunks_complete=complete,
        stages=tuple(StageCounts(name=name, **values) for name, values in sums.items()),
        code_version=__version__,
    )


def work_on(work: Work, store: JobStore | None, policy: Policy | None = None) -> tuple[ChunkDocument, Passage]:
    """Do the work of a chunk, for this process alone where there is a store to claim it in.

    Args:
        work: The work.
        store: The store; None where the worker does not reach it.
        policy: When to stop and what to report; what is done again follows from the work.

    Raises:
        StoreError: If results can neither be stored nor kept on this machine.
        CheckpointError: If a model is not there.
    """
    start = time.perf_counter()
    stages = [Stage(spec) for spec in work.groups[0]]
    passage = Passage()
    with contextlib.ExitStack() as stack:
        stop = threading.Event()
        if policy is None:  # nobody else in this process listens to signals
            policy = Policy()
            stack.enter_context(stop_signals(lambda: _first(stop)))
        asked = policy.should_stop
        policy = replace(
            policy,
            campaign=work.campaign,
            retry_failed=work.retry_failed,
            should_stop=lambda: stop.is_set() or asked(),
        )
        watch = _Watch(work, store, passage, stop)
        if not watch.claimed(work.wait):
            return _document(work, passage, start, BUSY), passage
        stack.enter_context(watch)
        journal = stack.enter_context(Journal.opened(work.campaign, f"{work.number:05d}"))
        sink = Sink(journal, store)
        run_chunk(work.items, stages, sink, policy, passage, _needed_by(work.groups[1:]))
        sink.finish()
        results, failures = sink.leave()
        document = _document(work, passage, start, watch.reason if passage.stopped else None, results, failures)
        if not sink.reaches_store and document.complete:
            journal.acknowledged()  # they travel in the output of the job
    return document, passage


def _document(
    work: Work,
    passage: Passage,
    start: float,
    reason: str | None,
    results: Sequence[dict[str, Any]] = (),
    failures: Sequence[dict[str, Any]] = (),
) -> ChunkDocument:
    return ChunkDocument(
        campaign=work.campaign,
        chunk=work.chunk,
        stages=passage.stage_counts(),
        complete=reason is None,
        reason=reason,
        results=tuple(results),
        failures=tuple(failures),
        wall_time=time.perf_counter() - start,
        host=socket.gethostname(),
        code_version=__version__,
    )


def _first(stop: threading.Event) -> bool:
    first = not stop.is_set()
    stop.set()
    return first


class _Watch:
    """The claim of a worker on its chunk, renewed while it works, and its progress in the store."""

    def __init__(self, work: Work, store: JobStore | None, passage: Passage, stop: threading.Event) -> None:
        self.work, self.store, self.passage, self.stop = work, store, passage, stop
        self.reason: str | None = "it was stopped"
        self._owner = Owner.here()
        self._claims = None if store is None else Claims.of(store)
        self._progress = None if store is None else Progress.of(store)
        self._campaigns = None if store is None else Campaigns.of(store)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def claimed(self, wait: float) -> bool:
        """Claim the chunk; where another worker has it, wait for so many seconds."""
        if self._claims is None:
            return True
        end = time.monotonic() + wait
        while not self._claims.take(self.work.chunk, self._owner, LEASE_S):
            if time.monotonic() >= end or self.stop.wait(min(2.0, max(end - time.monotonic(), 0.05))):
                return False
        return True

    def __enter__(self) -> _Watch:
        if self.store is not None:
            self._thread = threading.Thread(target=self._beat, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(BEAT_S)
        if self._claims is None:
            return
        with _calm("progress"):
            self._note(done=error[0] is None and not self.passage.stopped)
        with _calm("claim"):
            self._claims.release(self.work.chunk, self._owner)

    def _beat(self) -> None:
        assert self._claims is not None
        while not self._ended.wait(BEAT_S):
            with _calm("claim"):
                renewed = self._claims.renew(self.work.chunk, self._owner)
                # after a long silence another worker may have it; computing on would only be double work
                if not renewed and not self._claims.take(self.work.chunk, self._owner, LEASE_S):
                    self.reason = "another worker took it over"
                    self.stop.set()
            with _calm("progress"):
                self._note(done=False)
                if self._campaigns is not None and self._campaigns.is_canceled(self.work.campaign):
                    self.reason = "the campaign was canceled"
                    self.stop.set()

    def _note(self, done: bool) -> None:
        counts = [counts.to_json_dict() for counts in self.passage.stage_counts()]
        if counts and self._progress is not None:
            self._progress.note(self.work.campaign, self.work.number, counts, _name_of_owner(), done)


@contextlib.contextmanager
def _calm(what: str) -> Iterator[None]:
    """Let nothing of this block disturb the work."""
    try:
        yield
    except Exception as error:  # the store may be away; results have their own patience
        _LOGGER.debug("The %s could not be written: %s", what, error)


def _name_of_owner() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _goes_on(item: Item, passage: Passage, rest: Sequence[Sequence[StageSpec]]) -> bool:
    """Return whether a crystal can come into one of the stages that are left."""
    rows = passage.rows[item.index]
    facts = known_facts(rows)
    open_stages = [spec for group in rest for spec in group if spec.after is None or spec.after in rows]
    return any(Stage(spec).condition.holds(facts) for spec in open_stages)


def _needed_by(groups: Sequence[Sequence[StageSpec]]) -> set[str]:
    """Return the fields of results that later stages need of earlier ones."""
    if not groups:
        return set()
    conditions = (Stage(spec).condition.roots for group in groups for spec in group)
    return {"key", "structure", "relaxation"}.union(*conditions)


def _carried(item: Item, passage: Passage, rest: Sequence[Sequence[StageSpec]]) -> Item:
    """Return a crystal with the results so far that later stages need."""
    needed = _needed_by(rest)
    relaxed = {spec.relaxed_by for group in rest for spec in group}
    rows: dict[str, dict[str, Any]] = {}
    for name, row in passage.rows[item.index].items():
        if name:
            wanted = needed if name in relaxed else needed - {"structure", "relaxation"}
            rows[name] = {label: value for label, value in row.items() if label in wanted}
    item.rows = rows
    return item


def store_of_job() -> JobStore | None:
    """Return the store that results of the running job go to; None where the worker does not reach one.

    That is the store of the job, if it is a database; else the one that ``FIELDFLOWS_STORE`` names, if it is set on
    the worker.
    """
    from fieldflows.store import ResultsCollection, get_store
    from fieldflows.store.select import STORE_VARIABLE

    store = CURRENT_JOB.store
    if store is not None:
        try:
            ResultsCollection.of(store)
            return store
        except StoreError as error:
            if not os.environ.get(STORE_VARIABLE):
                _LOGGER.info("Results travel in the output of the job: %s", error)
    return get_store() if os.environ.get(STORE_VARIABLE) else None
