"""What may be learned from when a fold is judged: datasets without its materials, and rows of the other folds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from fieldflows.datasets.dataset import Dataset, dataset_digest
from fieldflows.datasets.frame import reduced_formula
from fieldflows.datasets.statistics import count, label_statistics
from fieldflows.errors import DataError

if TYPE_CHECKING:
    from fieldflows.datasets.frame import LabeledFrame
    from fieldflows.datasets.matbench import MatbenchEntry
    from fieldflows.schemas.dataset import DatasetManifest


def formula_of(entry: MatbenchEntry) -> str:
    """Return the reduced formula of a row."""
    return reduced_formula(entry.raw.numbers)


def of_fold(entries: Sequence[MatbenchEntry], fold: int) -> list[MatbenchEntry]:
    """Return the rows that judge in a fold."""
    return [entry for entry in entries if entry.fold == fold]


def other_folds(entries: Sequence[MatbenchEntry], fold: int) -> list[MatbenchEntry]:
    """Return the rows that may be learned from when a fold is judged: of other folds, and of other formulas.

    Matbench itself divides by rows, so that polymorphs of one formula lie in several folds.  Rows that share a formula
    with the fold are left out here, which is stricter than the benchmark asks.
    """
    held = {formula_of(entry) for entry in of_fold(entries, fold)}
    return [entry for entry in entries if entry.fold != fold and formula_of(entry) not in held]


def without_materials(dataset: Dataset, formulas: Collection[str], name: str) -> Dataset:
    """Return a dataset without the crystals of some formulas, whatever their structure; nothing else moves.

    Two crystals are the same only if they have the same reduced formula, so that what matches by structure goes with
    what matches by formula.  Counts and statistics are those of what is left, and no list of the manifest names what
    was taken out.

    Args:
        dataset: The dataset.
        formulas: Reduced formulas to take out.
        name: Name of the new dataset.

    Raises:
        DataError: If no training frame is left.
    """
    gone = set(formulas)
    frames = [frame for frame in dataset.frames if frame.material not in gone]
    if not any(frame.split == "train" for frame in frames):
        raise DataError(
            f"Without {len(gone)} formulas, dataset {dataset.manifest.name!r} has no training frame left "
            f"({len(frames)} of {len(dataset)} frames in all).",
            "Train on more crystals than those that are judged.",
        )
    return Dataset(frames, _manifest_of(dataset.manifest, frames, gone, name))


def _manifest_of(
    manifest: DatasetManifest, frames: Sequence[LabeledFrame], gone: set[str], name: str
) -> DatasetManifest:
    """Return the manifest of the frames that are left, in which nothing tells of the others."""
    sources = [
        source.model_copy(
            update={
                "n_frames": sum(frame.source == source.name for frame in frames),
                "n_kept": sum(frame.source == source.name for frame in frames),
                "conversions": [],
                "notes": ["cut: crystals of some formulas were taken out of the dataset that was built"],
                "median_epsilon_electronic": None,
            }
        )
        for source in manifest.sources
    ]
    return manifest.model_copy(
        update={
            "name": name,
            "digest": dataset_digest(list(frames)),
            "frames_sha256": None,
            "n_frames": len(frames),
            "n_materials": len({frame.material for frame in frames}),
            "elements": sorted({symbol for frame in frames for symbol in frame.atoms.symbols}),
            "counts": count(frames),
            "statistics": label_statistics(frames),
            "rejects": [],
            "flags": [item for item in manifest.flags if item.formula not in gone],
            "duplicates": [item for item in manifest.duplicates if item.formula not in gone],
            "overlap": [],
            "sources": sources,
        }
    )
