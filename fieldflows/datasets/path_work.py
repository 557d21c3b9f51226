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
from fieldflows.schemas.dataset import Finding

FloatArray = NDArray[np.float64]

SLOPE_RANGE = (0.7, 1.4)
"""Slope of ΔE against the work that counts as agreement."""

CLEARLY = 0.8
"""The stress is of the other sign if that makes the error smaller than this fraction."""

SMALL_WORK = 1e-4
"""Mean |work| in eV below which a path says nothing."""

FEW_STEPS = 5


@dataclass(frozen=True)
class WorkCheck:
    """How well forces and stresses predict the changes of energy along one path.

    Attributes:
        slope: Of ΔE against the work; median weighted by |work|, so that single jumps do not count.
        slope_turned: The same with the stress of the other sign.
        error: Mean of |ΔE − work|, in eV.
        error_turned: The same with the stress of the other sign.
        size: Mean of |work|, in eV.
        n_steps: Pairs of neighboring frames.
    """

    slope: float
    slope_turned: float
    error: float
    error_turned: float
    size: float
    n_steps: int

    @property
    def agrees(self) -> bool:
        """Whether the slope is near 1."""
        return SLOPE_RANGE[0] <= self.slope <= SLOPE_RANGE[1]

    @property
    def turned(self) -> bool:
        """Whether a stress of the other sign agrees clearly better."""
        return self.error_turned < CLEARLY * self.error and SLOPE_RANGE[0] <= self.slope_turned <= SLOPE_RANGE[1]


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


def check_path(frames: Sequence[LabeledFrame]) -> WorkCheck | None:
    """Compare ΔE with the work of forces and stresses along one path; None if it cannot be done.

    Args:
        frames: Of one path; ``extra["path_index"]`` tells the order.
    """
    labels = ("energy", "forces", "stress")
    usable = [
        frame
        for frame in frames
        if frame.labels.keys() >= set(labels) and all(np.isfinite(frame.labels[name]).all() for name in labels)
    ]
    steps = [
        (float(b.labels["energy"] - a.labels["energy"]), *step_work(a, b))
        for a, b in pairwise(sorted(usable, key=lambda frame: int(frame.extra["path_index"])))
        if b.extra["path_index"] == a.extra["path_index"] + 1
    ]
    if len(steps) < FEW_STEPS:
        return None
    energy, moved, strained = np.array(steps).T
    size = float(np.abs(moved + strained).mean())
    if not size >= SMALL_WORK:
        return None
    return WorkCheck(
        slope=_slope(energy, moved + strained),
        slope_turned=_slope(energy, moved - strained),
        error=float(np.abs(energy - moved - strained).mean()),
        error_turned=float(np.abs(energy - moved + strained).mean()),
        size=size,
        n_steps=len(steps),
    )


def _slope(energy: FloatArray, work: FloatArray) -> float:
    """Return the s that makes Σ|ΔE − s·work| smallest: the median of ΔE/work weighted by |work|."""
    ratios = energy / np.where(work == 0, np.inf, work)
    order = np.argsort(ratios)
    total = np.cumsum(np.abs(work)[order])
    return float(ratios[order][np.searchsorted(total, 0.5 * total[-1])])


def require_work(source: str, frames: Sequence[LabeledFrame]) -> tuple[list[str], dict[str, Finding]]:
    """Return a note on how well energies, forces and stresses agree, and a flag per path where they do not.

    The majority of the paths decides, so that a broken path stops nothing.

    Args:
        source: Name for messages.
        frames: Of any number of paths, ``extra["wfid"]`` tells which; labels in internal units.

    Raises:
        ConventionError: If ΔE has another size or sign than the work, or a stress of the other sign fits better, in
            most paths.
    """
    paths: dict[str, list[LabeledFrame]] = defaultdict(list)
    for frame in frames:
        paths[str(frame.extra.get("wfid"))].append(frame)
    checks = {wfid: check for wfid, members in paths.items() if (check := check_path(members)) is not None}
    if not checks:
        return [], {}
    slope, slope_turned, error = np.median(
        [(check.slope, check.slope_turned, check.error / check.size) for check in checks.values()], axis=0
    )
    text = (
        f"along {len(checks)} paths ΔE against −F·Δu + Ωσ:ε has slope {slope:.3f} (median; {slope_turned:.3f} with −σ) "
        f"and is off by {100 * error:.2g} % of the work"
    )
    turned = 2 * sum(check.turned for check in checks.values()) > len(checks)
    if turned or 2 * sum(not check.agrees for check in checks.values()) > len(checks):
        raise ConventionError(
            f"Source {source!r}: {text}.",
            "The stresses are likely of the other sign, or energies, forces or stresses in another unit"
            f"{': −σ fits better' if turned else ''}. Leave them out (forces: false, stresses: false), and report it.",
        )
    doubtful = {wfid: check for wfid, check in checks.items() if check.turned or not check.agrees}
    return [text], {wfid: _flag(check) for wfid, check in doubtful.items()}


def _flag(check: WorkCheck) -> Finding:
    return Finding(
        code="path_work",
        value=check.slope if np.isfinite(check.slope) else None,
        threshold=SLOPE_RANGE[0] if check.slope < 1 else SLOPE_RANGE[1],
        unit="1",
        message=f"the change of energy is {check.slope:.3g} times the work of forces and stresses",
    )
