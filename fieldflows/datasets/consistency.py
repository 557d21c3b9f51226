"""Conventions that no magnitude reveals: labels of one trajectory held against each other.

Born charges and polarization of the same run must obey Z*_{κ,ij} = Ω ∂P_i/∂u_{κj}.  Between neighboring frames that
is ΔP ≈ Σ_κ ½(Z*_κ + Z*'_κ) Δu_κ/Ω, up to a quantum.  A transposed Z*, a P per cell instead of per volume, or another
unit does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fieldflows.datasets.frame import LabeledFrame
from fieldflows.errors import ConventionError
from fieldflows.physics.polarization import fold_polarization
from fieldflows.units import E_PER_A2_TO_UC_PER_CM2

FloatArray = NDArray[np.float64]

LARGEST_STRESS = 0.5
"""Median of max|σ| in eV/Å³ (80 GPa) above which the unit must be another."""

LARGEST_SLOPE_ERROR = 0.2
"""How far the slope of ΔP against Z*Δu/Ω may be off 1."""


@dataclass(frozen=True)
class ChargeCheck:
    """How well Born charges predict changes of polarization.

    Attributes:
        slope: Of labeled ΔP against predicted ΔP, through the origin.
        error: RMS of the difference, in µC/cm².
        error_transposed: The same with every Z* transposed.
        size: RMS of the predicted ΔP, in µC/cm².
        n_steps: Pairs of neighboring frames.
    """

    slope: float
    error: float
    error_transposed: float
    size: float
    n_steps: int


def predicted_change(first: LabeledFrame, second: LabeledFrame, transpose: bool = False) -> FloatArray:
    """Return ΔP = Σ_κ ½(Z*_κ + Z*'_κ) Δu_κ/Ω, (3,) in e/Å², for two frames of the same cell.

    Means of Z* over the atoms are subtracted, so that a drift of the whole crystal does not enter.
    """
    cell = np.array(first.atoms.cell[:])
    step = (second.atoms.positions - first.atoms.positions) @ np.linalg.inv(cell)
    step = (step - np.round(step)) @ cell
    charges = 0.5 * (first.labels["born_effective_charges"] + second.labels["born_effective_charges"])
    charges = charges - charges.mean(axis=0)
    pattern = "kji,kj->i" if transpose else "kij,kj->i"
    return np.asarray(np.einsum(pattern, charges, step)) / abs(float(np.linalg.det(cell)))


def check_charges(frames: Sequence[LabeledFrame]) -> ChargeCheck | None:
    """Compare ΔP with Z*Δu/Ω over neighboring frames of a trajectory; None if it cannot be done.

    Args:
        frames: In the order of the trajectory, all of the same atoms and cell.
    """
    labeled = [f for f in frames if {"polarization", "born_effective_charges"} <= f.labels.keys()]
    labeled = [f for f in labeled if all(np.isfinite(value).all() for value in f.labels.values())]
    pairs = [
        (a, b)
        for a, b in pairwise(labeled)
        if len(a) == len(b)
        and (a.atoms.numbers == b.atoms.numbers).all()
        and np.allclose(a.atoms.cell[:], b.atoms.cell[:], atol=1e-6)
    ]
    if len(pairs) < 3:
        return None
    found, straight, transposed = [], [], []
    for a, b in pairs:
        cell = a.atoms.cell[:]
        change = b.labels["polarization"] - a.labels["polarization"]
        guide, other = predicted_change(a, b), predicted_change(a, b, transpose=True)
        # Each hypothesis gets the branch that suits it best.
        found.append(guide + fold_polarization(change - guide, cell))
        straight.append(guide)
        transposed.append(fold_polarization(change - other, cell))
    x, y, z = np.array(straight), np.array(found), np.array(transposed)
    size = float((x**2).sum())
    unit = E_PER_A2_TO_UC_PER_CM2
    return ChargeCheck(
        slope=float((x * y).sum()) / size if size else 0.0,
        error=float(np.sqrt(((y - x) ** 2).mean())) * unit,
        error_transposed=float(np.sqrt((z**2).mean())) * unit,
        size=float(np.sqrt((x**2).mean())) * unit,
        n_steps=len(pairs),
    )


def require_consistent(source: str, frames: Sequence[LabeledFrame]) -> list[str]:
    """Return notes on how well the labels of a trajectory agree, or raise if they contradict each other.

    Args:
        source: Name for messages.
        frames: In the order of the trajectory, labels in internal units.

    Raises:
        ConventionError: If transposed Born charges agree better, ΔP has another size than Z*Δu/Ω, or stresses are
            implausibly large.
    """
    notes = []
    check = check_charges(frames)
    if check is not None:
        text = (
            f"over {check.n_steps} steps ΔP against Z*Δu/Ω has slope {check.slope:.3f} and RMS difference "
            f"{check.error:.3g} µC/cm² (with Z* transposed {check.error_transposed:.3g}; RMS ΔP {check.size:.3g})"
        )
        if check.error_transposed < 0.8 * check.error:
            raise ConventionError(
                f"Source {source!r}: {text}.",
                "The Born charges likely have displacement as first index: declare 'displacement_polarization'.",
            )
        if abs(check.slope - 1) > LARGEST_SLOPE_ERROR:
            raise ConventionError(
                f"Source {source!r}: {text}.",
                "The polarization is likely in another unit (e·Å per cell, µC/cm², C/m²) or of the other sign.",
            )
        notes.append(text)
    stresses = [float(np.abs(f.labels["stress"]).max()) for f in frames if "stress" in f.labels]
    if stresses and np.median(stresses) > LARGEST_STRESS:
        raise ConventionError(
            f"Source {source!r}: the median of max|stress| is {np.median(stresses):.3g} eV/Å³; at most "
            f"{LARGEST_STRESS} (80 GPa) is plausible.",
            "The stresses are likely in kbar ('vasp_kbar') or GPa: declare it.",
        )
    return notes
