"""What the jobs of a campaign leave behind: the counts of a chunk and of the whole."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

from pydantic import Field

from fieldflows.schemas.common import Document, quantity

SCHEMA_VERSION = 1


class StageCounts(Document):
    """What became of the crystals of a chunk in one stage; each that came in is counted once."""

    name: str = Field(description="Name of the stage.")
    entered: int = quantity("1", "Crystals that came in.", 0)
    rejected: int = quantity("1", "Of these, those that do not fulfill the condition.", 0)
    reused: int = quantity("1", "Results that were in the store already.", 0)
    computed: int = quantity("1", "Results that are new.", 0)
    failed: int = quantity("1", "Crystals that failed now.", 0)
    failed_before: int = quantity("1", "Crystals that had failed before, and were not tried again.", 0)
    left: int = quantity("1", "Crystals that were not reached, as the work was stopped.", 0)
    seconds: float = quantity("s", "Time of plan, evaluation and analysis.", 0.0)

    @property
    def done(self) -> int:
        """Results that are there."""
        return self.reused + self.computed


class ChunkDocument(Document):
    """The output of one chunk job.  Results are in the store; only a worker that does not reach it sends them along."""

    latest_version: ClassVar[int | None] = SCHEMA_VERSION

    schema_version: int = quantity("1", "Version of this schema.", SCHEMA_VERSION)
    task: Literal["campaign_chunk"] = Field("campaign_chunk", description="Name of the task.")
    campaign: str = Field(description="Name of the campaign.")
    chunk: str = Field(description="Name of the chunk.")
    stages: tuple[StageCounts, ...] = Field(description="What became of the crystals, stage by stage.")
    complete: bool = Field(description="Whether all that came in was gone through.")
    reason: str | None = Field(None, description="Why not, if not.")
    results: tuple[dict[str, Any], ...] = Field((), description="Result documents, if the worker reached no store.")
    failures: tuple[dict[str, Any], ...] = Field((), description="Failure documents, if the worker reached no store.")
    wall_time: float = quantity("s", "Time of the job.", 0.0)
    host: str = Field("", description="Machine.")
    code_version: str = Field(description="Version of fieldflows.")
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC), description="Time of creation, UTC.")


class CampaignSummary(Document):
    """The output of the last job of a campaign."""

    latest_version: ClassVar[int | None] = SCHEMA_VERSION

    schema_version: int = quantity("1", "Version of this schema.", SCHEMA_VERSION)
    task: Literal["campaign_summary"] = Field("campaign_summary", description="Name of the task.")
    campaign: str = Field(description="Name of the campaign.")
    chunks: int = quantity("1", "Chunk jobs of the flow.")
    chunks_complete: int = quantity("1", "Those that went through.")
    stages: tuple[StageCounts, ...] = Field(description="Sums over the chunks that left an output.")
    code_version: str = Field(description="Version of fieldflows.")
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC), description="Time of creation, UTC.")
