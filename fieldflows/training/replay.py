"""Replay: structures that a fine-tuned network has to go on describing, with labels or those of the foundation."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from fieldflows.backends.mace_field.derivatives import respond
from fieldflows.backends.mace_field.descriptors import invariant_features
from fieldflows.backends.mace_field.foundation import load_backbone
from fieldflows.backends.mace_field.graphs import build_graph, collate, to_device
from fieldflows.backends.mace_field.network import MACEFieldNetwork
from fieldflows.datasets.encoding import dataset_digest
from fieldflows.datasets.extxyz import read_extxyz
from fieldflows.datasets.frame import LabeledFrame, reduced_formula
from fieldflows.datasets.source import expand_path
from fieldflows.datasets.sources.extxyz_generic import ExtxyzGeneric, LabelDeclaration
from fieldflows.datasets.splits import SplitConfig, split_of_formula
from fieldflows.errors import LabelError, SettingsError, TrainingError, suggestion
from fieldflows.observables import OBSERVABLES
from fieldflows.training.config import TrainingConfig
from fieldflows.training.data_config import ReplaySection
from fieldflows.training.sources import open_dataset

FloatArray = NDArray[np.float64]

CONVENTIONS: dict[str, str] = {"energy": "eV", "forces": "eV_per_angstrom", "stress": "eV_per_angstrom3"}
"""How a file of replay structures writes its labels."""

BATCH_ATOMS = 256
"""Atoms that the foundation labels at once."""


@dataclass(frozen=True)
class Replay:
    """The frames of a replay.

    Attributes:
        frames: Labeled, with their splits.
        digest: SHA-256 of structures, settings and the foundation.
        notes: What was decided, for the log.
    """

    frames: list[LabeledFrame]
    digest: str
    notes: list[str]


def replay_frames(
    config: TrainingConfig, name: str, others: Mapping[str, Sequence[LabeledFrame]], cache: Path | None = None
) -> Replay:
    """Return the frames of a replay head.

    Structures with elements that the backbone does not know are left out, and so are those of formulas that judge
    another head.

    Args:
        config: The configuration.
        name: Name of the head.
        others: Frames of the other heads.
        cache: Folder for the labels of the foundation.

    Raises:
        SettingsError: If the backbone lacks the head to start from.
        TrainingError: If no structure is left.
        LabelError: If labels are to come from a file that has none.
    """
    head = config.heads[name]
    assert head.replay is not None
    observables = tuple(key for key in head.replay.observables if key in config.loss.labels)
    section = head.replay.model_copy(update={"observables": observables})
    notes: list[str] = []
    backbone = _backbone(config) if section.labels == "foundation" or section.selection == "farthest" else None
    frames = _candidates(section, others)
    total = len(frames)
    if backbone is not None:
        known = set(backbone.config.atomic_numbers)
        frames = [frame for frame in frames if set(frame.atoms.numbers.tolist()) <= known]
    known_splits = defaultdict(set)
    for frame in (frame for members in others.values() for frame in members):
        known_splits[frame.material].add(frame.split)
    frames = [
        frame.with_(split=split)
        for frame in frames
        if (split := _split(frame.material, known_splits.get(frame.material), section))
    ]
    if not frames:
        raise TrainingError(
            f"Head {name!r} has no structure to replay: of {total}, all hold elements that the backbone does not know "
            "or formulas that judge other heads.",
            "Give it other structures.",
        )
    if len(frames) < total:
        notes.append(f"head {name}: {total - len(frames)} of {total} structures were left out of the replay")
    count = min(section.frames or len(frames), len(frames))
    chosen = _select(frames, count, section, config.run.seed, backbone)
    frames = [frames[i] for i in chosen]
    notes.append(f"head {name}: {count} structures for the replay ({section.selection})")
    digest = _digest(frames, section, head.start_from, backbone)
    if section.labels == "foundation":
        assert backbone is not None
        frames = _labeled(frames, backbone, head.start_from, section.observables, digest, cache)
        notes.append(f"head {name}: labels of the foundation for {', '.join(section.observables)}")
    return Replay(frames, digest, notes)


def _backbone(config: TrainingConfig) -> MACEFieldNetwork:
    name = str(config.model.backbone)
    path = expand_path(name)
    network, _ = load_backbone(
        path if path.is_file() else name, trust_pickle=config.model.trust_pickle, dtype=torch.float64
    )
    return network.to(config.run.device).eval().requires_grad_(False)


def _candidates(section: ReplaySection, others: Mapping[str, Sequence[LabeledFrame]]) -> list[LabeledFrame]:
    """Return the structures, with labels if the file is to give them."""
    if section.from_heads:
        found = [f for frames in others.values() for f in frames if f.split == "train"]
        return [frame.with_(labels={}) for frame in found]
    if section.dataset is not None:
        frames = open_dataset(section.dataset).frames
    else:
        frames = _read(expand_path(str(section.path)), section)
    if section.labels == "foundation":
        return [frame.with_(labels={}) for frame in frames]
    kept = [
        frame.with_(labels={key: frame.labels[key] for key in section.observables if key in frame.labels})
        for frame in frames
    ]
    for key in section.observables:
        if not any(key in frame.labels for frame in kept):
            have = sorted({label for frame in frames for label in frame.labels})
            raise LabelError(
                f"The replay structures have no label of {key}; they hold {', '.join(have) or 'none'}.",
                "Take it out of replay.observables, or let the foundation label them (labels: foundation).",
            )
    return [frame for frame in kept if frame.labels]


def _read(path: Path, section: ReplaySection) -> list[LabeledFrame]:
    if section.labels == "foundation":
        return [
            LabeledFrame(raw.atoms(), {}, reduced_formula(raw.numbers), "replay", index)
            for index, raw in enumerate(read_extxyz(path))
        ]
    declared = {key: LabelDeclaration(convention=CONVENTIONS[key]) for key in section.observables}
    return ExtxyzGeneric(path=str(path), name="replay", labels=declared).read(path).frames


def _split(formula: str, known: set[str | None] | None, section: ReplaySection) -> str | None:
    """Return the split of a formula: that of other heads if they have it, else by hash; None leaves it out."""
    if known:
        return next(iter(known)) if known in ({"train"}, {"valid"}) else None
    fraction = section.valid_fraction
    return split_of_formula(formula, SplitConfig(train=1 - fraction, valid=fraction, test=0.0))


def _select(
    frames: Sequence[LabeledFrame],
    count: int,
    section: ReplaySection,
    seed: int,
    backbone: MACEFieldNetwork | None,
) -> list[int]:
    """Return the indices of the structures to take, ascending."""
    if count == len(frames):
        return list(range(count))
    if section.selection == "random":
        return sorted(np.random.default_rng([seed, 20]).permutation(len(frames))[:count].tolist())
    assert backbone is not None
    return sorted(farthest_points(np.stack([_mean_features(backbone, frame) for frame in frames]), count))


def _mean_features(network: MACEFieldNetwork, frame: LabeledFrame) -> FloatArray:
    graph = build_graph(frame.atoms, network.config.atomic_numbers, network.config.r_max)
    features = invariant_features(network, to_device(graph, network.device))
    return np.asarray(features.mean(dim=0).cpu().numpy(), dtype=np.float64)


def farthest_points(points: FloatArray, count: int) -> list[int]:
    """Return indices of points, each the farthest from those before it; the first is the one farthest from the mean.

    Args:
        points: (n, d).
        count: How many.
    """
    first = int(np.argmax(np.square(points - points.mean(axis=0)).sum(axis=1)))
    chosen = [first]
    nearest = np.square(points - points[first]).sum(axis=1)
    while len(chosen) < count:
        nearest[chosen[-1]] = -1.0
        following = int(np.argmax(nearest))
        chosen.append(following)
        nearest = np.minimum(nearest, np.square(points - points[following]).sum(axis=1))
    return chosen


def _digest(
    frames: Sequence[LabeledFrame],
    section: ReplaySection,
    start: str | None,
    backbone: MACEFieldNetwork | None,
) -> str:
    """Return the hash of structures, labels or what makes them, and settings."""
    content = None
    if backbone is not None and section.labels == "foundation":
        weights = hashlib.sha256()
        for key, value in sorted(backbone.state_dict().items()):
            weights.update(key.encode() + value.detach().cpu().numpy().tobytes())
        content = weights.hexdigest()
    text = json.dumps([dataset_digest(list(frames)), section.labels, list(section.observables), start, content])
    return hashlib.sha256(text.encode()).hexdigest()


def _labeled(
    frames: Sequence[LabeledFrame],
    network: MACEFieldNetwork,
    start: str | None,
    observables: Sequence[str],
    digest: str,
    cache: Path | None,
) -> list[LabeledFrame]:
    """Return the frames with what the foundation says about them, kept in a file of the run directory."""
    path = None if cache is None else cache / f"replay-{digest[:16]}.npz"
    sizes = [len(frame) for frame in frames]
    arrays = _read_cache(path, observables, sizes) or foundation_labels(network, frames, start, observables)
    if path is not None and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp.npz")
        np.savez(partial, **arrays)  # type: ignore[arg-type]
        os.replace(partial, path)
    ends = np.cumsum(sizes)
    return [
        frame.with_(
            labels={
                key: value[end - size : end] if OBSERVABLES[key].per_atom else np.asarray(value[index])
                for key, value in arrays.items()
            }
        )
        for index, (frame, size, end) in enumerate(zip(frames, sizes, ends, strict=True))
    ]


def _read_cache(path: Path | None, observables: Sequence[str], sizes: Sequence[int]) -> dict[str, FloatArray] | None:
    """Return the arrays of a file if it is whole and has the right shapes."""
    if path is None or not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: np.asarray(stored[key], dtype=np.float64) for key in observables}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        path.unlink(missing_ok=True)
        return None
    counts = {key: sum(sizes) if OBSERVABLES[key].per_atom else len(sizes) for key in observables}
    if any(len(arrays[key]) != count or not np.isfinite(arrays[key]).all() for key, count in counts.items()):
        path.unlink(missing_ok=True)
        return None
    return arrays


def foundation_labels(
    network: MACEFieldNetwork, frames: Sequence[LabeledFrame], head: str | None, observables: Sequence[str]
) -> dict[str, FloatArray]:
    """Return energies (g,) in eV, forces (N, 3) in eV/Å and stresses (g, 3, 3) in eV/Å³ of a network at zero field.

    Args:
        network: The network.
        frames: The structures.
        head: Name of the head; the first by default.
        observables: What to compute.

    Raises:
        SettingsError: If there is no such head.
        TrainingError: If a value is not finite; names the structure.
    """
    heads = network.config.heads
    if head is not None and head not in heads:
        raise SettingsError(f"The backbone has no head {head!r}.", suggestion(head, heads))
    number = 0 if head is None else heads.index(head)
    pieces: dict[str, list[FloatArray]] = {key: [] for key in observables}
    for members in _portions([len(frame) for frame in frames]):
        graphs = [
            build_graph(frames[i].atoms, network.config.atomic_numbers, network.config.r_max, network.dtype, number)
            for i in members
        ]
        found = respond(network, to_device(collate(graphs), network.device), observables)
        for key in observables:
            value = found[key].detach().double().cpu().numpy()
            if not np.isfinite(value).all():
                names = ", ".join(frames[i].name for i in members[:3])
                raise TrainingError(
                    f"The backbone gives {key} that are not finite for one of {names}.", "Leave it out."
                )
            pieces[key].append(value)
    return {key: np.concatenate(values) for key, values in pieces.items()}


def _portions(sizes: Sequence[int]) -> list[list[int]]:
    """Return indices in portions of at most so many atoms, in order."""
    portions: list[list[int]] = [[]]
    atoms = 0
    for index, size in enumerate(sizes):
        if portions[-1] and atoms + size > BATCH_ATOMS:
            portions.append([])
            atoms = 0
        portions[-1].append(index)
        atoms += size
    return portions
