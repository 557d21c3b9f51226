"""The jobs of a campaign as jobflow flows, for engines and for users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from jobflow import Flow, Job

from fieldflows.campaigns.job import Work, campaign_summary, chunk_job
from fieldflows.campaigns.stages import StageSpec

if TYPE_CHECKING:
    from fieldflows.campaigns.items import Item
    from fieldflows.campaigns.plan import Plan

WAIT_S = 300.0
"""How long a job waits for another worker that has its chunk, such as one that was lost and whose claim runs out."""


def stage_groups(specs: Sequence[StageSpec]) -> list[list[StageSpec]]:
    """Return the stages in groups of neighbors that need the same kind of worker."""
    return [list(group) for _, group in groupby(specs, key=lambda spec: spec.worker)]


def chunk_jobs(
    campaign: str,
    chunks: Sequence[tuple[int, Sequence[Item]]],
    specs: Sequence[StageSpec],
    retry_failed: bool = False,
    metadata: dict[str, Any] | None = None,
    placements: Mapping[str, dict[str, Any]] | None = None,
) -> list[Job]:
    """Return one job for each chunk; stages that need another kind of worker follow in jobs that these add.

    Args:
        campaign: Name of the campaign.
        chunks: Number and crystals of each.
        specs: The stages.
        retry_failed: Try all that failed before again.
        metadata: More to keep with the jobs.
        placements: What tells the engine where a job that another one adds goes, by kind of worker.
    """
    groups = stage_groups(specs)
    return [
        chunk_job(Work(campaign, number, items, groups, retry_failed, WAIT_S, placements or {}), metadata=metadata)
        for number, items in chunks
    ]


def summary_job(campaign: str, jobs: Sequence[Job]) -> Job:
    """Return the job that adds up what the chunk jobs did; it runs also if some of them failed."""
    outputs = [{"stages": made.output.stages, "complete": made.output.complete} for made in jobs]
    made = campaign_summary(campaign, outputs)
    made.name = f"{campaign} summary"
    made.update_metadata({"campaign": campaign, "task": "campaign_summary", "worker": "cpu"})
    return made


def campaign_flow(plan: Plan) -> Flow:
    """Return the whole of a planned campaign as one flow."""
    name = plan.config.name
    open_chunks = [(number, items) for number, items in enumerate(plan.chunks) if plan.has_work(items)]
    jobs = chunk_jobs(name, open_chunks, [stage.spec for stage in plan.stages])
    summary = summary_job(name, jobs)
    return Flow([*jobs, summary], output=summary.output, name=name)
