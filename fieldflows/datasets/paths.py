"""Published polarization paths: ten frames from a nonpolar to a polar crystal, and the branch that connects them.

Smidt et al., Sci. Data 7, 72 (2020).  The files give p_i, components of the polarization along the normalized lattice
vectors, and the quanta along them, both of the polar end's lattice.  Their ratio f_i = p_i/quantum_i is free of any
frame; Cartesian labels belong to a frame's own cell: P = Σ_i f_i a_i/Ω.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fieldflows.datasets.extxyz import RawFrame
from fieldflows.physics.branches import follow_branch, polarization_of
from fieldflows.schemas.dataset import Finding
from fieldflows.units import E_PER_A2_TO_UC_PER_CM2

FloatArray = NDArray[np.float64]

N_FRAMES = 10
"""Frames of a path."""

POLARIZATION_KEY = "same_branch_polarization_abc_uC_cm2"
QUANTA_KEY = "polarization_quanta_abc_uC_cm2"
NORM_KEY = "polarization_change_norm_uC_cm2"

QUANTUM_TOLERANCE = 1e-3
"""How far a published quantum may be off e|a_i|/Ω of the polar end, as a fraction of it."""

NORM_TOLERANCE = 0.01
"""How far |P_s| may be off the published norm, in µC/cm²."""


@dataclass(frozen=True)
class PathLimits:
    """What a path may do.

    Attributes:
        reject_second_difference: Largest second difference of f along the path, in quanta.
        flag_step: Largest step of f from frame to frame, in quanta; above it the branch is ambiguous.
        flag_small: Smallest spontaneous polarization, µC/cm².
        flag_offset: Largest distance of the nonpolar end's f from a whole number of quanta.
    """

    reject_second_difference: float = 0.15
    flag_step: float = 0.35
    flag_small: float = 0.1
    flag_offset: float = 1e-3


@dataclass(frozen=True)
class PolarizationPath:
    """One path, nonpolar end first.

    Attributes:
        wfid: Identifier of the workflow that computed it.
        frames: Ten frames as the file has them.
        fractions: (10, 3) f_i = p_i/quantum_i as published.
        changes: (10, 3) f_i − f_i(nonpolar) on one branch: steps are rounded to the nearest branch.
    """

    wfid: str
    frames: tuple[RawFrame, ...]
    fractions: FloatArray
    changes: FloatArray

    @property
    def max_step(self) -> float:
        """Largest |Δf| from frame to frame, in quanta."""
        return float(np.abs(np.diff(self.changes, axis=0)).max())

    @property
    def max_second_difference(self) -> float:
        """Largest |f_{k+1} − 2 f_k + f_{k−1}|, in quanta: how far the path is from smooth."""
        return float(np.abs(np.diff(self.changes, n=2, axis=0)).max())

    @property
    def nonpolar_offset(self) -> float:
        """Distance of the nonpolar end's f from a whole number of quanta; half a quantum is allowed by symmetry."""
        return float(np.abs(self.fractions[0] - np.round(self.fractions[0])).max())

    @property
    def quantum_error(self) -> float:
        """Largest |quantum_i/(e |a_i|/Ω) − 1| of all frames, with a_i and Ω of the polar end."""
        cell = self.frames[-1].cell
        quanta = np.linalg.norm(cell, axis=1) / abs(float(np.linalg.det(cell))) * E_PER_A2_TO_UC_PER_CM2
        published = np.array([raw.info[QUANTA_KEY] for raw in self.frames])
        return float(np.abs(published / quanta - 1).max())

    @property
    def norm_error(self) -> float:
        """Difference between |P_s| and the published norm, in µC/cm²; 0 if none is published."""
        published = self.frames[-1].info.get(NORM_KEY)
        if not isinstance(published, float):
            return 0.0
        return abs(float(np.linalg.norm(self.spontaneous_polarization)) - published)

    @property
    def spontaneous_polarization(self) -> FloatArray:
        """P_s = Σ_i [f_i(polar) − f_i(nonpolar)] a_i(polar)/Ω(polar), (3,) Cartesian, µC/cm²."""
        return polarization_of(self.changes[-1], self.frames[-1].cell) * E_PER_A2_TO_UC_PER_CM2


def read_paths(raws: Sequence[RawFrame]) -> tuple[list[PolarizationPath], list[tuple[list[RawFrame], Finding]]]:
    """Group frames into paths, and return the paths and what is no path, with the reason.

    A path has ten frames numbered 0 to 9, finite polarizations and quanta, the same atoms, and workflow COMPLETED.

    Args:
        raws: Frames of the paths file.
    """
    groups: dict[str, list[RawFrame]] = defaultdict(list)
    for raw in raws:
        groups[str(raw.info.get("wfid", ""))].append(raw)
    paths, broken = [], []
    for wfid, members in groups.items():
        problem = _problem(members)
        if problem is not None:
            broken.append((members, problem))
            continue
        members = sorted(members, key=lambda raw: raw.info["path_index"])
        values = np.array([raw.info[POLARIZATION_KEY] for raw in members])
        quanta = np.array([raw.info[QUANTA_KEY] for raw in members])
        fractions = values / quanta
        changes = follow_branch(fractions).changes
        paths.append(PolarizationPath(wfid, tuple(members), fractions, changes))
    return paths, broken


def _problem(members: Sequence[RawFrame]) -> Finding | None:
    def incomplete(message: str, value: float | None = None, threshold: float | None = None, unit: str = "") -> Finding:
        return Finding(code="path_incomplete", value=value, threshold=threshold, unit=unit, message=message)

    status = str(members[0].info.get("workflow_status", "missing"))
    if status != "COMPLETED":
        return incomplete(f"the workflow is {status}, not COMPLETED")
    numbers = sorted(int(raw.info.get("path_index", -1)) for raw in members)
    if numbers != list(range(N_FRAMES)):
        return incomplete(f"the path has frames {numbers}", len(members), N_FRAMES, "frames")
    for raw in members:
        for key in (POLARIZATION_KEY, QUANTA_KEY):
            value = raw.info.get(key)
            if not isinstance(value, np.ndarray) or value.shape != (3,) or not np.isfinite(value).all():
                return incomplete(f"{key} of frame {int(raw.info['path_index'])} is missing or not finite")
        if (raw.info[QUANTA_KEY] <= 0).any():
            return incomplete(f"a quantum of frame {int(raw.info['path_index'])} is not positive")
        if not np.array_equal(raw.numbers, members[0].numbers):
            return incomplete("the frames hold different atoms")
    return None


def judge_path(path: PolarizationPath, limits: PathLimits) -> tuple[list[Finding], list[Finding]]:
    """Return the reasons to reject a path, and its flags."""
    rejects, flags = _contradictions(path), []
    bend, step = path.max_second_difference, path.max_step
    if bend > limits.reject_second_difference:
        rejects.append(
            Finding(
                code="path_second_difference",
                value=bend,
                threshold=limits.reject_second_difference,
                unit="quantum",
                message=f"the path jumps: its second difference is {bend:.3f} quantum",
            )
        )
    if step > limits.flag_step:
        flags.append(
            Finding(
                code="path_large_step",
                value=step,
                threshold=limits.flag_step,
                unit="quantum",
                message=f"a step of {step:.3f} quantum leaves the branch ambiguous",
            )
        )
    category = str(path.frames[0].info.get("category", ""))
    if category == "not_smooth":
        flags.append(
            Finding(code="path_not_smooth", value=None, threshold=None, unit="", message="published as not smooth")
        )
    size = float(np.linalg.norm(path.spontaneous_polarization))
    if size < limits.flag_small:
        flags.append(
            Finding(
                code="path_small",
                value=size,
                threshold=limits.flag_small,
                unit="µC/cm²",
                message=f"the spontaneous polarization is {size:.3g} µC/cm²",
            )
        )
    offset = path.nonpolar_offset
    if offset > limits.flag_offset:
        flags.append(
            Finding(
                code="path_nonpolar_offset",
                value=offset,
                threshold=limits.flag_offset,
                unit="quantum",
                message=f"the nonpolar end is published {offset:.4f} quantum off zero",
            )
        )
    return rejects, flags


def _contradictions(path: PolarizationPath) -> list[Finding]:
    """Return what shows that the numbers of a path are in another unit, or not of this path."""
    findings = []
    quantum, norm = path.quantum_error, path.norm_error
    if not quantum <= QUANTUM_TOLERANCE:
        findings.append(
            Finding(
                code="path_quantum",
                value=quantum,
                threshold=QUANTUM_TOLERANCE,
                unit="1",
                message=f"the quanta are off those of the polar cell by {100 * quantum:.3g} %: another unit or crystal",
            )
        )
    if not norm <= NORM_TOLERANCE:
        findings.append(
            Finding(
                code="path_norm",
                value=norm,
                threshold=NORM_TOLERANCE,
                unit="µC/cm²",
                message=f"|P_s| is off the published norm by {norm:.3g} µC/cm²",
            )
        )
    return findings
