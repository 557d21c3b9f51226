"""Going through the funnel with one chunk of crystals: what is there is reused, what is new is kept batch by batch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fieldflows.campaigns.items import USER_FACTS, Item
from fieldflows.campaigns.stages import Stage
from fieldflows.errors import EvaluationError
from fieldflows.schemas.campaign import StageCounts
from fieldflows.schemas.failure import FailureDocument
from fieldflows.schemas.identity import failure_key

if TYPE_CHECKING:
    from fieldflows.campaigns.sink import Sink
    from fieldflows.properties.base import PropertyInput
    from fieldflows.schemas.common import Document

FIRST_BATCH, LARGEST_BATCH = 8, {"cpu": 64, "gpu": 1000}
"""Crystals of the first batch, and of any; in between, batches grow while they are short."""

SHORT_BATCH_S, LONG_BATCH_S = 1.0, 20.0
"""A batch that took less lets the next be twice as large, one that took more half as large."""

MOST_DEATHS = 5
"""A crystal at which so many workers died is given up, until it is tried again on request."""

LOOK_AGAIN_S = 20.0
"""After so many seconds the store is asked again what is there, as others may work on the same crystals."""

Report = Callable[[str, int, int], None]
"""Called with (stage, results, failures) after each batch."""

_LOGGER = logging.getLogger(__name__)


@dataclass
class Policy:
    """What is done again.

    Attributes:
        retry_failed: Try all that failed before again.
        retry_transient: Try again what failed for reasons that may have passed.
        should_stop: Asked after every batch; True leaves the rest.
        report: See :data:`Report`.
        campaign: Name of the campaign, for records of failures.
    """

    retry_failed: bool = False
    retry_transient: bool = True
    should_stop: Callable[[], bool] = lambda: False
    report: Report = lambda stage, done, failed: None
    campaign: str | None = None


@dataclass
class Passage:
    """Where the crystals of a chunk are in the funnel.

    Attributes:
        counts: By stage.
        rows: What is known of each crystal, by its index and the stage.
        stopped: Whether the work was stopped before its end.
        batch: Size of the next batch.
    """

    counts: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: dict[int, dict[str, dict[str, Any]]] = field(default_factory=dict)
    stopped: bool = False
    batch: int = FIRST_BATCH

    def stage_counts(self) -> tuple[StageCounts, ...]:
        """Return the counts as documents."""
        return tuple(StageCounts(name=name, **values) for name, values in self.counts.items())


def run_chunk(
    items: Sequence[Item],
    stages: Sequence[Stage],
    sink: Sink,
    policy: Policy | None = None,
    passage: Passage | None = None,
    keep: Collection[str] = (),
) -> Passage:
    """Bring the crystals of a chunk through the stages; a rerun after any interruption goes on where it stopped.

    Args:
        items: The crystals, with the keys of their results.
        stages: The stages, in order; a stage may follow one that is not among them if results of it are stored.
        sink: Where outcomes go.
        policy: What is done again, and when to stop.
        passage: Where to keep count, for those who look on; a new one by default.
        keep: Fields of results to keep besides those that these stages need.

    Raises:
        CapabilityError: If a model cannot give what is asked, whatever the crystal.
        CheckpointError: If a model is not there.
        StoreError: If the disk of this machine cannot be written, or the store not be read.
    """
    policy = policy or Policy()
    passage = Passage() if passage is None else passage
    needed = {"key", *USER_FACTS, *keep}.union(
        *(stage.condition.roots for stage in stages), *(stage.fields for stage in stages)
    )
    for item in items:
        passage.rows[item.index] = {"": item.facts, **item.rows}
    for stage in stages:
        _run_stage(stage, items, sink, policy, passage, needed)
    return passage


def _run_stage(
    stage: Stage, items: Sequence[Item], sink: Sink, policy: Policy, passage: Passage, needed: set[str]
) -> None:
    counts = passage.counts.setdefault(stage.name, dict.fromkeys(_COUNTED, 0) | {"seconds": 0.0})
    entering = [item for item in items if stage.spec.after is None or stage.spec.after in passage.rows[item.index]]
    counts["entered"] = len(entering)
    passed = [item for item in entering if stage.condition.holds(known_facts(passage.rows[item.index]))]
    counts["rejected"] = len(entering) - len(passed)
    pending = _pending(stage, passed, sink, policy, passage, needed, counts)
    suspects = [item for item in pending if sink.journal.deaths.get(item.keys[stage.name])]
    plain = sorted((item for item in pending if item not in suspects), key=lambda item: len(item.record["numbers"]))
    looked = time.monotonic()
    passage.batch = FIRST_BATCH  # the stage before may have been much faster
    while plain or suspects:
        if passage.stopped or policy.should_stop():
            passage.stopped = True
            counts["left"] += len(plain) + len(suspects)
            return
        if plain and sink.reaches_store and time.monotonic() - looked > LOOK_AGAIN_S:
            plain = _still_missing(stage, plain, sink, passage, needed, counts)
            looked = time.monotonic()
            continue
        size = passage.batch if plain else 1
        source = plain or suspects
        batch, source[:] = source[:size], source[size:]
        _run_batch(stage, batch, sink, policy, passage, counts, needed)


_COUNTED = ("entered", "rejected", "reused", "computed", "failed", "failed_before", "left")


def _pending(
    stage: Stage,
    items: Sequence[Item],
    sink: Sink,
    policy: Policy,
    passage: Passage,
    needed: set[str],
    counts: dict[str, Any],
) -> list[Item]:
    """Return the crystals that are to be computed: no result yet, no failure that counts."""
    missing = _still_missing(stage, items, sink, passage, needed, counts)
    failures = sink.failed([failure_key_of(stage, item) for item in missing])
    pending = []
    for item in missing:
        record = failures.get(failure_key_of(stage, item))
        again = record is None or policy.retry_failed or (policy.retry_transient and record.get("transient"))
        if again:
            pending.append(item)
        else:
            counts["failed_before"] += 1
    return pending


def _still_missing(
    stage: Stage, items: Sequence[Item], sink: Sink, passage: Passage, needed: set[str], counts: dict[str, Any]
) -> list[Item]:
    """Take what is stored, and return the crystals whose result is not."""
    found = sink.known([item.keys[stage.name] for item in items], needed)
    missing = []
    for item in items:
        row = found.get(item.keys[stage.name])
        if row is not None and stage.covers(row):
            if stage.lacks(row, item.known_to_the_user):
                row = sink.amend(row["key"], stage.amended, item.known_to_the_user) or row
            passage.rows[item.index][stage.name] = {name: row[name] for name in needed if name in row}
            counts["reused"] += 1
        else:
            missing.append(item)
    return missing


def _run_batch(
    stage: Stage,
    batch: Sequence[Item],
    sink: Sink,
    policy: Policy,
    passage: Passage,
    counts: dict[str, Any],
    needed: set[str],
) -> None:
    keys = [item.keys[stage.name] for item in batch]
    start = time.perf_counter()
    doomed = [item for item in batch if sink.journal.deaths.get(item.keys[stage.name], 0) >= MOST_DEATHS]
    subjects: list[tuple[Item, PropertyInput]] = []
    outcomes: dict[int, Document | FailureDocument] = {}
    sink.journal.start(keys)
    for item in batch:
        try:
            if item in doomed:
                raise EvaluationError(
                    f"{MOST_DEATHS} workers died while they computed {item.label}.",
                    "Look at memory limits and the structure; --retry-failed tries it again.",
                )
            subjects.append((item, _subject(stage, item, passage)))
        except Exception as error:  # the record of one crystal is damaged; the others go on
            outcomes[item.index] = FailureDocument.from_error(
                error, "plan", source=item.source, index=item.index, material_id=item.material_id,
                task=stage.spec.task, key=item.keys[stage.name],
            )  # fmt: skip
    found, hessians = stage.evaluate([subject for _, subject in subjects], [i.keys[stage.name] for i, _ in subjects])
    for (item, _), outcome in zip(subjects, found, strict=True):
        outcomes[item.index] = _checked(stage, item, outcome)
    seconds = time.perf_counter() - start
    completed = [
        _completed(stage, item, outcomes[item.index], policy.campaign, lost=item in doomed)
        if isinstance(outcomes[item.index], FailureDocument)
        else outcomes[item.index]
        for item in batch
    ]
    for key, response in hessians.items():
        sink.keep_array(key, "hessian", response.get("hessian"))
    overcome = [failure_key_of(stage, item) for item in batch if not isinstance(outcomes[item.index], FailureDocument)]
    if doomed:
        sink.journal.forget([item.keys[stage.name] for item in doomed])
    results, failures = sink.commit(completed, overcome if policy.retry_failed or policy.retry_transient else ())
    by_key = {row["key"]: row for row in results}
    for item in batch:
        row = by_key.get(item.keys[stage.name])
        if row is not None:
            passage.rows[item.index][stage.name] = {name: row[name] for name in needed if name in row}
    counts["computed"] += len(results)
    counts["failed"] += len(failures)
    counts["seconds"] += seconds
    _resize(passage, stage, seconds, len(batch))
    policy.report(stage.name, len(results), len(failures))


def _subject(stage: Stage, item: Item, passage: Passage) -> PropertyInput:
    relaxed = None if stage.spec.relaxed_by is None else passage.rows[item.index][stage.spec.relaxed_by]
    known = {"material_id": item.material_id, "source": item.source, "index": item.index, "band_gap": item.band_gap}
    return stage.subject(known | {"reference": item.reference}, item.atoms(), relaxed)


def _checked(stage: Stage, item: Item, outcome: Document | FailureDocument) -> Document | FailureDocument:
    """Return the outcome, or a failure if it is not under the key that was planned."""
    key = item.keys[stage.name]
    if isinstance(outcome, FailureDocument) or getattr(outcome, "key", key) == key:
        return outcome
    error = EvaluationError(
        f"The result of {item.label} has the key {getattr(outcome, 'key', None)}, planned was {key}.",
        "The worker has another version of fieldflows than the planner; bring them together and submit again.",
    )
    return FailureDocument.from_error(
        error, "analyse", source=item.source, index=item.index, material_id=item.material_id, task=stage.spec.task,
        key=key,
    )  # fmt: skip


def _completed(stage: Stage, item: Item, failure: Any, campaign: str | None, lost: bool) -> FailureDocument:
    """Return a failure with all that is known of the crystal, under its deterministic key."""
    given = failure.model_dump(exclude={"failure_key", "structure"})
    given |= {
        "key": item.keys[stage.name],
        "extent": stage.extent,
        "task": stage.spec.task,
        "campaign": campaign,
        "source": item.source,
        "index": item.index,
        "material_id": item.material_id,
        "formula": item.facts.get("formula_pretty") or failure.formula,
    }
    if lost:
        given |= {"error_type": "WorkerLost"}
    try:
        from fieldflows.structures import as_structure

        given["structure"] = as_structure(item.atoms())
    except Exception:  # what is wrong with the structure is already in the failure
        given["structure"] = None
    return FailureDocument(**given)


def failure_key_of(stage: Stage, item: Item) -> str:
    """Return the key under which a failure of this crystal in this stage is stored."""
    return failure_key(key=item.keys[stage.name], task=stage.spec.task, extent=stage.extent)


def known_facts(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is known of a crystal: facts of the input, then the results of its stages, later over earlier."""
    merged: dict[str, Any] = {}
    for row in rows.values():
        merged |= {name: value for name, value in row.items() if name != "structure"}
    return merged


def _resize(passage: Passage, stage: Stage, seconds: float, size: int) -> None:
    device = "cpu" if stage.spec.model.device.startswith("cpu") else "gpu"
    if size < passage.batch:
        return
    if seconds < SHORT_BATCH_S:
        passage.batch = min(2 * passage.batch, LARGEST_BATCH[device])
    elif seconds > LONG_BATCH_S:
        passage.batch = max(passage.batch // 2, 1)
