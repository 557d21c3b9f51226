"""Polarization along published paths from nonpolar to polar crystals (Smidt et al. 2020)."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from fieldflows.datasets.extxyz import read_extxyz
from fieldflows.datasets.frame import reduced_formula
from fieldflows.datasets.paths import PathLimits, PolarizationPath, judge_path, polarization_of, read_paths
from fieldflows.datasets.source import Source, SourceData, frame_index, make_frame
from fieldflows.errors import LabelError
from fieldflows.schemas.dataset import FrameFindings


class FerroelectricPaths(Source):
    """Ten frames per path; P relative to the nonpolar end, in each frame's own cell.

    P_label = Σ_i (f_i − f_i(nonpolar)) a_i/Ω with f_i = p_i/quantum_i.  The published branch is kept beside it as
    ``extra["polarization_raw"]``; it is half a quantum off at some nonpolar ends, where symmetry makes any
    single-valued model exactly zero.
    """

    trajectory: ClassVar[bool] = True

    type: Literal["ferroelectric_paths"] = "ferroelectric_paths"
    license: str = "MIT (companion site, (c) 2019 Tess Smidt); paper CC-BY-4.0"
    reference: str = "Smidt et al., Sci. Data 7, 72 (2020)"
    energies: bool = Field(default=True, description="Keep the energies (no forces belong to them).")
    reject_second_difference: float = Field(
        default=0.15, gt=0, description="Reject paths that bend more.", json_schema_extra={"unit": "quantum"}
    )
    flag_step: float = Field(
        default=0.35, gt=0, description="Flag paths with a larger step.", json_schema_extra={"unit": "quantum"}
    )
    flag_small: float = Field(
        default=0.1, ge=0, description="Flag smaller spontaneous polarizations.", json_schema_extra={"unit": "µC/cm²"}
    )
    flag_offset: float = Field(
        default=1e-3,
        gt=0,
        description="Flag a nonpolar end that is published further off zero.",
        json_schema_extra={"unit": "quantum"},
    )

    @property
    def limits(self) -> PathLimits:
        """Thresholds for paths."""
        return PathLimits(self.reject_second_difference, self.flag_step, self.flag_small, self.flag_offset)

    def read(self, path: Path, base: Path | None = None) -> SourceData:
        """Return the labeled frames of all paths that are whole and on one branch.

        Raises:
            DataError: If the file cannot be read.
            LabelError: If it holds no path.
        """
        raws = list(islice(read_extxyz(path), self.limit))
        paths, broken = read_paths(raws)
        if not paths:
            reason = broken[0][1].message if broken else "it is empty"
            raise LabelError(f"Source {self.label!r}: {path} holds no polarization path; of the first one: {reason}.")
        data = SourceData([], len(raws))
        data.conversions = [
            "same_branch_polarization_abc_uC_cm2 / polarization_quanta_abc_uC_cm2: fractions along the lattice vectors "
            "→ polarization in e/Å², Cartesian in each frame's own cell, relative to the nonpolar end"
        ]
        if self.energies:
            data.conversions.append("energy_per_atom_eV: eV per atom → energy in eV per cell")
        for members, finding in broken:
            data.rejects.extend(
                FrameFindings(
                    source=self.label,
                    source_index=frame_index(raw),
                    formula=reduced_formula(raw.numbers),
                    findings=[finding],
                )
                for raw in members
            )
        rejected = sum(self._add(item, data) for item in paths)
        data.notes.append(f"{len(paths) + len(broken)} paths: {rejected} bend too much, {len(broken)} are incomplete")
        return data

    def _add(self, path: PolarizationPath, data: SourceData) -> bool:
        """Add the frames of a path, or its rejects; return whether it was rejected."""
        rejects, flags = judge_path(path, self.limits)
        for k, raw in enumerate(path.frames):
            labels = {"polarization": polarization_of(path.changes[k], raw.cell)}
            energy = raw.info.get("energy_per_atom_eV")
            if self.energies and isinstance(energy, float):
                labels["energy"] = np.array(energy * len(raw))
            frame = make_frame(
                self,
                raw,
                labels,
                wfid=path.wfid,
                path_index=k,
                nonpolar_mpid=str(raw.info.get("nonpolar_mpid", "")),
                polar_mpid=str(raw.info.get("polar_mpid", "")),
                polarization_raw=polarization_of(path.fractions[k], raw.cell),
            )
            if rejects:
                data.rejects.append(
                    FrameFindings(
                        source=frame.source, source_index=frame.source_index, formula=frame.material, findings=rejects
                    )
                )
                continue
            data.frames.append(frame)
            if flags:
                data.flags[frame.source_index] = flags
        return bool(rejects)
