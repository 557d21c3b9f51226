"""Weights and scales in physical terms: what the loss divides by, and what each label counts.

With the scale s_o of an observable and the loss L_o(0) of a trivial prediction (below), ``weight: auto`` is

    λ_o = share_o / L_o(0)

so that every such term starts at about its share and a value of 0.1 means the same for all of them.  The trivial
prediction is the mean energy per atom, no force, the mean stress, no polarization, the mean Z* of the element and the
mean isotropic α of the training frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from fieldflows.errors import SettingsError
from fieldflows.observables import OBSERVABLES
from fieldflows.training.data import Frame, label_spread, make_batch
from fieldflows.training.loss_config import LossSection, Term, parse_scale
from fieldflows.training.losses import Loss

FloatArray = NDArray[np.float64]

ELEMENT_PRIOR = 10
"""Labels of all elements together that count in the spread of each one, so that rare elements get a sane scale."""

CHUNK = 32
"""Frames that are compared with a trivial prediction at once."""


@dataclass(frozen=True)
class TermSummary:
    """What became of a term, for the log.

    Attributes:
        observable: Its name.
        weight: λ.
        scale: What errors are divided by, in the unit of the observable (energies per atom).
        unit: That unit.
        frames: Training frames with the label.
        trivial: Loss of the trivial prediction, λ included; None without labels.
        how: Where weight and scale come from, in words.
    """

    observable: str
    weight: float
    scale: float
    unit: str
    frames: int
    trivial: float | None
    how: str

    def __str__(self) -> str:
        trivial = "no label" if self.trivial is None else f"trivial prediction {self.trivial:.3g}"
        return (
            f"{self.observable}: weight {self.weight:.4g}, scale {self.scale:.4g} {self.unit}{self.how}, "
            f"{self.frames} frames, {trivial}"
        )


def make_loss(settings: LossSection, frames: Sequence[Frame]) -> tuple[Loss, list[TermSummary]]:
    """Return the loss with every scale and weight as a number, and what to tell about it.

    Args:
        settings: The terms.
        frames: The training frames.

    Raises:
        SettingsError: If a scale or weight is to be taken from labels that do not differ or do not exist.
    """
    terms, scales, element_scales = {}, {}, {}
    for key in settings.labels:
        term, labeled = settings.terms[key], [frame for frame in frames if key in frame.labels]
        scale = parse_scale(key, term.scale)
        if isinstance(scale, str):
            if scale == "spread by element" and labeled:
                element_scales[key] = spread_by_element(labeled, key)
            scale = label_spread(labeled, key) if labeled else 1.0
        scales[key] = float(scale)
        terms[key] = term.model_copy(update={"weight": 1.0}) if term.weight == "auto" else term
    trivial = trivial_losses(Loss(terms, scales, element_scales), frames)
    summaries = []
    for key in settings.labels:
        term, value = settings.terms[key], trivial.get(key)
        if term.weight == "auto":
            if value is not None and not value > 0:
                raise SettingsError(
                    f"loss.terms.{key}.weight is 'auto', but the labels equal a trivial prediction.",
                    "Give the weight as a number.",
                )
            terms[key] = terms[key].model_copy(update={"weight": term.share / value if value else 0.0})
            value = None if value is None else term.share
        summaries.append(_summary(key, term, terms[key], scales[key], value, frames))
    return Loss(terms, scales, element_scales), summaries


def _summary(
    key: str, asked: Term, term: Term, scale: float, trivial: float | None, frames: Sequence[Frame]
) -> TermSummary:
    origins = [text for text in (asked.weight, asked.scale) if isinstance(text, str)]
    unit = OBSERVABLES[key].unit + ("/atom" if key == "energy" else "")
    count = sum(key in frame.labels for frame in frames)
    how = f" ({', '.join(origins)})" if origins else ""
    return TermSummary(key, float(term.weight), scale, unit, count, trivial, how)


def spread_by_element(frames: Sequence[Frame], key: str) -> torch.Tensor:
    """Return the spread of a label per atom about the mean of each element, by atomic number, (119,).

    s_Z² = (n_Z σ_Z² + n₀ σ²)/(n_Z + n₀) with the deviations σ_Z from the mean of the element, σ from the means of all,
    and n₀ = 10.  Elements without labels get σ.

    Raises:
        SettingsError: If the labels of each element are all the same.
    """
    labels = np.concatenate([frame.labels[key].reshape(len(frame.atoms), -1) for frame in frames])
    numbers = np.concatenate([frame.atoms.numbers for frame in frames])
    squares = np.zeros(119)
    for z in np.unique(numbers):
        chosen = labels[numbers == z]
        squares[z] = np.square(chosen - chosen.mean(axis=0)).mean() * len(chosen)
    counts = np.bincount(numbers, minlength=119)
    common = squares.sum() / counts.sum()
    if not common > 0:
        raise SettingsError(
            f"loss.terms.{key}.scale is 'spread by element', but the labels of each element are all the same.",
            "Give the scale as a number.",
        )
    return torch.tensor(np.sqrt((squares + ELEMENT_PRIOR * common) / (counts + ELEMENT_PRIOR)))


def trivial_losses(loss: Loss, frames: Sequence[Frame]) -> dict[str, float]:
    """Return the loss of a trivial prediction by observable, weights λ included, for those with labels."""
    means = {key: _trivial(key, frames) for key in loss.terms if any(key in frame.labels for frame in frames)}
    totals = dict.fromkeys(means, 0.0)
    for start in range(0, len(frames), CHUNK):
        members = [replace(frame, outcome=None) for frame in frames[start : start + CHUNK]]
        batch = make_batch(members, tuple(means))
        predictions = {key: _predicted(key, means[key], members, batch.targets[key]) for key in batch.targets}
        for key, value in loss.numerators(predictions, batch).items():
            totals[key] += float(value)
    whole = loss.normalizations(frames)
    return {key: value / float(whole[key]) for key, value in totals.items()}


def _trivial(key: str, frames: Sequence[Frame]) -> FloatArray:
    """Return what is predicted of any crystal, or of any atom by atomic number."""
    labeled = [frame for frame in frames if key in frame.labels]
    if key == "energy":
        return np.asarray(np.mean([(frame.labels[key] - frame.baseline) / len(frame.atoms) for frame in labeled]))
    if key == "stress":
        return np.asarray(np.mean([frame.labels[key] for frame in labeled], axis=0))
    if key == "polarizability":
        return np.eye(3) * np.mean([np.trace(frame.labels[key]) / 3 for frame in labeled])
    if key == "born_effective_charges":
        labels = np.concatenate([frame.labels[key] for frame in labeled])
        numbers = np.concatenate([frame.atoms.numbers for frame in labeled])
        table = np.zeros((119, 3, 3))
        for z in np.unique(numbers):
            table[z] = labels[numbers == z].mean(axis=0)
        return table
    return np.zeros(3)


def _predicted(key: str, mean: FloatArray, frames: Sequence[Frame], like: torch.Tensor) -> torch.Tensor:
    """Return the trivial prediction of a batch."""
    value = torch.as_tensor(mean, dtype=like.dtype)
    if key == "energy":
        return value * torch.tensor([len(frame.atoms) for frame in frames], dtype=like.dtype)
    if key == "born_effective_charges":
        return value[torch.as_tensor(np.concatenate([frame.atoms.numbers for frame in frames]))]
    return value.expand_as(like)


def sum_rule_weights(frames: Sequence[Frame], residuals: Sequence[float], scale: float) -> list[Frame]:
    """Return the frames with Z* weighted by 1/(1 + (r/r₀)²).

    Args:
        frames: The frames.
        residuals: r, the largest component of Σ_κ Z*_κ/n in e.
        scale: r₀ in e.
    """
    key = "born_effective_charges"
    result = []
    for frame, residual in zip(frames, residuals, strict=True):
        factor = 1 / (1 + (residual / scale) ** 2)
        weights: Mapping[str, float] = {**frame.label_weights, key: frame.label_weights.get(key, 1.0) * factor}
        result.append(replace(frame, label_weights=weights) if key in frame.labels else frame)
    return result


def sum_rule_residual(labels: Mapping[str, FloatArray], removed: object) -> float:
    """Return the largest component of Σ_κ Z*_κ/n in e, with what the cleaning removed; 0 without Z*.

    Args:
        labels: Labels of a frame.
        removed: (3, 3) mean that was subtracted from Z*, or None.
    """
    if "born_effective_charges" not in labels:
        return 0.0
    mean = np.asarray(labels["born_effective_charges"], dtype=float).mean(axis=0)
    if removed is not None:
        mean = mean + np.asarray(removed, dtype=float).reshape(3, 3)
    return float(np.abs(mean).max())
