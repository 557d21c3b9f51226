"""A labeled dataset: frames, manifest, digest; built from a configuration, saved to and loaded from a folder."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from pydantic import ValidationError

from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.duplicates import find_duplicates
from fieldflows.datasets.encoding import dataset_digest, from_raw, to_raw
from fieldflows.datasets.extxyz import file_sha256, read_extxyz, write_extxyz
from fieldflows.datasets.filters import clean
from fieldflows.datasets.frame import LabeledFrame
from fieldflows.datasets.source import Progress, Source, SourceData
from fieldflows.datasets.splits import SPLITS, split_blocks, split_of_formula
from fieldflows.datasets.statistics import count, label_statistics
from fieldflows.errors import DataError, SettingsError, suggestion
from fieldflows.schemas.dataset import (
    DATASET_SCHEMA_VERSION,
    DatasetManifest,
    Duplicate,
    Finding,
    FrameFindings,
    SourceRecord,
)

FRAMES_NAME = "frames.extxyz"
MANIFEST_NAME = "manifest.json"

__all__ = ["Dataset", "LabeledFrame", "Progress", "build_dataset", "dataset_digest"]


@dataclass(frozen=True)
class Dataset:
    """Labeled frames that passed the cleaning, each in one subset.

    Attributes:
        frames: All frames, in the order of the sources.
        manifest: Counts, statistics, rejects, sources, configuration.
    """

    frames: list[LabeledFrame]
    manifest: DatasetManifest

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical content."""
        return self.manifest.digest

    def __len__(self) -> int:
        return len(self.frames)

    def subset(self, split: str) -> list[LabeledFrame]:
        """Return the frames of "train", "valid" or "test".

        Raises:
            SettingsError: If there is no such subset.
        """
        if split not in SPLITS:
            raise SettingsError(f"There is no subset {split!r}.", suggestion(split, SPLITS))
        return [frame for frame in self.frames if frame.split == split]

    def save(self, directory: str | Path, overwrite: bool = False) -> Path:
        """Write ``frames.extxyz`` and ``manifest.json`` to a folder, all or nothing.

        Args:
            directory: Made if it does not exist.
            overwrite: Replace a dataset that is already there; anything else is never replaced.

        Raises:
            DataError: If the folder is taken or cannot be written.
        """
        target = check_target(directory, overwrite)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            try:
                self._write(partial)
                partial.chmod(0o755)
                _replace(partial, target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            raise DataError(f"The dataset cannot be written to {target}: {error}.") from error
        return target

    def _write(self, directory: Path) -> None:
        with (directory / FRAMES_NAME).open("w", encoding="utf-8") as handle:
            write_extxyz(handle, map(to_raw, self.frames))
            handle.flush()
            os.fsync(handle.fileno())
        with (directory / MANIFEST_NAME).open("w", encoding="utf-8") as handle:
            handle.write(self.manifest.model_dump_json(indent=1) + "\n")
            handle.flush()
            os.fsync(handle.fileno())

    @classmethod
    def load(cls, directory: str | Path) -> Dataset:
        """Read a dataset and check that its content is what the manifest says.

        Raises:
            DataError: If it is missing, of a newer schema, or was altered.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        frames = [from_raw(raw) for raw in read_extxyz(directory / FRAMES_NAME)] if manifest.n_frames else []
        digest = dataset_digest(frames)
        if digest != manifest.digest:
            raise DataError(
                f"{directory / FRAMES_NAME} was altered: its digest is {digest[:12]}..., the manifest says "
                f"{manifest.digest[:12]}... ({len(frames)} frames, {manifest.n_frames} expected).",
                "Build the dataset again.",
            )
        return cls(frames, manifest)


def check_target(directory: str | Path, overwrite: bool = False) -> Path:
    """Return the folder as a path if a dataset may be written there.

    Raises:
        DataError: If it holds a dataset and ``overwrite`` is false, or holds anything else.
    """
    target = Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        replaceable = (target / MANIFEST_NAME).is_file()
        if not (overwrite and replaceable):
            what = "a dataset" if replaceable else "something that is no dataset"
            hint = "Allow overwriting (--force)" if replaceable else "Choose another folder"
            raise DataError(f"{target} already holds {what}.", f"{hint}.")
    above = next(folder for folder in target.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise DataError(f"{target} cannot be written: {above} is no folder that you may write to.")
    return target


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
        raise DataError(
            f"{path} is no manifest of a dataset: {'.'.join(map(str, item['loc']))}: {item['msg']}."
        ) from None
    if manifest.schema_version > DATASET_SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema version {manifest.schema_version}; this version of fieldflows knows "
            f"{DATASET_SCHEMA_VERSION}.",
            "Update fieldflows.",
        )
    return manifest


def _replace(partial: Path, target: Path) -> None:
    """Move a finished folder to its place; an older one is set aside first and put back if that fails."""
    if not target.exists():
        partial.rename(target)
        return
    aside = Path(mkdtemp(prefix=f".{target.name}.old.", dir=target.parent)) / "old"
    target.rename(aside)
    try:
        partial.rename(target)
    except OSError:
        aside.rename(target)
        raise
    finally:
        shutil.rmtree(aside.parent, ignore_errors=True)


def build_dataset(config: DatasetConfig, progress: Progress | None = None) -> Dataset:
    """Read all sources, convert, clean, remove copies, split.

    Args:
        config: Sources, thresholds, fractions.
        progress: Called with (stage, done, all) as work goes on.

    Raises:
        SettingsError: If a path or an option is wrong.
        DataError: If a file cannot be read, or no frame is left.
        ConventionError: If labels are implausible in the declared convention.
        ServiceError: If a public service that a source asks cannot be used.
    """
    report = progress or (lambda stage, done, total: None)
    kept: list[LabeledFrame] = []
    rejects: list[FrameFindings] = []
    flagged: list[FrameFindings] = []
    read: list[tuple[Source, Path, SourceData]] = []
    paths = [source.locate(config.base, report) for source in config.sources]
    for i, (source, path) in enumerate(zip(config.sources, paths, strict=True)):
        report("reading", i, len(config.sources))
        read.append((source, path, source.read(path, config.base)))
    report("reading", len(read), len(read))
    total = sum(len(data.frames) for _, _, data in read)
    done = 0
    for _, _, data in read:
        rejects.extend(data.rejects)
        for frame in data.frames:
            cleaned, why, flags = clean(frame, config.cleaning)
            flags = data.flags.get(frame.source_index, []) + flags
            if why:
                rejects.append(_findings(frame, why))
            else:
                kept.append(cleaned.with_(flags=tuple(flag.code for flag in flags)))
                if flags:
                    flagged.append(_findings(frame, flags))
            done += 1
            report("cleaning", done, total)
    trajectories = frozenset(source.label for source, _, _ in read if source.trajectory)
    copies = find_duplicates(
        kept, config.duplicates, trajectories, lambda done, total: report("comparing", done, total)
    )
    duplicates = [
        Duplicate(
            source=kept[i].source,
            source_index=kept[i].source_index,
            formula=kept[i].material,
            kind=kind,
            kept_source=kept[j].source,
            kept_source_index=kept[j].source_index,
        )
        for i, (j, kind) in sorted(copies.items())
    ]
    dropped = {(copy.source, copy.source_index) for copy in duplicates}
    kept = [frame for i, frame in enumerate(kept) if i not in copies]
    frames = _split(kept, config)
    if not frames:
        raise DataError(
            f"No frame of dataset {config.name!r} is left: {len(rejects)} were rejected.",
            "See the cleaning thresholds.",
        )
    manifest = _manifest(config, frames, read, rejects, duplicates, len(kept) - len(frames), [
        item for item in flagged if (item.source, item.source_index) not in dropped
    ])  # fmt: skip
    return Dataset(frames, manifest)


def _findings(frame: LabeledFrame, findings: list[Finding]) -> FrameFindings:
    return FrameFindings(
        source=frame.source, source_index=frame.source_index, formula=frame.material, findings=findings
    )


def _split(frames: list[LabeledFrame], config: DatasetConfig) -> list[LabeledFrame]:
    """Give every frame its subset; frames in a gap are left out.

    Raises:
        SettingsError: If a material is divided in two ways, which would leak, or blocks cut several materials.
    """
    ways = {source.label: source.split or config.split for source in config.sources}
    way_of: dict[str, tuple[str, Any]] = {}
    groups: dict[str, list[int]] = defaultdict(list)
    result: list[str | None] = [None] * len(frames)
    for i, frame in enumerate(frames):
        way = ways[frame.source]
        origin, known = way_of.setdefault(frame.material, (frame.source, way))
        if way.strategy == "blocks":
            groups[frame.source].append(i)
        else:
            result[i] = split_of_formula(frame.material, way)
        if known != way or (way.strategy == "blocks" and origin != frame.source):
            raise SettingsError(
                f"{frame.material} occurs in the sources {origin!r} and {frame.source!r}, which are split differently: "
                "it could be trained on and tested on.",
                "Give both sources the same split by formula, or build two datasets.",
            )
    for name, members in groups.items():
        materials = {frames[i].material for i in members}
        if len(materials) > 1:
            raise SettingsError(
                f"Source {name!r} holds {len(materials)} materials; split by blocks is for one.",
                "Use strategy: formula.",
            )
        for i, split in zip(members, split_blocks([frames[i].source_index for i in members], ways[name]), strict=True):
            result[i] = split
    return [frame.with_(split=split) for frame, split in zip(frames, result, strict=True) if split is not None]


def _manifest(
    config: DatasetConfig,
    frames: list[LabeledFrame],
    read: list[tuple[Source, Path, SourceData]],
    rejects: list[FrameFindings],
    duplicates: list[Duplicate],
    n_gap: int,
    flags: list[FrameFindings],
) -> DatasetManifest:
    from fieldflows import __version__

    symbols = sorted({symbol for frame in frames for symbol in frame.atoms.symbols})
    return DatasetManifest(
        name=config.name,
        digest=dataset_digest(frames),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        code_version=__version__,
        n_frames=len(frames),
        n_materials=len({frame.material for frame in frames}),
        elements=symbols,
        counts=count(frames),
        statistics=label_statistics(frames),
        rejects=rejects,
        flags=flags,
        duplicates=duplicates,
        n_gap=n_gap,
        sources=[
            SourceRecord(
                name=source.label,
                type=source.type,
                path=source.place,
                sha256=file_sha256(path),
                license=source.license,
                reference=source.reference,
                n_frames=data.n_frames,
                n_kept=sum(frame.source == source.label for frame in frames),
                conversions=data.conversions,
                notes=data.notes,
                median_epsilon_electronic=data.median_epsilon,
            )
            for source, path, data in read
        ],
        config=config.model_dump(mode="json"),
    )
