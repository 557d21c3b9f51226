"""The manifest of a dataset: written from what a build found, read back and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ase.data import chemical_symbols
from pydantic import ValidationError

from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.encoding import dataset_digest
from fieldflows.datasets.extxyz import file_sha256
from fieldflows.datasets.frame import LabeledFrame
from fieldflows.datasets.source import Source, SourceData
from fieldflows.datasets.statistics import count, label_statistics
from fieldflows.errors import DataError
from fieldflows.schemas.dataset import (
    DATASET_SCHEMA_VERSION,
    DatasetManifest,
    Duplicate,
    FrameFindings,
    Overlap,
    SourceRecord,
)

FRAMES_NAME = "frames.extxyz"
MANIFEST_NAME = "manifest.json"


@dataclass
class BuildRecord:
    """What a build notes on its way.

    Attributes:
        read: Sources with the file and what they made of it.
        rejects: Frames thrown out.
        flags: Frames kept, with what is noteworthy.
        duplicates: Frames left out as copies.
        n_gap: Frames left out between blocks.
        overlap: What is shared with others.
    """

    read: list[tuple[Source, Path, SourceData]] = field(default_factory=list)
    rejects: list[FrameFindings] = field(default_factory=list)
    flags: list[FrameFindings] = field(default_factory=list)
    duplicates: list[Duplicate] = field(default_factory=list)
    n_gap: int = 0
    overlap: list[Overlap] = field(default_factory=list)


def make_manifest(config: DatasetConfig, frames: Sequence[LabeledFrame], record: BuildRecord) -> DatasetManifest:
    """Return the manifest of frames that a build is done with.

    Args:
        config: What was asked for.
        frames: What is left, with subsets.
        record: What was noted on the way.
    """
    from fieldflows import __version__

    numbers = sorted({int(number) for frame in frames for number in set(frame.atoms.numbers.tolist())})
    kept = Counter(frame.source for frame in frames)
    return DatasetManifest(
        name=config.name,
        digest=dataset_digest(frames),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        code_version=__version__,
        n_frames=len(frames),
        n_materials=len({frame.material for frame in frames}),
        elements=sorted(chemical_symbols[number] for number in numbers),
        counts=count(frames),
        statistics=label_statistics(frames),
        rejects=record.rejects,
        flags=record.flags,
        duplicates=record.duplicates,
        n_gap=record.n_gap,
        sources=[
            SourceRecord(
                name=source.label,
                type=source.type,
                path=source.place,
                sha256=file_sha256(path),
                license=source.license,
                reference=source.reference,
                n_frames=data.n_frames,
                n_kept=kept[source.label],
                conversions=data.conversions,
                notes=data.notes,
                median_epsilon_electronic=data.median_epsilon,
            )
            for source, path, data in record.read
        ],
        overlap=record.overlap,
        config=config.model_dump(mode="json"),
    )


def read_manifest(directory: str | Path) -> DatasetManifest:
    """Read the manifest of a dataset without its frames.

    Raises:
        DataError: If it is missing, malformed or of a newer schema.
    """
    path = Path(directory) / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{directory} holds no dataset: {path} cannot be read ({error}).", "Build one: fieldflows dataset build."
        ) from error
    try:
        manifest = DatasetManifest.model_validate_json(text)
    except ValidationError as error:
        item = error.errors()[0]
        where = ".".join(map(str, item["loc"]))
        raise DataError(
            f"{path} is no manifest of a dataset: {where + ': ' if where else ''}{item['msg']}.",
            "It may be half-written: build the dataset again.",
        ) from None
    if manifest.schema_version > DATASET_SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema version {manifest.schema_version}; this version of fieldflows knows "
            f"{DATASET_SCHEMA_VERSION}.",
            "Update fieldflows.",
        )
    return manifest
