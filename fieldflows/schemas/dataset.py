"""The manifest of a labeled dataset: what is in it, where it came from, what was converted and what was thrown out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from fieldflows.schemas.artifact import ArtifactReference
from fieldflows.schemas.common import Document, quantity

DATASET_SCHEMA_VERSION = 1
"""Version of the manifest's schema and of the digest."""


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Finding(_Document):
    """One check that a frame did not pass."""

    code: str = Field(description="Short name of the check.")
    value: float | None = Field(description="What was found, in `unit`; null if it was not finite or is no number.")
    threshold: float | None = Field(description="What is allowed, in `unit`.")
    unit: str = Field(description="Unit of value and threshold.")
    message: str = Field(description="The same in words.")


class FrameFindings(_Document):
    """All findings of one frame."""

    source: str = Field(description="Name of the source.")
    source_index: int = Field(description="Frame number in the source, from 0.")
    formula: str = Field(description="Reduced formula.")
    findings: list[Finding] = Field(description="The checks that it did not pass.")


class Duplicate(_Document):
    """A frame that was left out because another one is the same crystal."""

    source: str = Field(description="Name of the source.")
    source_index: int = Field(description="Frame number in the source, from 0.")
    formula: str = Field(description="Reduced formula.")
    kind: str = Field(description="'exact' or 'near'.")
    kept_source: str = Field(description="Source of the frame that stays.")
    kept_source_index: int = Field(description="Its frame number.")


class SourceRecord(_Document):
    """Where frames came from."""

    name: str = Field(description="Name of the source, as frames carry it.")
    type: str = Field(description="Kind of source.")
    path: str = Field(description="File as the configuration names it.")
    sha256: str = Field(description="SHA-256 of the file as it lies on disk.")
    license: str = Field(description="License facts of the labels.")
    reference: str = Field(description="Whom to cite.")
    n_frames: int = Field(description="Frames in the file.")
    n_kept: int = Field(description="Frames in the dataset.")
    conversions: list[str] = Field(description="What was converted, per label: key, convention, internal unit.")
    notes: list[str] = Field(default=[], description="What else was decided while reading.")
    median_epsilon_electronic: float | None = Field(
        default=None, description="Median of tr ε∞/3 before cleaning.", json_schema_extra={"unit": "1"}
    )


class LabelStatistics(_Document):
    """Distribution of one label in one subset; over all components, unless said otherwise."""

    label: str = Field(description="Name of the label.")
    split: str = Field(description="Subset, or 'all'.")
    unit: str = Field(description="Unit of the numbers.")
    n_frames: int = Field(description="Frames that have this label.")
    n_values: int = Field(description="Numbers that enter.")
    mean: float = Field(description="Mean, in `unit`.")
    std: float = Field(description="Standard deviation, in `unit`.")
    minimum: float = Field(description="Smallest, in `unit`.")
    median: float = Field(description="Median, in `unit`.")
    maximum: float = Field(description="Largest, in `unit`.")


class StructureMatch(_Document):
    """A frame whose crystal is also elsewhere."""

    formula: str = Field(description="Reduced formula.")
    source: str = Field(description="Name of the source.")
    source_index: int = Field(description="Frame number in the source, from 0.")
    split: str = Field(description="Subset of the frame.")
    other: str = Field(description="What it is called there: an identifier, or source and frame number.")
    other_split: str = Field(
        description="Subset there: that of the other dataset, or the benchmark's fold in whose test set it is."
    )


class SubsetOverlap(_Document):
    """How much a subset shares with a subset of something else."""

    split: str = Field(description="Subset of this dataset.")
    other_split: str = Field(description="Subset of the other.")
    n_formulas: int = Field(description="Reduced formulas in both.")
    n_frames: int = Field(description="Frames here whose formula is also there.")
    n_structures: int = Field(description="Frames here whose crystal is also there.")


class Overlap(_Document):
    """What a dataset shares with another dataset or with a benchmark."""

    name: str = Field(description="Name of the other.")
    kind: str = Field(description="'dataset' or 'matbench'.")
    place: str = Field(description="Where it was read, as the configuration names it.")
    sha256: str = Field(description="Digest of the other dataset, or SHA-256 of the file.")
    n_frames: int = Field(description="Crystals there.")
    n_materials: int = Field(description="Reduced formulas there.")
    shared_formulas: list[str] = Field(description="Reduced formulas in both, sorted.")
    matches: list[StructureMatch] = Field(
        description="Frames whose crystal is also there: for each subset there, the first that matches."
    )
    subsets: list[SubsetOverlap] = Field(description="The same counted, for each pair of subsets that share something.")
    method: str = Field(description="How structures were compared.")


class DatasetManifest(_Document):
    """All that is known about a dataset besides its frames."""

    schema_version: int = Field(default=DATASET_SCHEMA_VERSION, description="Version of this schema.")
    name: str = Field(description="Name of the dataset.")
    digest: str = Field(description="SHA-256 of the canonical content: crystals, labels, splits, flags, origins.")
    frames_sha256: str | None = Field(
        default=None, description="SHA-256 of frames.extxyz as it lies beside; null until it is written."
    )
    created_at: str = Field(description="UTC time of the build, ISO 8601; not part of the digest.")
    code_version: str = Field(description="Version of fieldflows that built it.")
    n_frames: int = Field(description="Number of frames.")
    n_materials: int = Field(description="Number of reduced formulas.")
    elements: list[str] = Field(description="Chemical symbols, sorted.")
    counts: dict[str, dict[str, int]] = Field(
        description="Per subset: numbers of frames, materials, atoms, and frames that hold each label."
    )
    statistics: list[LabelStatistics] = Field(description="Distribution of every label per subset.")
    rejects: list[FrameFindings] = Field(description="Frames thrown out, with the reason and its number.")
    flags: list[FrameFindings] = Field(description="Frames kept, with what is noteworthy.")
    duplicates: list[Duplicate] = Field(description="Frames left out as copies of others.")
    n_gap: int = Field(default=0, description="Frames left out between blocks of a trajectory.")
    sources: list[SourceRecord] = Field(description="Where the frames came from.")
    overlap: list[Overlap] = Field(default=[], description="What it shares with other datasets and benchmarks.")
    config: dict[str, Any] = Field(description="The configuration that built it.")


class DatasetCheck(_Document):
    """One thing that a dataset has to fulfill."""

    code: str = Field(description="Short name of the check.")
    passed: bool = Field(description="Whether it holds.")
    message: str = Field(description="What was looked at and what was found.")
    where: list[str] = Field(default=[], description="Frames, materials or sources that do not pass; the first 20.")


class DatasetValidation(_Document):
    """What `fieldflows dataset validate` found."""

    name: str = Field(description="Name of the dataset.")
    digest: str = Field(description="Digest of the frames that were checked.")
    n_frames: int = Field(description="Number of frames.")
    valid: bool = Field(description="Whether all checks hold.")
    checks: list[DatasetCheck] = Field(description="The checks, in order.")


class DatasetSide(_Document):
    """One of two datasets that are compared."""

    name: str = Field(description="Name of the dataset.")
    digest: str = Field(description="Its digest.")
    n_frames: int = Field(description="Number of frames.")
    n_materials: int = Field(description="Number of reduced formulas.")


class FrameChange(_Document):
    """A frame that is in both datasets, and not the same."""

    frame: str = Field(description="Formula, source and frame number, in the second dataset.")
    what: list[str] = Field(description="What changed: 'structure', 'flags', 'extra', labels that came, went or moved.")
    largest: dict[str, float | None] = Field(
        description="Largest change of a component of each label that moved, in its internal unit; null if not finite."
    )


class FrameMove(_Document):
    """A frame that changed its subset."""

    frame: str = Field(description="Formula, source and frame number, in the second dataset.")
    material: str = Field(description="Reduced formula.")
    before: str = Field(description="Subset in the first dataset.")
    after: str = Field(description="Subset in the second dataset.")


class DatasetDiff(_Document):
    """What `fieldflows dataset diff` found."""

    first: DatasetSide = Field(description="The first dataset.")
    second: DatasetSide = Field(description="The second dataset.")
    same: bool = Field(description="Whether both have the same digest.")
    n_unchanged: int = Field(description="Frames that are the same in both, subset included.")
    added: list[str] = Field(description="Frames of the second alone.")
    removed: list[str] = Field(description="Frames of the first alone.")
    changed: list[FrameChange] = Field(description="Frames of both whose crystal, labels or flags differ.")
    moved: list[FrameMove] = Field(description="Frames of both that are in another subset.")
    configuration: dict[str, tuple[Any, Any]] = Field(
        description="Settings that differ, by their path: value in the first and in the second, null where absent."
    )
    sources: dict[str, tuple[str | None, str | None]] = Field(
        description="SHA-256 of the files of the sources that differ, in the first and in the second."
    )
    shared_materials: dict[str, dict[str, list[str]]] = Field(
        description="Reduced formulas in both, by subset of the first and subset of the second."
    )


class DatasetDocument(Document):
    """What the job that builds a dataset leaves behind: what is in it, and where it can be had."""

    latest_version: ClassVar[int | None] = 1

    schema_version: int = quantity("1", "Version of this schema.", 1)
    task: Literal["dataset"] = Field("dataset", description="Name of the task.")
    name: str = Field(description="Name of the dataset.")
    digest: str = Field(description="SHA-256 of the labeled frames, by which the dataset is found.")
    archive: ArtifactReference = Field(description="The packed dataset, and where it can be had.")
    directory: str | None = Field(None, description="Folder of the dataset on the machine that built it, if any.")
    n_frames: int = quantity("1", "Number of frames.")
    n_materials: int = quantity("1", "Number of reduced formulas.")
    n_rejects: int = quantity("1", "Frames thrown out.")
    elements: tuple[str, ...] = Field(description="Chemical symbols, sorted.")
    counts: dict[str, dict[str, int]] = quantity(
        "1", "Per subset: numbers of frames, materials, atoms, and frames that hold each label."
    )
    licenses: dict[str, str] = Field(description="License facts of the labels by source.")
    overlap: dict[str, dict[str, int]] = quantity(
        "1", "Reduced formulas and crystals shared with other datasets and benchmarks, by name.", {}
    )
    configuration: dict[str, Any] = Field(description="The configuration that built it.")
    wall_time: float = quantity("s", "Time that the job took.")
    code_version: str = Field(description="Version of fieldflows that built it.")
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC), description="Time of creation, UTC.")
