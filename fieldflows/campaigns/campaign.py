"""A campaign as a Python object: plan, submit, resume, cancel, status, and a flow of the same jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldflows import __version__
from fieldflows.campaigns.chunk import Policy
from fieldflows.campaigns.config import CampaignConfig
from fieldflows.campaigns.inputs import Found, find_crystals, from_structures
from fieldflows.campaigns.plan import Plan, make_plan, model_names
from fieldflows.campaigns.records import Campaigns, Chunks
from fieldflows.campaigns.stages import StageSpec, resolve_stages
from fieldflows.campaigns.survey import Survey, specs_of, survey
from fieldflows.errors import InputError, SettingsError

if TYPE_CHECKING:
    from jobflow import Flow, JobStore

    from fieldflows.campaigns.engines.local import LocalOutcome

Report = Callable[[str, int, int], None]


@dataclass
class Campaign:
    """A screening campaign.

    Attributes:
        config: What is asked.
        structures: Crystals given in Python, in place of the inputs of the configuration.

    Example:
        >>> from ase.build import bulk
        >>> campaign = Campaign.of("two", [bulk("MgO", "rocksalt", 4.21)], model="toy")
        >>> campaign.plan().stage_plans[0].at_most
        1
    """

    config: CampaignConfig
    structures: Sequence[Any] | None = None

    @classmethod
    def from_yaml(cls, path: str | Path) -> Campaign:
        """Return the campaign of a file.

        Raises:
            SettingsError: Names the line that is wrong.
        """
        return cls(CampaignConfig.from_yaml(path))

    @classmethod
    def of(cls, name: str, structures: Sequence[Any], model: str = "dielectric", **settings: Any) -> Campaign:
        """Return a campaign over crystals that are at hand.

        Args:
            name: Name of the campaign.
            structures: ``ase.Atoms``, pymatgen ``Structure`` or :class:`~fieldflows.inputs.InputStructure`.
            model: Model of the field response.
            settings: More keys of the campaign file, such as ``stages`` and ``chunks``.

        Raises:
            SettingsError: If a setting is wrong.
        """
        given = {"name": name, "inputs": [{"files": ["<structures>"]}], "model": {"name": model}, **settings}
        return cls(CampaignConfig.from_dict(given), structures)

    def plan(self, store: JobStore | None = None, report: Report | None = None) -> Plan:
        """Return what would be done; nothing is computed, and nothing is written to the store.

        Args:
            store: Where results may be already.
            report: Called with (what is done, done, all).

        Raises:
            FieldflowsError: If an input, a model or a stage is wrong.
        """
        stages = resolve_stages(self.config)
        return make_plan(self.config, stages, self._found(store, report), store, report)

    def _found(self, store: JobStore | None, report: Report | None) -> Found:
        if self.structures is not None:
            return from_structures(self.structures)
        return find_crystals(self.config.inputs, store, report)

    def submit(self, store: JobStore, report: Report | None = None) -> dict[str, Any]:
        """Write the campaign to the store, ready to be worked on, and return its manifest.

        A campaign that is there already stays as it is: its crystals are those of the day it was submitted.

        Args:
            store: The store.
            report: Called with (what is done, done, all).

        Raises:
            SettingsError: If a campaign of that name with other inputs, models or stages is there.
            FieldflowsError: If an input, a model or a stage is wrong.
        """
        known = Campaigns.of(store).get(self.config.name)
        if known is not None and known.get("ready"):
            if known["digest"] != self._digest():
                raise SettingsError(
                    f"A campaign {self.config.name!r} with other inputs, models or stages is in this store.",
                    "Give this one another name, or remove that one: fieldflows campaign remove NAME.",
                )
            return known
        return write_campaign(self.plan(store, report), store, self._digest(), report)

    def _digest(self) -> str:
        if self.structures is None:
            return self.config.digest
        from fieldflows.schemas.identity import settings_hash, structure_hash

        structures = [getattr(item, "structure", item) for item in self.structures]
        config = self.config.model_dump(mode="json", include={"name", "model", "stages"})
        return settings_hash({"config": config, "structures": [structure_hash(s) for s in structures]})

    def run(
        self, store: JobStore, workers: int | None = None, retry_failed: bool = False, report: Report | None = None
    ) -> Survey:
        """Submit the campaign and work on it on this machine until nothing is left; return where it stands.

        Args:
            store: The store; of several workers, an embedded store or one that their environment names.
            workers: Number of processes; that of the configuration by default, 1 for this process.
            retry_failed: Try all that failed before again.
            report: Called with (what is done, done, all) while the crystals are read.

        Raises:
            FieldflowsError: If an input, a model or a stage is wrong, or the store cannot be written.
        """
        self.submit(store, report)
        work_locally(store, self.config.name, workers or self.config.engine.workers, retry_failed)
        return survey(store, Campaigns.of(store).require(self.config.name))

    def flow(self, store: JobStore | None = None) -> Flow:
        """Return the jobs of the campaign as one flow, for any engine of jobflow: the chunks, and one that adds up.

        Args:
            store: Where results may be already; chunks without anything left to do are left out.

        Raises:
            FieldflowsError: If an input, a model or a stage is wrong.
        """
        from fieldflows.campaigns.flow import campaign_flow

        return campaign_flow(self.plan(store))


def write_campaign(plan: Plan, store: JobStore, digest: str, report: Report | None = None) -> dict[str, Any]:
    """Write a planned campaign to the store, and return its manifest.

    The manifest is marked as ready when all chunks are there; a campaign whose submission was interrupted is written
    anew by the next one.

    Args:
        plan: The plan.
        store: The store.
        digest: What tells this campaign from another of the same name.
        report: Called with (what is done, done, all).

    Raises:
        InputError: If there is no crystal that can be computed.
        StoreError: If the store cannot be written.
    """
    from fieldflows.store.failures import FailuresCollection

    if not plan.items:
        reasons = [failure.message for failure in plan.failures[:3]]
        raise InputError(f"None of {len(plan.failures)} inputs can be computed: {' '.join(reasons)}")
    name = plan.config.name
    campaigns, chunks = Campaigns.of(store), Chunks.of(store)
    manifest: dict[str, Any] = {
        "campaign": name,
        "ready": False,
        "digest": digest,
        "description": plan.config.description,
        "config": plan.config.public_dict(),
        "stages": [stage.spec.to_dict() for stage in plan.stages],
        "models": model_names(plan.stages),
        "crystals": len(plan.items),
        "unreadable": len(plan.failures),
        "unreadable_keys": [failure.failure_key for failure in plan.failures],
        "duplicates": len(plan.duplicates),
        "duplicate_labels": [[index, label] for index, label in plan.duplicates],
        "chunks": len(plan.chunks),
        "predicted_core_seconds": plan.seconds,
        "submissions": [],
        "canceled_at": None,
        "code_version": __version__,
        "created_at": datetime.now(UTC).isoformat(),
    }
    campaigns.save(manifest)
    chunks.discard(name)
    failures = [failure.model_copy(update={"campaign": name}) for failure in plan.failures]
    FailuresCollection.of(store).put(failures)
    for number, items in enumerate(plan.chunks):
        chunks.write(name, number, items)
        if report is not None:
            report("writing chunks", number + 1, len(plan.chunks))
    manifest["ready"] = True
    campaigns.save(manifest)
    return manifest


def ready_manifest(store: JobStore, name: str) -> dict[str, Any]:
    """Return the manifest of a campaign that was submitted in full.

    Raises:
        InputError: If there is none, or its submission was interrupted.
    """
    manifest = Campaigns.of(store).require(name)
    if not manifest.get("ready"):
        raise InputError(
            f"The submission of campaign {name!r} was interrupted before all was written.", "Submit its file again."
        )
    return manifest


def work_locally(
    store: JobStore,
    name: str,
    workers: int = 1,
    retry_failed: bool = False,
    report: Callable[[str, int, int], None] | None = None,
    store_spec: str | None = None,
) -> LocalOutcome:
    """Work on what is left of a campaign on this machine.

    Args:
        store: The store.
        name: Name of the campaign.
        workers: Number of processes; 1 for this process.
        retry_failed: Try all that failed before again.
        report: Called with (stage, results, failures) after each batch.
        store_spec: What names the store to other processes; by itself for an embedded store.

    Raises:
        InputError: If there is no such campaign.
        SettingsError: If several workers are asked for and nothing names the store to them.
        StoreError: If the store cannot be read or written.
    """
    from fieldflows.campaigns.engines.local import Driver, run_serially

    manifest = ready_manifest(store, name)
    lift_cancellation(store, manifest)
    state = survey(store, manifest)
    numbers = sorted(set(state.open_chunks) | (set(state.failed_chunks) if retry_failed else set()))
    specs: list[StageSpec] = specs_of(manifest)
    if workers == 1:
        policy = Policy(retry_failed=retry_failed)
        if report is not None:
            policy.report = report
        return run_serially(store, name, numbers, specs, policy)
    driver = Driver(store_spec or spec_of(store), name, specs, workers, retry_failed, report)
    return driver.run(numbers)


def spec_of(store: JobStore) -> str:
    """Return what names an embedded store to other processes.

    Raises:
        SettingsError: If it is another kind of store, which may have a password.
    """
    from fieldflows.store import SQLiteStore

    if isinstance(store.docs_store, SQLiteStore):
        return str(Path(store.docs_store.path).absolute())
    raise SettingsError(
        "Several workers need a store that has a name.", "Pass store_spec, or use the command line with --store."
    )


def cancel(store: JobStore, name: str) -> None:
    """Mark a campaign as canceled: workers stop after their batch, at the latest within seconds.

    Raises:
        InputError: If there is no such campaign.
    """
    manifest = Campaigns.of(store).require(name)
    manifest["canceled_at"] = datetime.now(UTC).isoformat()
    Campaigns.of(store).save(manifest)


def lift_cancellation(store: JobStore, manifest: dict[str, Any]) -> None:
    """Take back that a campaign was canceled."""
    if manifest.get("canceled_at"):
        manifest["canceled_at"] = None
        Campaigns.of(store).save(manifest)


def remove(store: JobStore, name: str) -> None:
    """Remove manifest and chunks of a campaign; its results and failures stay.

    Raises:
        InputError: If there is no such campaign.
    """
    from fieldflows.campaigns.records import Progress

    Campaigns.of(store).require(name)
    Chunks.of(store).discard(name)
    progress = Progress.of(store)
    progress.remove([row["chunk"] for row in progress.of_campaign(name)])
    Campaigns.of(store).remove([name])
