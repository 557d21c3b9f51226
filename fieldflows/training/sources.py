"""The labeled frames of a run: one dataset, or one for each head of a network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fieldflows.datasets.source import expand_path
from fieldflows.errors import LabelError, SettingsError, TrainingError, suggestion
from fieldflows.training.config import TrainingConfig
from fieldflows.training.data_config import DatasetSection, HeadSection

if TYPE_CHECKING:
    from fieldflows.datasets.dataset import Dataset
    from fieldflows.datasets.frame import LabeledFrame

HEAD = "head"
"""Key in ``LabeledFrame.extra`` under which a frame carries the name of its head."""

RELAXED = "relaxed"
"""Key in ``LabeledFrame.extra`` under which a dataset says that a frame is at rest."""


@dataclass(frozen=True)
class HeadedDataset:
    """The frames of all heads, each with the name of its head.

    Attributes:
        frames: The frames, in the order of the heads.
        digest: SHA-256 over the digests of the heads.
        notes: What was decided on the way, for the log.
    """

    frames: list[LabeledFrame]
    digest: str
    notes: list[str] = field(default_factory=list)

    def subset(self, split: str) -> list[LabeledFrame]:
        """Return the frames of "train", "valid" or "test"."""
        return [frame for frame in self.frames if frame.split == split]


def open_dataset(section: DatasetSection, labels: Sequence[str] = ()) -> Dataset:
    """Return a dataset: loaded, built, or found by its digest; with labels of crystals at rest, if it says so.

    Args:
        section: Where it is.
        labels: Observables that are trained on.

    Raises:
        SettingsError: If the directory or file is missing or wrong.
        DataError: If no place knows the digest, or the dataset is damaged.
        LabelError: If frames are said to be at rest that are not.
    """
    from fieldflows.datasets.archive import load_by_digest
    from fieldflows.datasets.config import DatasetConfig
    from fieldflows.datasets.dataset import Dataset, build_dataset

    if section.digest is not None:
        data = load_by_digest(section.digest)
    elif section.path is not None:
        path = expand_path(section.path)
        if not path.is_dir():
            raise SettingsError(
                f"There is no dataset directory {path}.", "Build it first: `fieldflows dataset build CONFIG --out DIR`."
            )
        data = Dataset.load(path)
    else:
        data = build_dataset(DatasetConfig.from_yaml(expand_path(str(section.config))))
    if section.path_frames is not None:
        data = Dataset(thinned(data.frames, section.path_frames), data.manifest)
    if section.relaxed is None:
        return data
    config = DatasetConfig.model_validate(data.manifest.config)
    moving = {source.label for source in config.sources if source.trajectory}
    return Dataset(at_rest(data.frames, section.relaxed, labels, moving), data.manifest)


def thinned(frames: Sequence[LabeledFrame], path_frames: Sequence[int]) -> list[LabeledFrame]:
    """Return the frames without those of polarization paths that are in the training subset and not asked for.

    Args:
        frames: The frames; those of paths carry ``path_index`` in ``extra``.
        path_frames: Numbers of the frames to keep of each path.

    Raises:
        SettingsError: If there is no path, or none of its frames would stay.
    """
    indices = {int(frame.extra["path_index"]) for frame in frames if "path_index" in frame.extra}
    if not indices & set(path_frames):
        found = f"they have the numbers {min(indices)} to {max(indices)}" if indices else "no frame is of a path"
        raise SettingsError(
            f"dataset.path_frames keeps the frames {', '.join(map(str, path_frames))} of each path, but {found}.",
            "Name frames that there are, or leave path_frames out.",
        )
    return [
        frame
        for frame in frames
        if frame.split != "train" or int(frame.extra.get("path_index", path_frames[0])) in path_frames
    ]


def at_rest(
    frames: Sequence[LabeledFrame], relaxed: str | Sequence[str], labels: Sequence[str], moving: Iterable[str] = ()
) -> list[LabeledFrame]:
    """Return the frames, with forces and stress of zero as labels of those that are relaxed and have none.

    Args:
        frames: The frames.
        relaxed: "stated" for those whose dataset says so, or the names of sources of which all frames are.
        labels: Observables that are trained on; no other label is added.
        moving: Sources that are trajectories or paths.

    Raises:
        SettingsError: If there is no such source, or it is a trajectory or path.
        LabelError: If a frame that is said to be at rest has a label of forces above 0.05 eV/Å; names it.
    """
    wanted = [key for key in ("forces", "stress") if key in labels]
    if not wanted:
        raise SettingsError(
            "dataset.relaxed adds labels of forces and stress, but the loss has a term for neither.",
            "Add loss.terms.forces or loss.terms.stress, or leave 'relaxed' out.",
        )
    if not isinstance(relaxed, str):
        known = sorted({frame.source for frame in frames})
        for name in relaxed:
            if name not in known:
                raise SettingsError(f"dataset.relaxed names the source {name!r}.", suggestion(name, known))
            if name in moving:
                raise SettingsError(
                    f"dataset.relaxed names the source {name!r}, which is a trajectory or a path: its frames are not "
                    "at rest.",
                    "Leave it out.",
                )
    result = []
    for frame in frames:
        stated = frame.extra.get(RELAXED) in (True, 1, "T", "true", "True")
        if not (stated and frame.source not in moving if isinstance(relaxed, str) else frame.source in relaxed):
            result.append(frame)
            continue
        force = float(np.abs(frame.labels["forces"]).max()) if "forces" in frame.labels else 0.0
        if force > 0.05:
            raise LabelError(
                f"{frame.name} is said to be relaxed, but its label of forces is up to {force:.3g} eV/Å.",
                "Take its source out of dataset.relaxed.",
            )
        zero = {"forces": np.zeros((len(frame), 3)), "stress": np.zeros((3, 3))}
        result.append(frame.with_(labels={**{key: zero[key] for key in wanted}, **frame.labels}))
    return result


def load_heads(config: TrainingConfig, cache: Path | None = None) -> HeadedDataset:
    """Return the frames of all heads; those of replays last, because their splits follow the others.

    Args:
        config: The configuration, with heads.
        cache: Folder for the labels of the foundation.

    Raises:
        SettingsError: If a dataset is missing, or formulas of one head are tested on and trained on in another.
        TrainingError: If a head has no frames.
    """
    from fieldflows.training.replay import replay_frames

    parts: dict[str, list[LabeledFrame]] = {}
    digests, notes = {}, []
    for name, head in config.heads.items():
        if head.dataset is not None:
            data = open_dataset(head.dataset, config.loss.labels)
            parts[name], digests[name] = data.frames, data.digest
    check_leakage(parts)
    for name, head in config.heads.items():
        if head.replay is not None:
            found = replay_frames(config, name, parts, cache)
            parts[name], digests[name] = found.frames, found.digest
            notes += found.notes
    frames = [frame.with_(extra={**frame.extra, HEAD: name}) for name in config.heads for frame in parts[name]]
    digest = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    return HeadedDataset(frames, digest, notes)


def by_head(frames: Iterable[LabeledFrame], heads: Sequence[str]) -> dict[str, list[LabeledFrame]]:
    """Return frames by the name of the head that they carry.

    Raises:
        TrainingError: If a frame carries none, or one that the configuration does not have.
    """
    parts: dict[str, list[LabeledFrame]] = {name: [] for name in heads}
    for frame in frames:
        name = frame.extra.get(HEAD)
        if name not in parts:
            raise TrainingError(
                f"{frame.name} carries the head {name!r}; the configuration has {', '.join(heads)}.",
                "Give each frame the name of its head.",
            )
        parts[str(name)].append(frame)
    return parts


def labels_of(head: HeadSection, wanted: Sequence[str]) -> dict[str, float]:
    """Return the observables that frames of a head are trained on, with their factors."""
    if head.labels is not None:
        return {key: head.labels[key] for key in wanted if key in head.labels}
    allowed = wanted if head.replay is None else [key for key in wanted if key in head.replay.observables]
    return dict.fromkeys(allowed, 1.0)


def check_heads(parts: Mapping[str, Sequence[LabeledFrame]], config: TrainingConfig) -> None:
    """Raise unless each head has training frames with each label that it asks for.

    Raises:
        TrainingError: Names the head, what it asks for and what there is.
    """
    for name, head in config.heads.items():
        train = [frame for frame in parts[name] if frame.split == "train"]
        if not train:
            raise TrainingError(
                f"Head {name!r} has no training frames ({len(parts[name])} frames in all).", "Leave the head out."
            )
        have = sorted({key for frame in train for key in frame.labels})
        asked = labels_of(head, config.loss.labels)
        if not set(asked) & set(have):
            raise TrainingError(
                f"None of the {len(train)} training frames of head {name!r} has a label to train on "
                f"({', '.join(asked) or 'none'}); they hold {', '.join(have) or 'no labels'}.",
                "Change heads.labels, loss.terms or the dataset.",
            )
        missing = [key for key in head.labels or () if key not in have]
        if missing:
            raise TrainingError(
                f"Head {name!r} asks for {', '.join(missing)}, but none of its {len(train)} training frames has that "
                f"label; they hold {', '.join(have)}.",
                f"Take it out of heads.{name}.labels, or give the head another dataset.",
            )


def check_leakage(parts: Mapping[str, Sequence[LabeledFrame]]) -> None:
    """Raise if a formula is trained on in one head and judges another.

    Args:
        parts: Head to frames with their splits.

    Raises:
        SettingsError: Names formulas and heads.
    """
    trained: dict[str, set[str]] = {}
    judging: dict[str, set[str]] = {}
    for name, frames in parts.items():
        for frame in frames:
            table = trained if frame.split == "train" else judging
            table.setdefault(frame.material, set()).add(name)
    both = sorted(trained.keys() & judging.keys())
    leaks = [(f, a, b) for f in both for a in sorted(trained[f]) for b in sorted(judging[f]) if a != b]
    if leaks:
        every = sorted({leak[0] for leak in leaks})
        shown = ", ".join(every[:8]) + (f" and {len(every) - 8} more" if len(every) > 8 else "")
        formula, first, second = leaks[0]
        raise SettingsError(
            f"Formulas are trained on in one head and judge another: {shown} ({formula} trains {first!r} and judges "
            f"{second!r}).",
            "Split the datasets of all heads by formula with the same fractions and salt.",
        )
