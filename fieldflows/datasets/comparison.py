"""Two datasets side by side: what came, what went, what changed, what moved to another subset."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldflows.datasets.duplicates import fingerprint
from fieldflows.datasets.encoding import dataset_digest
from fieldflows.datasets.frame import LabeledFrame
from fieldflows.schemas.dataset import DatasetDiff, DatasetManifest, DatasetSide, FrameChange, FrameMove

if TYPE_CHECKING:
    from fieldflows.datasets.dataset import Dataset

Pairs = list[tuple[LabeledFrame, LabeledFrame]]


def compare_datasets(first: Dataset, second: Dataset) -> DatasetDiff:
    """Return the difference of two datasets.

    Frames are paired by content, then by crystal (other labels), then by formula, source and frame number (another
    crystal); what finds no partner was added or removed.

    Args:
        first: What was before.
        second: What is now.
    """
    pairs, removed, added = pair_frames(first.frames, second.frames)
    changed = [change for one, two in pairs if (change := _change(one, two))]
    moved = [
        FrameMove(frame=two.name, material=two.material, before=one.split or "", after=two.split or "")
        for one, two in pairs
        if one.split != two.split
    ]
    touched = {change.frame for change in changed} | {move.frame for move in moved}
    return DatasetDiff(
        first=_side(first.manifest),
        second=_side(second.manifest),
        same=first.digest == second.digest,
        n_unchanged=sum(two.name not in touched for _, two in pairs),
        added=[frame.name for frame in added],
        removed=[frame.name for frame in removed],
        changed=changed,
        moved=moved,
        configuration=_differences(dict(_leaves(first.manifest.config)), dict(_leaves(second.manifest.config))),
        sources=_differences(_hashes(first.manifest), _hashes(second.manifest)),
        shared_materials=shared_materials(first.frames, second.frames),
    )


def pair_frames(
    first: Sequence[LabeledFrame], second: Sequence[LabeledFrame]
) -> tuple[Pairs, list[LabeledFrame], list[LabeledFrame]]:
    """Return pairs of frames that are the same thing, and what is left of each side, in order."""
    pairs: Pairs = []
    left, right = list(first), list(second)
    for key in (_content, fingerprint, _origin):
        waiting: dict[Any, list[LabeledFrame]] = defaultdict(list)
        for frame in left:
            waiting[key(frame)].append(frame)
        rest, used = [], set()
        for frame in right:
            candidates = waiting.get(key(frame))
            if candidates:
                partner = candidates.pop(0)
                pairs.append((partner, frame))
                used.add(id(partner))
            else:
                rest.append(frame)
        left, right = [frame for frame in left if id(frame) not in used], rest
    return pairs, left, right


def _content(frame: LabeledFrame) -> str:
    """Hash of crystal, labels and extras; neither origin nor subset nor flags."""
    return dataset_digest([frame.with_(source="", source_index=0, split=None, flags=())])


def _origin(frame: LabeledFrame) -> tuple[str, str, int]:
    return frame.material, frame.source, frame.source_index


def _change(one: LabeledFrame, two: LabeledFrame) -> FrameChange | None:
    what = [] if fingerprint(one) == fingerprint(two) else ["structure"]
    what += [f"{name} removed" for name in sorted(one.labels.keys() - two.labels.keys())]
    what += [f"{name} added" for name in sorted(two.labels.keys() - one.labels.keys())]
    steps: dict[str, float | None] = {}
    for name in sorted(one.labels.keys() & two.labels.keys()):
        a, b = one.labels[name], two.labels[name]
        if a.shape != b.shape or not np.array_equal(a, b):
            what.append(name)
            step = float(np.abs(a - b).max()) if a.shape == b.shape else np.inf
            steps[name] = step if np.isfinite(step) else None
    if one.flags != two.flags:
        what.append("flags")
    if one.extra.keys() != two.extra.keys() or any(
        not np.array_equal(value, two.extra[name]) for name, value in one.extra.items()
    ):
        what.append("extra")
    if not what:
        return None
    return FrameChange(frame=two.name, what=what, largest=steps)


def _side(manifest: DatasetManifest) -> DatasetSide:
    return DatasetSide(
        name=manifest.name, digest=manifest.digest, n_frames=manifest.n_frames, n_materials=manifest.n_materials
    )


def _hashes(manifest: DatasetManifest) -> dict[str, str]:
    return {source.name: source.sha256 for source in manifest.sources}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested settings by their path; sources go by name, so that their order does not matter."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        for i, item in enumerate(value):
            name = item.get("name") or item.get("path") or i
            yield from _leaves(item, f"{path}[{name}]")
    else:
        yield path, value


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        key: (first.get(key), second.get(key))
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key)
    }


def shared_materials(first: Sequence[LabeledFrame], second: Sequence[LabeledFrame]) -> dict[str, dict[str, list[str]]]:
    """Return the reduced formulas in both, by subset of the first and subset of the second, sorted."""
    here, there = _materials(first), _materials(second)
    table = {
        split: {other: sorted(formulas & others) for other, others in there.items() if formulas & others}
        for split, formulas in here.items()
    }
    return {split: row for split, row in table.items() if row}


def _materials(frames: Sequence[LabeledFrame]) -> dict[str, set[str]]:
    result: dict[str, set[str]] = defaultdict(set)
    for frame in frames:
        result[frame.split or ""].add(frame.material)
    return dict(sorted(result.items()))
