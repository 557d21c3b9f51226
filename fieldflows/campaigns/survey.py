"""Where a campaign stands: worked out from what is stored, never from what an engine believes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fieldflows.campaigns.chunk import known_facts
from fieldflows.campaigns.items import USER_FACTS
from fieldflows.campaigns.records import Chunks, Progress
from fieldflows.campaigns.stages import Stage, StageSpec
from fieldflows.schemas.identity import failure_key

if TYPE_CHECKING:
    from jobflow import JobStore

ACTIVE_S = 60.0
"""A worker that noted progress within so many seconds counts as at work."""

TOGETHER = 2000
"""Crystals that are looked up together."""


@dataclass
class StageState:
    """What became of the crystals in one stage.

    Attributes:
        name: Name of the stage.
        done: Results that are there.
        failed: Crystals that failed, by the kind of error.
        transient: Those of them that may pass when tried again.
        rejected: Crystals that do not fulfill the condition.
        pending: Crystals that are to be computed.
        waiting: Crystals of which it is not known yet whether they come in.
        out: Crystals that failed or were rejected before.
        seconds: Predicted seconds of a crystal of this stage, of those computed so far; None if none was.
        rate: Results per second of the workers that are at work.
    """

    name: str
    done: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    transient: int = 0
    rejected: int = 0
    pending: int = 0
    waiting: int = 0
    out: int = 0
    seconds: float | None = None
    rate: float = 0.0

    @property
    def expected(self) -> float:
        """Crystals that are still to be computed, with the share of those waiting that has come in so far."""
        decided = self.done + sum(self.failed.values()) + self.pending + self.rejected
        share = 1.0 if not decided else 1.0 - self.rejected / decided
        return self.pending + share * self.waiting

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers in JSON types."""
        return {**vars(self), "failed": dict(self.failed)}


@dataclass
class Survey:
    """Where a campaign stands.

    Attributes:
        campaign: Name of the campaign.
        crystals: Distinct crystals.
        unreadable: Inputs that could not be read.
        duplicates: Crystals that are equal to another.
        stages: The stages.
        open_chunks: Numbers of the chunks in which something is to be computed or entered, or may be tried again.
        failed_chunks: Numbers of the chunks in which something failed for good.
        workers: Workers that are at work now.
        seconds_left: Estimate of the time left with as many workers (one if none is at work); None if unknown.
        canceled: Whether the campaign was canceled.
        engines: Jobs by engine and state, as the engines say.
    """

    campaign: str
    crystals: int
    unreadable: int
    duplicates: int
    stages: list[StageState]
    open_chunks: list[int]
    failed_chunks: list[int]
    workers: int = 0
    seconds_left: float | None = None
    canceled: bool = False
    engines: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to compute."""
        return not any(stage.pending or stage.waiting for stage in self.stages)

    @property
    def failures(self) -> int:
        """Crystals that failed in some stage."""
        return sum(sum(stage.failed.values()) for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers in JSON types."""
        return {**vars(self), "stages": [stage.to_dict() for stage in self.stages], "complete": self.complete}


def specs_of(manifest: Mapping[str, Any]) -> list[StageSpec]:
    """Return the stages of a campaign as its manifest has them."""
    return [StageSpec.from_dict(spec) for spec in manifest["stages"]]


@dataclass
class ItemState:
    """Where one crystal is.

    Attributes:
        entry: What the chunk says of it: index, label, facts, keys.
        chunk: Number of its chunk.
        states: By stage: "done", "failed", "rejected", "pending", "waiting" or "out".
        rows: Results by stage, of the fields asked for.
        failures: Failures by stage.
        unlabeled: Whether a result does not show what is known of the crystal by now.
    """

    entry: dict[str, Any]
    chunk: int
    states: dict[str, str] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    unlabeled: bool = False


def walk(store: JobStore, manifest: Mapping[str, Any], fields: Sequence[str] = ()) -> Iterator[ItemState]:
    """Yield where each crystal of a campaign is, with some fields of its results.

    Args:
        store: The store.
        manifest: The manifest of the campaign.
        fields: Top-level fields of the results that are wanted besides those that conditions need.
    """
    stages = [Stage(spec) for spec in specs_of(manifest)]
    portion: list[ItemState] = []
    for number, index in Chunks.of(store).numbers(manifest["campaign"]).items():
        portion += [ItemState(entry, number) for entry in index]
        if len(portion) >= TOGETHER:
            yield from _decided(store, stages, portion, fields)
            portion = []
    yield from _decided(store, stages, portion, fields)


def _decided(
    store: JobStore, stages: Sequence[Stage], portion: list[ItemState], fields: Sequence[str]
) -> list[ItemState]:
    from fieldflows.store import ResultsCollection
    from fieldflows.store.failures import FailuresCollection

    if not portion:
        return portion
    needed = {"key", *USER_FACTS, *fields}.union(
        *(stage.condition.roots for stage in stages), *(stage.fields for stage in stages)
    )
    needed -= {"structure", "relaxation"} - set(fields)
    keys = list(dict.fromkeys(key for item in portion for key in item.entry["keys"].values()))
    rows = {row["key"]: row for row in ResultsCollection.of(store).fetch(keys, sorted(needed))}
    names = {(item.entry["index"], stage.name): _failure_key(stage, item) for item in portion for stage in stages}
    found = {row["failure_key"]: row for row in FailuresCollection.of(store).fetch(list(names.values()))}
    for item in portion:
        facts: dict[str, dict[str, Any]] = {"": item.entry["facts"]}
        given = {name: facts[""][name] for name in USER_FACTS if facts[""].get(name) is not None}
        for stage in stages:
            state = _state(stage, item, rows, found.get(names[item.entry["index"], stage.name]), facts)
            item.states[stage.name] = state
            if state == "done":
                facts[stage.name] = item.rows[stage.name] = rows[item.entry["keys"][stage.name]]
                item.unlabeled |= stage.lacks(item.rows[stage.name], given)
            elif state == "failed":
                item.failures[stage.name] = found[names[item.entry["index"], stage.name]]
    return portion


def _failure_key(stage: Stage, item: ItemState) -> str:
    return failure_key(key=item.entry["keys"][stage.name], task=stage.spec.task, extent=stage.extent)


def _state(
    stage: Stage,
    item: ItemState,
    rows: Mapping[str, Mapping[str, Any]],
    failure: Mapping[str, Any] | None,
    facts: Mapping[str, Mapping[str, Any]],
) -> str:
    before = "done" if stage.spec.after is None else item.states[stage.spec.after]
    if before in ("pending", "waiting"):
        return "waiting"
    if before != "done":
        return "out"
    if not stage.condition.holds(known_facts(facts)):
        return "rejected"
    row = rows.get(item.entry["keys"][stage.name])
    if row is not None and stage.covers(row):
        return "done"
    return "pending" if failure is None else "failed"


def survey(store: JobStore, manifest: Mapping[str, Any]) -> Survey:
    """Return where a campaign stands.

    Args:
        store: The store.
        manifest: The manifest of the campaign.

    Raises:
        StoreError: If the store does not answer.
    """
    states = {spec.name: StageState(spec.name) for spec in specs_of(manifest)}
    open_chunks: set[int] = set()
    failed_chunks: set[int] = set()
    count = 0
    for item in walk(store, manifest):
        count += 1
        if item.unlabeled:
            open_chunks.add(item.chunk)
        for name, state in item.states.items():
            into = states[name]
            if state == "failed":
                failure = item.failures[name]
                into.failed[failure["error_type"]] += 1
                into.transient += bool(failure.get("transient"))
                (open_chunks if failure.get("transient") else failed_chunks).add(item.chunk)
                continue
            setattr(into, state, getattr(into, state) + 1)
            if state == "pending":
                open_chunks.add(item.chunk)
    result = Survey(
        manifest["campaign"], count, manifest.get("unreadable", 0), manifest.get("duplicates", 0),
        list(states.values()), sorted(open_chunks), sorted(failed_chunks), canceled=bool(manifest.get("canceled_at")),
    )  # fmt: skip
    _estimate(result, Progress.of(store).of_campaign(manifest["campaign"]))
    return result


def _estimate(result: Survey, progress: Sequence[Mapping[str, Any]]) -> None:
    """Enter rates and the time that is left, from what the workers measured."""
    now = datetime.now(UTC)
    active = [
        row
        for row in progress
        if not row["done"] and (now - datetime.fromisoformat(row["updated_at"])).total_seconds() < ACTIVE_S
    ]
    result.workers = len(active)
    computed: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for row in progress:
        for stage in row["stages"]:
            computed[stage["name"]] += stage["computed"] + stage["failed"]
            seconds[stage["name"]] += stage["seconds"]
    left = 0.0
    known = True
    for stage in result.stages:
        if computed[stage.name]:
            stage.seconds = seconds[stage.name] / computed[stage.name]
            stage.rate = result.workers / stage.seconds if stage.seconds else 0.0
            left += stage.expected * stage.seconds
        elif stage.expected:
            known = False
    if known and any(computed.values()):
        result.seconds_left = left / max(result.workers, 1)
