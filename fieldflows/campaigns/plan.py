"""The plan of a campaign: keys, costs and chunks, and what of it is there already.  Nothing is written or computed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fieldflows.campaigns.chunk import failure_key_of
from fieldflows.campaigns.config import CampaignConfig, ChunkConfig
from fieldflows.campaigns.cost import predicted_seconds
from fieldflows.campaigns.inputs import Found
from fieldflows.campaigns.items import Item
from fieldflows.campaigns.stages import Stage
from fieldflows.errors import EvaluationError, UnknownElementError
from fieldflows.physics.symmetry import space_group
from fieldflows.schemas.failure import FailureDocument
from fieldflows.schemas.identity import structure_hash

if TYPE_CHECKING:
    from ase import Atoms
    from jobflow import JobStore

SYMMETRY_FACTS = ("spacegroup_symbol", "spacegroup_number", "crystal_system", "point_group")
"""Facts that are worked out only where a condition asks for one of them."""


@dataclass(frozen=True)
class StagePlan:
    """What is known of a stage before it runs.

    Attributes:
        name: Name of the stage.
        task: What it does.
        where: Its condition.
        at_most: Crystals that can come in: how many do is known when the stages before have run.
        stored: Results that are in the store already.
        failed: Failures that are there, of crystals without a result.
        seconds: Predicted seconds on one core for all that can come in and has no result yet.
    """

    name: str
    task: str
    where: str
    at_most: int
    stored: int
    failed: int
    seconds: float


@dataclass
class Plan:
    """A campaign that could be submitted.

    Attributes:
        config: The campaign.
        stages: Its stages, with models looked up.
        items: The distinct crystals, with keys and costs.
        failures: What could not be read or keyed.
        duplicates: Crystals that are equal to an earlier one: (index of that one, label).
        chunks: The crystals cut into portions.
        inputs: Crystals of each input.
        stage_plans: What is known of the stages.
        stored: Keys of the results that are in the store already, by stage.
    """

    config: CampaignConfig
    stages: list[Stage]
    items: list[Item]
    failures: list[FailureDocument]
    duplicates: list[tuple[int, str]]
    chunks: list[list[Item]]
    inputs: dict[str, int]
    stage_plans: list[StagePlan] = field(default_factory=list)
    stored: dict[str, set[str]] = field(default_factory=dict)

    def has_work(self, items: Sequence[Item]) -> bool:
        """Return whether something may be left to compute for these crystals."""
        return any(
            item.keys[stage.name] not in self.stored.get(stage.name, ()) for item in items for stage in self.stages
        )

    @property
    def seconds(self) -> float:
        """Predicted seconds on one core, at most."""
        return sum(stage.seconds for stage in self.stage_plans)

    def to_dict(self) -> dict[str, Any]:
        """Return counts and costs in JSON types."""
        return {
            "campaign": self.config.name,
            "inputs": self.inputs,
            "crystals": len(self.items),
            "atoms": sum(len(item.record["numbers"]) for item in self.items),
            "unreadable": len(self.failures),
            "duplicates": len(self.duplicates),
            "chunks": len(self.chunks),
            "predicted_core_seconds": round(self.seconds, 1),
            "stages": [vars(stage) for stage in self.stage_plans],
            "models": model_names(self.stages),
        }


def model_names(stages: Sequence[Stage]) -> list[str]:
    """Return the models of the stages, each once, with the beginning of its hash."""
    found = {}
    for stage in stages:
        for info in stage.infos():
            if info is not None:
                found[info.sha256] = f"{info.name} ({info.sha256[:12]}, {info.dtype})"
    return list(found.values())


def make_plan(
    config: CampaignConfig,
    stages: list[Stage],
    found: Found,
    store: JobStore | None = None,
    report: Callable[[str, int, int], None] | None = None,
) -> Plan:
    """Return the plan for crystals that were read.

    Args:
        config: The campaign.
        stages: Its stages.
        found: The crystals; keys and costs are entered into them.
        store: Where results may be already; None to leave that out.
        report: Called with (what is done, done, all).
    """
    report = report or (lambda what, done, total: None)
    items: list[Item] = []
    duplicates: list[tuple[int, str]] = []
    failures = list(found.failures)
    known: dict[tuple[str, ...], Item] = {}
    elements = set.intersection(*(set(info.elements) for stage in stages for info in stage.infos() if info))
    for position, item in enumerate(found.items, start=1):
        try:
            _enter(item, stages, config.chunks, elements)
        except Exception as error:  # one crystal that has no key must not stop the others
            failures.append(_failure(error, item, config.name))
            continue
        identity = tuple(item.keys.values())
        if identity in known:
            duplicates.append((known[identity].index, item.label))
            known[identity].learn(item)
        else:
            known[identity] = item
            items.append(item)
        if position % 500 == 0 or position == len(found.items):
            report("planning", position, len(found.items))
    plan = Plan(config, stages, items, failures, duplicates, list(cut(items, config.chunks)), dict(found.counts))
    plan.stage_plans = _stage_plans(plan, store)
    return plan


def _enter(item: Item, stages: Sequence[Stage], chunks: ChunkConfig, elements: Collection[str]) -> None:
    """Enter keys and cost into an item."""
    unknown = sorted(set(item.facts["elements"]) - set(elements))
    if unknown:
        raise UnknownElementError(
            f"{item.label} holds {', '.join(unknown)}, which the models do not know.",
            "Leave it out, or use models trained on these elements.",
        )
    atoms = item.atoms()
    if any(stage.condition.roots & set(SYMMETRY_FACTS) for stage in stages):
        item.facts |= _symmetry(atoms)
    digest = structure_hash(atoms)
    item.keys = {stage.name: stage.key(digest) for stage in stages}
    volume = float(item.facts["volume"])
    item.cost = sum(predicted_seconds(stage, len(atoms), volume, chunks.speed) for stage in stages)


def _symmetry(atoms: Atoms) -> dict[str, Any]:
    """Return the facts about the symmetry of a crystal as it came in; results replace them by their own."""
    try:
        group = space_group(atoms.cell[:], atoms.positions, atoms.numbers)
    except EvaluationError:
        return dict.fromkeys(SYMMETRY_FACTS)
    values = (group.symbol, group.number, group.crystal_system, group.point_group)
    return dict(zip(SYMMETRY_FACTS, values, strict=True))


def _failure(error: Exception, item: Item, campaign: str) -> FailureDocument:
    from fieldflows.structures import as_structure

    structure = None
    try:
        structure = as_structure(item.atoms())
    except Exception:  # the structure may be what is broken
        structure = None
    return FailureDocument.from_error(
        error, "plan", source=item.source, index=item.index, material_id=item.material_id,
        formula=item.facts.get("formula_pretty"), structure=structure, campaign=campaign,
    )  # fmt: skip


def cut(items: Sequence[Item], limits: ChunkConfig) -> list[list[Item]]:
    """Return the items in portions of about the same predicted work, in their order.

    Args:
        items: The items, with costs.
        limits: Minutes, structures and atoms of a portion.
    """
    portions: list[list[Item]] = []
    current: list[Item] = []
    seconds, atoms = 0.0, 0
    for item in items:
        size = len(item.record["numbers"])
        full = (
            seconds + item.cost > 60.0 * limits.minutes
            or len(current) >= limits.structures
            or atoms + size > limits.atoms
        )
        if current and full:
            portions.append(current)
            current, seconds, atoms = [], 0.0, 0
        current.append(item)
        seconds, atoms = seconds + item.cost, atoms + size
    return [*portions, current] if current else portions


def _stage_plans(plan: Plan, store: JobStore | None) -> list[StagePlan]:
    made = []
    for stage in plan.stages:
        stored, failed = stored_and_failed(stage, plan.items, store)
        plan.stored[stage.name] = stored
        missing = [item for item in plan.items if item.keys[stage.name] not in stored]
        seconds = sum(
            predicted_seconds(stage, len(item.record["numbers"]), float(item.facts["volume"]), plan.config.chunks.speed)
            for item in missing
        )
        known_failed = sum(item.keys[stage.name] in failed for item in missing)
        spec = stage.spec
        made.append(
            StagePlan(spec.name, spec.task, spec.where, len(plan.items), len(stored), known_failed, round(seconds, 2))
        )
    return made


def stored_and_failed(stage: Stage, items: Sequence[Item], store: JobStore | None) -> tuple[set[str], set[str]]:
    """Return the keys of the results of a stage that are stored, and of those that failed."""
    if store is None:
        return set(), set()
    from fieldflows.store import ResultsCollection
    from fieldflows.store.failures import FailuresCollection

    keys = [item.keys[stage.name] for item in items]
    rows = ResultsCollection.of(store).fetch(keys, sorted({"key", *stage.fields} - {"structure", "relaxation"}))
    stored = {row["key"] for row in rows if stage.covers(row)}
    names = {failure_key_of(stage, item): item.keys[stage.name] for item in items}
    failed = {names[name] for name in FailuresCollection.of(store).existing(list(names))}
    return stored, failed
