"""Polarization along published paths from nonpolar to polar crystals (Smidt et al. 2020)."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fieldflows.datasets.extxyz import RawFrame, read_extxyz
from fieldflows.datasets.frame import reduced_formula
from fieldflows.datasets.path_frames import PathSettings, add_path, describe_polarization
from fieldflows.datasets.paths import POLARIZATION_KEY, QUANTA_KEY, read_paths
from fieldflows.datasets.source import Source, SourceData, frame_index
from fieldflows.errors import LabelError
from fieldflows.schemas.dataset import FrameFindings


class FerroelectricPaths(PathSettings, Source):
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
        data.conversions = [describe_polarization(POLARIZATION_KEY, QUANTA_KEY)]
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
        rejected = sum(add_path(self, item, self.limits, data, self._labels) for item in paths)
        data.notes.append(f"{len(paths) + len(broken)} paths: {rejected} bend too much, {len(broken)} are incomplete")
        return data

    def _labels(self, raw: RawFrame) -> dict[str, NDArray[np.float64]]:
        energy = raw.info.get("energy_per_atom_eV")
        return {"energy": np.array(energy * len(raw))} if self.energies and isinstance(energy, float) else {}
