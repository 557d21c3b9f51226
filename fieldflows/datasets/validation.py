"""Whether a dataset is fit for use: content, conventions, symmetry, sum rule, subsets, licenses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.consistency import LARGEST_STRESS
from fieldflows.datasets.duplicates import fingerprint
from fieldflows.datasets.encoding import dataset_digest
from fieldflows.datasets.extxyz import file_sha256
from fieldflows.datasets.filters import CleaningConfig, clean
from fieldflows.datasets.frame import LABEL_SHAPES, LabeledFrame, label_shape
from fieldflows.datasets.manifest import FRAMES_NAME
from fieldflows.datasets.source import Progress
from fieldflows.datasets.splits import SPLITS, SplitConfig, split_group, split_of_formula
from fieldflows.datasets.statistics import count
from fieldflows.errors import DataError
from fieldflows.physics.born_charges import acoustic_sum_residual
from fieldflows.schemas.dataset import DatasetCheck, DatasetManifest, DatasetValidation
from fieldflows.units import EPSILON_VACUUM

if TYPE_CHECKING:
    from fieldflows.datasets.dataset import Dataset

SettingsT = TypeVar("SettingsT", bound=BaseModel)

MOST_NAMED = 20
"""Frames, materials or sources that a check names."""

SUM_RULE = 1e-6
"""Largest |Σ Z*| in e after it was enforced; what is left is rounding."""

UNSTATED = frozenset({"", "not stated", "unknown", "none"})
"""What people write when they have not looked for the license."""


def validate(dataset: Dataset, directory: Path | None = None, progress: Progress | None = None) -> DatasetValidation:
    """Check a dataset that was loaded or just built.

    Args:
        dataset: Frames and manifest.
        directory: Where it lies, to hold the file against its SHA-256.
        progress: Called with ("checking", done, all) frames.
    """
    report = progress or (lambda stage, done, total: None)
    frames, manifest = dataset.frames, dataset.manifest
    checks = [
        *_content(frames, manifest, directory),
        _shapes(frames),
        _permittivity(frames, manifest),
        _stress(frames),
        *_cleaning(frames, manifest, report),
        _sum_rule(frames, manifest),
        *_splits(frames, manifest),
        _licenses(manifest),
    ]
    return DatasetValidation(
        name=manifest.name,
        digest=manifest.digest,
        n_frames=len(frames),
        valid=all(check.passed for check in checks),
        checks=checks,
    )


def _check(code: str, good: str, bad: str, where: Iterable[str]) -> DatasetCheck:
    """Return a check that holds if nothing is to be named."""
    named = list(where)
    return DatasetCheck(
        code=code,
        passed=not named,
        message=good if not named else f"{len(named)} {bad}",
        where=named[:MOST_NAMED],
    )


def _content(frames: Sequence[LabeledFrame], manifest: DatasetManifest, directory: Path | None) -> list[DatasetCheck]:
    digest = dataset_digest(frames)
    wrong = [] if digest == manifest.digest else [f"{digest} found, {manifest.digest} in the manifest"]
    checks = [_check("digest", f"the frames have the digest {digest[:12]}...", "digest differs", wrong)]
    if directory is not None and manifest.frames_sha256 is not None:
        found = file_sha256(directory / FRAMES_NAME)
        wrong = [] if found == manifest.frames_sha256 else [f"{found} found, {manifest.frames_sha256} in the manifest"]
        checks.append(_check("sha256", f"{FRAMES_NAME} has its SHA-256", "file differs", wrong))
    counted = count(frames)
    wrong = [
        f"{subset}: {key} is {counted.get(subset, {}).get(key, 0)}, the manifest says {number}"
        for subset, row in manifest.counts.items()
        for key, number in row.items()
        if counted.get(subset, {}).get(key, 0) != number
    ]
    checks.append(_check("counts", "counts are those of the manifest", "counts differ from the manifest", wrong))
    return checks


def _shapes(frames: Sequence[LabeledFrame]) -> DatasetCheck:
    wrong = [
        f"{frame.name}: {name}"
        for frame in frames
        for name, value in frame.labels.items()
        if name not in LABEL_SHAPES or value.shape != label_shape(name, len(frame)) or not np.isfinite(value).all()
    ]
    return _check("shapes", "labels have their shapes and are finite", "labels are misshapen or not finite", wrong)


def _permittivity(frames: Sequence[LabeledFrame], manifest: DatasetManifest) -> DatasetCheck:
    """Hold the median of tr ε∞/3 of each source against the window that its configuration declares plausible."""
    settings: dict[str, Any] = {}
    for record, source in zip(manifest.sources, manifest.config.get("sources", []), strict=False):
        settings[record.name] = source.get("plausible_epsilon", (1.5, 20.0))
    values = defaultdict(list)
    for frame in frames:
        if "polarizability" in frame.labels:
            values[frame.source].append(1 + np.trace(frame.labels["polarizability"]) / (3 * EPSILON_VACUUM))
    wrong = []
    for source, found in values.items():
        low, high = settings.get(source, (1.5, 20.0))
        if not low <= np.median(found) <= high:
            wrong.append(f"{source}: the median of tr ε∞/3 is {np.median(found):.3g}, plausible is {low:g} to {high:g}")
    medians = ", ".join(f"{source} {np.median(found):.3g}" for source, found in values.items()) or "no polarizabilities"
    return _check("epsilon", f"the median of tr ε∞/3 is plausible ({medians})", "sources are implausible", wrong)


def _stress(frames: Sequence[LabeledFrame]) -> DatasetCheck:
    values = defaultdict(list)
    for frame in frames:
        if "stress" in frame.labels:
            values[frame.source].append(float(np.abs(frame.labels["stress"]).max()))
    wrong = [
        f"{source}: the median of max|σ| is {np.median(found):.3g} eV/Å³, at most {LARGEST_STRESS} is plausible"
        for source, found in values.items()
        if np.median(found) > LARGEST_STRESS
    ]
    return _check("stress", "stresses are plausible", "sources have stresses in another unit", wrong)


def _cleaning(frames: Sequence[LabeledFrame], manifest: DatasetManifest, report: Progress) -> list[DatasetCheck]:
    """Clean once more: what is in a dataset must pass, symmetry checks included, and bear the flags it earns."""
    config = _settings(CleaningConfig, manifest.config.get("cleaning", {}))
    # Z* less its mean breaks the symmetry by up to twice as much as Z*: m − R m Rᵀ is a mean of Z*_s(κ) − R Z*_κ Rᵀ.
    twice = {name: 2 * getattr(config, name) for name in ("reject_charge_symmetry", "flag_charge_symmetry")}
    config = config.model_copy(update=twice)
    rejected: list[str] = []
    symmetry: list[str] = []
    for done, frame in enumerate(frames):
        if done % 20 == 0:
            report("checking", done, len(frames))
        _, why, flags = clean(frame, config)
        rejected.extend(f"{frame.name}: {finding.message}" for finding in why)
        symmetry.extend(
            f"{frame.name}: {finding.message}"
            for finding in flags
            if finding.code.endswith("_symmetry") and finding.code != "no_symmetry" and finding.code not in frame.flags
        )
    report("checking", len(frames), len(frames))
    return [
        _check("cleaning", "every frame passes the cleaning recipe", "findings that reject a frame", rejected),
        _check("symmetry", "labels obey the symmetry, or are flagged", "labels break the symmetry unflagged", symmetry),
    ]


def _sum_rule(frames: Sequence[LabeledFrame], manifest: DatasetManifest) -> DatasetCheck:
    config = _settings(CleaningConfig, manifest.config.get("cleaning", {}))
    allowed = SUM_RULE if config.enforce_sum_rule else config.reject_sum_rule
    wrong = [
        f"{frame.name}: {residual:.3g} e"
        for frame in frames
        if "born_effective_charges" in frame.labels
        and (residual := acoustic_sum_residual(frame.labels["born_effective_charges"])) > allowed
    ]
    return _check("sum_rule", f"max|Σ Z*| is at most {allowed:g} e", "frames break the sum rule", wrong)


def _splits(frames: Sequence[LabeledFrame], manifest: DatasetManifest) -> list[DatasetCheck]:
    """See that nothing is in two subsets: no material (or system), no crystal, and each where the hash puts it."""
    ways = split_ways(manifest)
    strange = [f"{frame.name}: {frame.split}" for frame in frames if frame.split not in SPLITS]
    places: dict[str, set[str]] = defaultdict(set)
    crystals: dict[str, set[str]] = defaultdict(set)
    elsewhere = []
    for frame in frames:
        way = ways.get(frame.source, SplitConfig())
        crystals[fingerprint(frame)].add(frame.split or "")
        if way.strategy == "blocks":
            continue
        places[split_group(frame.material, way)].add(frame.split or "")
        if split_of_formula(frame.material, way) != frame.split:
            elsewhere.append(f"{frame.name}: {frame.split}")
    leaks = [f"{name}: {', '.join(sorted(found))}" for name, found in sorted(places.items()) if len(found) > 1]
    twins = [
        f"{frame.name}: {', '.join(sorted(crystals[fingerprint(frame)]))}"
        for frame in frames
        if len(crystals[fingerprint(frame)]) > 1
    ]
    return [
        _check("subsets", "every frame is in train, valid or test", "frames are in no known subset", strange),
        _check("leaks", "no material is in two subsets", "materials are in more than one subset", leaks),
        _check("twins", "no crystal is in two subsets", "frames have an exact copy in another subset", twins),
        _check("hash", "every frame is where the hash of its material puts it", "frames are in another subset than "
               "the hash says", elsewhere),
    ]  # fmt: skip


def split_ways(manifest: DatasetManifest) -> dict[str, SplitConfig]:
    """Return how each source was divided, by its name."""
    common = manifest.config.get("split", {})
    return {
        record.name: _settings(SplitConfig, source.get("split") or common)
        for record, source in zip(manifest.sources, manifest.config.get("sources", []), strict=False)
    }


def _settings(kind: type[SettingsT], data: Any) -> SettingsT:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        item = error.errors()[0]
        raise DataError(
            f"The manifest's configuration is of another version: {'.'.join(map(str, item['loc']))}: {item['msg']}.",
            "Build the dataset again.",
        ) from None


def _licenses(manifest: DatasetManifest) -> DatasetCheck:
    wrong = [
        f"{source.name}: {source.license or 'nothing'}"
        for source in manifest.sources
        if source.license.strip().rstrip(".").lower() in UNSTATED
    ]
    return _check(
        "licenses", "every source states its license facts", "sources state no license (key `license`)", wrong
    )


def validate_place(place: Path, progress: Progress | None = None) -> DatasetValidation:
    """Check the dataset of a folder, or the one that a configuration would build; nothing is written.

    Raises:
        DataError: If there is no dataset, or a file cannot be read.
        SettingsError: If the configuration is wrong.
        ConventionError: If labels are implausible in the declared convention.
    """
    from fieldflows.datasets.dataset import Dataset, build_dataset

    if place.is_dir():
        return validate(Dataset.load(place, verify=False), place, progress)
    return validate(build_dataset(DatasetConfig.from_yaml(place), progress), None, progress)
