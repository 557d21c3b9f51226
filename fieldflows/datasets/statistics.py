"""Counts and distributions of labels, per subset."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fieldflows.datasets.frame import LABEL_UNITS, LabeledFrame
from fieldflows.datasets.splits import SPLITS
from fieldflows.schemas.dataset import LabelStatistics
from fieldflows.units import E_PER_A2_TO_UC_PER_CM2, EPSILON_VACUUM


def _subsets(frames: Sequence[LabeledFrame]) -> dict[str, list[LabeledFrame]]:
    return {"all": list(frames)} | {name: [f for f in frames if f.split == name] for name in SPLITS}


def count(frames: Sequence[LabeledFrame]) -> dict[str, dict[str, int]]:
    """Return per subset ("all", "train", ...) the numbers of frames, materials, atoms and of each label."""
    return {
        name: {
            "frames": len(members),
            "materials": len({frame.material for frame in members}),
            "atoms": sum(len(frame) for frame in members),
            **{label: n for label in LABEL_UNITS if (n := sum(label in frame.labels for frame in members))},
        }
        for name, members in _subsets(frames).items()
    }


def label_statistics(frames: Sequence[LabeledFrame]) -> list[LabelStatistics]:
    """Return the distribution of every label per subset, over all components.

    Energies are per atom.  Beside the labels stand the numbers that people know: ``epsilon_electronic`` (diagonal of
    ε∞ = 1 + α/ε_vac), ``born_effective_charges_diagonal`` in e and ``polarization_norm`` in µC/cm².
    """
    result = []
    for split, members in _subsets(frames).items():
        for label, unit in LABEL_UNITS.items():
            values = [frame.labels[label] for frame in members if label in frame.labels]
            if not values:
                continue
            if label == "energy":
                values = [frame.labels[label] / len(frame) for frame in members if label in frame.labels]
                unit = "eV/atom"
            result.append(_describe(label, split, unit, values))
            if label == "polarizability":
                diagonals = [1 + np.diagonal(value) / EPSILON_VACUUM for value in values]
                result.append(_describe("epsilon_electronic", split, "1", diagonals))
            elif label == "born_effective_charges":
                diagonals = [np.diagonal(value, axis1=1, axis2=2) for value in values]
                result.append(_describe("born_effective_charges_diagonal", split, "e", diagonals))
            elif label == "polarization":
                norms = [np.atleast_1d(np.linalg.norm(value)) * E_PER_A2_TO_UC_PER_CM2 for value in values]
                result.append(_describe("polarization_norm", split, "µC/cm²", norms))
    return result


def _describe(label: str, split: str, unit: str, values: Sequence[np.ndarray]) -> LabelStatistics:
    flat = np.concatenate([np.ravel(value) for value in values])
    return LabelStatistics(
        label=label,
        split=split,
        unit=unit,
        n_frames=len(values),
        n_values=flat.size,
        mean=float(flat.mean()),
        std=float(flat.std()),
        minimum=float(flat.min()),
        median=float(np.median(flat)),
        maximum=float(flat.max()),
    )
