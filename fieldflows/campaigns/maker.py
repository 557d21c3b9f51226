"""Makers of campaign flows: settings that give the jobs of a funnel for any engine of jobflow."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobflow import Flow, Job, Maker

from fieldflows.campaigns.campaign import Campaign
from fieldflows.campaigns.config import CampaignConfig
from fieldflows.campaigns.flow import campaign_flow, chunk_jobs
from fieldflows.errors import InputError

if TYPE_CHECKING:
    from jobflow import JobStore


@dataclass
class CampaignMaker(Maker):
    """Make the flow of a campaign: one job for each chunk of crystals, and one that adds up.

    The flow is ordinary: ``run_locally``, FireWorks and jobflow-remote take it.  Results go to the results collection
    of the store that the jobs run with, under the same keys whatever the engine; where a worker reaches no store, they
    travel in the output of its job.

    Attributes:
        name: Name of the flow.
        store: Where results may be already: chunks with nothing left to compute are left out.

    Example:
        >>> from ase.build import bulk
        >>> flow = CampaignMaker().make({"name": "two", "model": {"name": "toy"}}, [bulk("MgO", "rocksalt", 4.21)])
        >>> ", ".join(job.name for job in flow.jobs)
        'two/00000, two summary'
    """

    name: str = "campaign"
    store: JobStore | None = None

    def make(
        self, config: CampaignConfig | Mapping[str, Any] | str | Path, structures: Sequence[Any] | None = None
    ) -> Flow:
        """Return the flow of a campaign.

        Args:
            config: The campaign: an object, a dictionary, or a YAML file.
            structures: Crystals in place of the inputs of the configuration: ``ase.Atoms``, pymatgen ``Structure``,
                :class:`~fieldflows.inputs.InputStructure`.

        Raises:
            SettingsError: If the configuration is wrong.
            InputError: If there is no crystal that can be computed.
            CheckpointError: If a model does not exist or is damaged.
            CapabilityError: If a model cannot give what a stage asks for.
        """
        plan = _campaign(config, structures).plan(self.store)
        if not plan.items:
            reasons = " ".join(failure.message for failure in plan.failures[:3])
            raise InputError(f"Campaign {plan.config.name!r} has no crystal that can be computed. {reasons}".strip())
        return campaign_flow(plan)


@dataclass
class ScreeningMaker(Maker):
    """Make the job that brings one chunk of crystals through a funnel of stages.

    Attributes:
        name: Beginning of the name of the chunk; the crystals give the rest.
        model: Model of the field response.
        stages: The stages, as in a campaign file; one of the whole dielectric response by default.
        retry_failed: Try all that failed before again.

    Example:
        >>> from ase.build import bulk
        >>> ScreeningMaker(model="toy").make([bulk("MgO", "rocksalt", 4.21)]).metadata["n_structures"]
        1
    """

    name: str = "screening"
    model: str = "dielectric"
    stages: Sequence[Mapping[str, Any]] = field(default_factory=lambda: [{"name": "dielectric"}])
    retry_failed: bool = False

    def make(self, structures: Sequence[Any]) -> Job:
        """Return the job; its output is a :class:`~fieldflows.schemas.campaign.ChunkDocument`.

        Args:
            structures: As in :class:`CampaignMaker`.

        Raises:
            FieldflowsError: As in :class:`CampaignMaker`.
        """
        stages = [dict(stage) for stage in self.stages]
        plan = Campaign.of(self.name, structures, self.model, stages=stages).plan()
        if not plan.items:
            reasons = " ".join(failure.message for failure in plan.failures[:3])
            raise InputError(f"There is no crystal that can be computed. {reasons}".strip())
        # a name of its own, so that jobs over other crystals do not wait for each other
        keys = "".join(key for item in plan.items for key in item.keys.values())
        name = f"{self.name}-{hashlib.sha256(keys.encode()).hexdigest()[:12]}"
        (made,) = chunk_jobs(name, [(0, plan.items)], [stage.spec for stage in plan.stages], self.retry_failed)
        return made


def _campaign(config: CampaignConfig | Mapping[str, Any] | str | Path, structures: Sequence[Any] | None) -> Campaign:
    if isinstance(config, str | Path):
        return Campaign(CampaignConfig.from_yaml(config), structures)
    if isinstance(config, CampaignConfig):
        return Campaign(config, structures)
    given = dict(config)
    if structures is not None:
        given.setdefault("inputs", [{"files": ["<structures>"]}])
    return Campaign(CampaignConfig.from_dict(given), structures)
