"""What may be learned from when a fold is judged: datasets without its materials, and rows of the other folds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fieldflows.datasets.dataset import Dataset, dataset_digest
from fieldflows.datasets.frame import LabeledFrame, reduced_formula
from fieldflows.datasets.splits import SplitConfig, split_of_formula
from fieldflows.datasets.statistics import count, label_statistics
from fieldflows.errors import DataError, EvaluationError
from fieldflows.physics.dielectric import polarizability
from fieldflows.physics.symmetry import space_group

if TYPE_CHECKING:
    from fieldflows.datasets.matbench import MatbenchEntry
    from fieldflows.schemas.dataset import DatasetManifest

CUBIC = "matbench-cubic"
"""Source of the crystals that :func:`with_cubic_rows` adds."""


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


def with_cubic_rows(dataset: Dataset, entries: Sequence[MatbenchEntry], name: str) -> tuple[Dataset, int]:
    """Return a dataset with those rows as further crystals whose n is a whole tensor, and their number.

    The permittivity of a cubic crystal is isotropic, so that n = √(tr ε∞/3) fixes it: α = ε_vac (n² − 1) I.  Rows of
    formulas that the dataset holds already are left out; the others are divided as the dataset is.

    Args:
        dataset: The dataset.
        entries: Rows that may be learned from.
        name: Name of the new dataset.
    """
    known = {frame.material for frame in dataset.frames}
    way = SplitConfig.model_validate(dataset.manifest.config.get("split", {}))
    added = []
    for entry in entries:
        formula = formula_of(entry)
        if formula in known or not _is_cubic(entry):
            continue
        added.append(
            LabeledFrame(
                atoms=entry.atoms,
                labels={"polarizability": polarizability(entry.n**2 * np.eye(3))},
                material=formula,
                source=CUBIC,
                source_index=entry.row,
                split=split_of_formula(formula, way),
            )
        )
    if not added:
        return dataset, 0
    frames = [*dataset.frames, *added]
    manifest = _manifest_of(dataset.manifest, frames, set(), name)
    return Dataset(frames, manifest), len(added)


def _is_cubic(entry: MatbenchEntry) -> bool:
    """Return whether the crystal is cubic; false where no symmetry can be found."""
    atoms = entry.atoms
    try:
        found = space_group(atoms.cell[:], atoms.positions, atoms.numbers)
    except EvaluationError:
        return False
    return found.crystal_system == "cubic"


def _manifest_of(
    manifest: DatasetManifest, frames: Sequence[LabeledFrame], gone: set[str], name: str
) -> DatasetManifest:
    """Return the manifest of frames of which some came or went, in which nothing tells of those that went."""
    sources = [
        source.model_copy(
            update={
                "n_frames": sum(frame.source == source.name for frame in frames),
                "n_kept": sum(frame.source == source.name for frame in frames),
                "conversions": [],
                "notes": ["the dataset that was built was changed for a fold of Matbench"],
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
