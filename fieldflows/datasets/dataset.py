"""A labeled dataset: frames, manifest, digest; built from a configuration, saved to and loaded from a folder."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.duplicates import find_duplicates
from fieldflows.datasets.encoding import dataset_digest, from_raw, to_raw
from fieldflows.datasets.extxyz import file_sha256, read_extxyz, write_extxyz
from fieldflows.datasets.filters import clean
from fieldflows.datasets.frame import LabeledFrame
from fieldflows.datasets.manifest import FRAMES_NAME, MANIFEST_NAME, BuildRecord, make_manifest, read_manifest
from fieldflows.datasets.overlap import find_overlap
from fieldflows.datasets.source import Progress
from fieldflows.datasets.splits import SPLITS, assign_splits
from fieldflows.errors import DataError, SettingsError, suggestion
from fieldflows.schemas.dataset import DatasetManifest, Duplicate, Finding, FrameFindings

PART = 200
"""Frames that are written between two reports of progress."""

__all__ = [
    "FRAMES_NAME",
    "MANIFEST_NAME",
    "Dataset",
    "LabeledFrame",
    "Progress",
    "build_dataset",
    "check_target",
    "dataset_digest",
    "read_manifest",
]


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

    def save(self, directory: str | Path, overwrite: bool = False, progress: Progress | None = None) -> Path:
        """Write ``frames.extxyz`` and ``manifest.json`` to a folder, all or nothing.

        Args:
            directory: Made if it does not exist.
            overwrite: Replace a dataset that is already there; anything else is never replaced.
            progress: Called with ("writing", done, all).

        Raises:
            DataError: If the folder is taken or cannot be written.
        """
        target = check_target(directory, overwrite)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            try:
                self._write(partial, progress or (lambda stage, done, total: None))
                partial.chmod(0o755)
                _replace(partial, target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            raise DataError(f"The dataset cannot be written to {target}: {error}.") from error
        return target

    def _write(self, directory: Path, report: Progress) -> None:
        with (directory / FRAMES_NAME).open("w", encoding="utf-8") as handle:
            for start in range(0, len(self), PART):
                report("writing", start, len(self))
                write_extxyz(handle, map(to_raw, self.frames[start : start + PART]))
            handle.flush()
            os.fsync(handle.fileno())
        manifest = self.manifest.model_copy(update={"frames_sha256": file_sha256(directory / FRAMES_NAME)})
        with (directory / MANIFEST_NAME).open("w", encoding="utf-8") as handle:
            handle.write(manifest.model_dump_json(indent=1) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
        report("writing", len(self), len(self))

    @classmethod
    def load(cls, directory: str | Path, verify: bool = True) -> Dataset:
        """Read a dataset and check that its content is what the manifest says.

        Args:
            directory: Where it lies.
            verify: Refuse a dataset that was altered.

        Raises:
            DataError: If it is missing, of a newer schema, or was altered.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        path = directory / FRAMES_NAME
        try:
            frames = [from_raw(raw) for raw in read_extxyz(path)] if manifest.n_frames else []
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(
                f"{path} is not what fieldflows wrote: {type(error).__name__}: {error}.", "Build the dataset again."
            ) from error
        if verify and (digest := dataset_digest(frames)) != manifest.digest:
            raise DataError(
                f"{path} was altered: its digest is {digest[:12]}..., the manifest says "
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
    """Read all sources, convert, clean, remove copies, split, and see what is shared with others.

    Args:
        config: Sources, thresholds, fractions, datasets and benchmarks to compare with.
        progress: Called with (stage, done, all) as work goes on.

    Raises:
        SettingsError: If a path or an option is wrong.
        DataError: If a file cannot be read, or no frame is left.
        ConventionError: If labels are implausible in the declared convention.
        ServiceError: If a public service that a source asks cannot be used.
    """
    report = progress or (lambda stage, done, total: None)
    others = [target.locate(config.base) for target in config.overlap]
    record = BuildRecord()
    _read(config, record, report)
    kept = _unique(_cleaned(config, record, report), config, record, report)
    ways = {source.label: source.split or config.split for source in config.sources}
    frames = assign_splits(kept, ways)
    if not frames:
        raise DataError(
            f"No frame of dataset {config.name!r} is left: {len(record.rejects)} were rejected.",
            "See the cleaning thresholds.",
        )
    record.n_gap = len(kept) - len(frames)
    for target, place in zip(config.overlap, others, strict=True):
        record.overlap.append(find_overlap(frames, target, place, report, config.base))
    report("counting", 0, 1)
    manifest = make_manifest(config, frames, record)
    report("counting", 1, 1)
    return Dataset(frames, manifest)


def _read(config: DatasetConfig, record: BuildRecord, report: Progress) -> None:
    paths = [source.locate(config.base, report) for source in config.sources]
    for i, (source, path) in enumerate(zip(config.sources, paths, strict=True)):
        report("reading", i, len(config.sources))
        data = source.read(path, config.base)
        record.read.append((source, path, data))
        record.rejects.extend(data.rejects)
    report("reading", len(paths), len(paths))


def _cleaned(config: DatasetConfig, record: BuildRecord, report: Progress) -> list[LabeledFrame]:
    """Return the frames that pass; the others are noted, and what was read is let go."""
    total = sum(len(data.frames) for _, _, data in record.read)
    kept: list[LabeledFrame] = []
    done = 0
    for _, _, data in record.read:
        frames, data.frames = data.frames, []
        for frame in frames:
            cleaned, why, flags = clean(frame, config.cleaning)
            flags = data.flags.get(frame.source_index, []) + flags
            if why:
                record.rejects.append(_findings(frame, why))
            else:
                kept.append(cleaned.with_(flags=tuple(flag.code for flag in flags)))
                if flags:
                    record.flags.append(_findings(frame, flags))
            done += 1
            report("cleaning", done, total)
    return kept


def _unique(
    kept: list[LabeledFrame], config: DatasetConfig, record: BuildRecord, report: Progress
) -> list[LabeledFrame]:
    """Return the frames without copies of others, which are noted."""
    trajectories = frozenset(source.label for source, _, _ in record.read if source.trajectory)
    copies = find_duplicates(
        kept, config.duplicates, trajectories, lambda done, total: report("comparing", done, total)
    )
    record.duplicates.extend(
        Duplicate(
            source=kept[i].source,
            source_index=kept[i].source_index,
            formula=kept[i].material,
            kind=kind,
            kept_source=kept[j].source,
            kept_source_index=kept[j].source_index,
        )
        for i, (j, kind) in sorted(copies.items())
    )
    dropped = {(copy.source, copy.source_index) for copy in record.duplicates}
    record.flags = [item for item in record.flags if (item.source, item.source_index) not in dropped]
    return [frame for i, frame in enumerate(kept) if i not in copies]


def _findings(frame: LabeledFrame, findings: list[Finding]) -> FrameFindings:
    return FrameFindings(
        source=frame.source, source_index=frame.source_index, formula=frame.material, findings=findings
    )
