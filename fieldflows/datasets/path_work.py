"""Energies along a path held against the forces and stresses of its frames.

No magnitude tells the sign of a stress, and a factor of ten passes for a soft crystal.  Energies do: between
neighboring frames ΔE = −Σ F·Δu + Ω σ:ε, with forces and stresses averaged over the two (trapezoid rule, error of third
order in the step).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import polar

from fieldflows.datasets.frame import LabeledFrame
from fieldflows.errors import ConventionError

FloatArray = NDArray[np.float64]

SLOPE_RANGE = (0.7, 1.4)
"""Slope of ΔE against the work that counts as agreement."""

CLEARLY = 0.8
"""The stress is of the other sign if that makes the error smaller than this fraction."""

SMALL_WORK = 1e-4
"""Mean |work| in eV below which a source says nothing."""

FEW_STEPS = 5


@dataclass(frozen=True)
class WorkCheck:
    """How well forces and stresses predict changes of energy.

    Attributes:
        slope: Of ΔE against the work; median weighted by |work|, so that single jumps do not count.
        slope_turned: The same with the stress of the other sign.
        error: Mean of |ΔE − work|, in eV.
        error_turned: The same with the stress of the other sign.
        size: Mean of |work|, in eV.
        strain_share: Mean of |Ω σ:ε| over that of |Σ F·Δu| + |Ω σ:ε|.
        n_steps: Pairs of neighboring frames.
    """

    slope: float
    slope_turned: float
    error: float
    error_turned: float
    size: float
    strain_share: float
    n_steps: int


def step_work(first: LabeledFrame, second: LabeledFrame) -> tuple[float, float]:
    """Return −½ Σ (F·Δf h + F'·Δf h') and ½(Ω σ:ε + Ω' σ':ε') of a step, in eV.

    Δf are the changes of fractional coordinates to the nearest image, h and h' the cells.  The step of the cell is
    h⁻¹h' = U R, a symmetric stretch times a rotation (polar decomposition); only the strain does work.  Seen from the
    first frame it is ε = U − 1, from the second ε' = 1 − U⁻¹.

    Args:
        first: With forces (n, 3) in eV/Å and stress (3, 3) in eV/Å³.
        second: The same atoms in the same order.
    """
    cells = [np.array(frame.atoms.cell[:]) for frame in (first, second)]
    change = second.atoms.get_scaled_positions(wrap=False) - first.atoms.get_scaled_positions(wrap=False)
    change -= np.round(change)
    ends = zip((first, second), cells, strict=True)
    moved = sum((frame.labels["forces"] * (change @ cell)).sum() for frame, cell in ends)
    rotation, stretch = polar(np.linalg.solve(cells[0], cells[1]), side="left")
    strains = stretch - np.eye(3), np.eye(3) - np.linalg.inv(stretch)
    stresses = first.labels["stress"], rotation @ second.labels["stress"] @ rotation.T
    volumes = (abs(float(np.linalg.det(cell))) for cell in cells)
    strained = sum(v * (stress * strain).sum() for v, stress, strain in zip(volumes, stresses, strains, strict=True))
    return -0.5 * float(moved), 0.5 * float(strained)


def check_work(frames: Sequence[LabeledFrame]) -> WorkCheck | None:
    """Compare ΔE with the work of forces and stresses over all steps of all paths; None if it cannot be done.

    Args:
        frames: Of any number of paths; ``extra`` holds ``wfid`` and ``path_index``.
    """
    paths: dict[str, list[LabeledFrame]] = defaultdict(list)
    for frame in frames:
        found = [frame.labels[name] for name in ("energy", "forces", "stress") if name in frame.labels]
        if len(found) == 3 and all(np.isfinite(value).all() for value in found):
            paths[str(frame.extra.get("wfid"))].append(frame)
    steps = []
    for members in paths.values():
        ordered = sorted(members, key=lambda frame: frame.extra["path_index"])
        for a, b in pairwise(ordered):
            if b.extra["path_index"] == a.extra["path_index"] + 1:
                steps.append((float(b.labels["energy"] - a.labels["energy"]), *step_work(a, b)))
    if len(steps) < FEW_STEPS:
        return None
    energy, moved, strained = np.array(steps).T
    work = moved + strained
    size = float(np.abs(work).mean())
    return WorkCheck(
        slope=_slope(energy, work),
        slope_turned=_slope(energy, moved - strained),
        error=float(np.abs(energy - work).mean()),
        error_turned=float(np.abs(energy - moved + strained).mean()),
        size=size,
        strain_share=float(np.abs(strained).sum() / max((np.abs(moved) + np.abs(strained)).sum(), 1e-300)),
        n_steps=len(steps),
    )


def _slope(energy: FloatArray, work: FloatArray) -> float:
    """Return the s that makes Σ|ΔE − s·work| smallest: the median of ΔE/work weighted by |work|."""
    ratios = energy / np.where(work == 0, np.inf, work)
    order = np.argsort(ratios)
    total = np.cumsum(np.abs(work)[order])
    return float(ratios[order][np.searchsorted(total, 0.5 * total[-1])])


def _fits(slope: float) -> bool:
    return SLOPE_RANGE[0] <= slope <= SLOPE_RANGE[1]


def require_work(source: str, frames: Sequence[LabeledFrame]) -> list[str]:
    """Return a note on how well energies, forces and stresses agree, or raise if they contradict each other.

    Args:
        source: Name for messages.
        frames: Of any number of paths, labels in internal units.

    Raises:
        ConventionError: If ΔE has another size or sign than the work, or a stress of the other sign fits better.
    """
    check = check_work(frames)
    if check is None or check.size < SMALL_WORK:
        return []
    text = (
        f"over {check.n_steps} steps ΔE against −F·Δu + Ωσ:ε has slope {check.slope:.3f} and mean difference "
        f"{check.error:.3g} eV (with −σ {check.error_turned:.3g}; mean |work| {check.size:.3g}, of strain "
        f"{100 * check.strain_share:.0f} %)"
    )
    turned = check.error_turned < CLEARLY * check.error and _fits(check.slope_turned)
    if turned or not _fits(check.slope):
        raise ConventionError(
            f"Source {source!r}: {text}.",
            "The stresses are likely of the other sign, or energies, forces or stresses in another unit"
            f"{': −σ fits better' if turned else ''}. Leave them out (forces: false, stresses: false), and report it.",
        )
    return [text]
