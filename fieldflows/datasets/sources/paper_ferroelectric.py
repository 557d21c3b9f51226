"""Ferroelectric frames of the 2025 MACE-Field paper, matched to the published paths that they come from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from fieldflows.datasets.extxyz import RawFrame, file_sha256, read_extxyz
from fieldflows.datasets.frame import reduced_formula
from fieldflows.datasets.labels import find_key
from fieldflows.datasets.paths import PathLimits, PolarizationPath, judge_path, read_paths
from fieldflows.datasets.source import Source, SourceData, expand_path, frame_index, make_frame, refuse_field
from fieldflows.errors import LabelError
from fieldflows.physics.branches import polarization_of
from fieldflows.schemas.dataset import Finding, FrameFindings
from fieldflows.units import E_PER_A2_TO_UC_PER_CM2

CELL_TOLERANCE = 1e-3
"""Largest difference of lattice lengths in Å and of cosines of angles."""

SITE_TOLERANCE = 5e-3
"""Largest distance of an atom from its place, in Å."""

LABEL_TOLERANCE = 1e-3
"""Largest difference of the label from the published one, as a fraction of the quantum."""


class PaperFerroelectric(Source):
    """``ferroelectric-{train,valid,test}.xyz``: REF_polarisation along normalized lattice vectors, no frame number.

    The components refer to the polar end's lattice and to an unknown branch, so each frame is matched to its
    published path by cell and coordinates and gets that path's label; frames without a match are rejected.
    """

    trajectory: ClassVar[bool] = True

    type: Literal["paper_ferroelectric"] = "paper_ferroelectric"
    paths_file: str = Field(description="The published paths (extended XYZ); variables as in path.")
    license: str = "none stated; derived from Smidt et al. (MIT / CC-BY-4.0). Do not redistribute."
    reference: str = "Martin et al., PRX Intelligence 1, 013006 (2026); Smidt et al., Sci. Data 7, 72 (2020)"

    def read(self, path: Path, base: Path | None = None) -> SourceData:
        """Return the labeled frames that match a published path.

        Raises:
            DataError: If one of the files cannot be read.
            LabelError: If a frame has no polarization.
        """
        raws = list(islice(read_extxyz(path), self.limit))
        refuse_field(self, raws)
        published = expand_path(self.paths_file, base)
        paths: dict[tuple[str, str], list[PolarizationPath]] = defaultdict(list)
        for item in read_paths(list(read_extxyz(published)))[0]:
            paths[_pair(item.frames[0])].append(item)
        data = SourceData([], len(raws))
        data.conversions = [
            "REF_polarisation: e/Å² along normalized lattice vectors of the polar end → polarization in e/Å², "
            "Cartesian in the frame's own cell, relative to the nonpolar end of the matched path"
        ]
        data.notes.append(f"matched to {self.paths_file} (sha256 {file_sha256(published)[:16]}...)")
        for raw in raws:
            self._add(raw, paths.get(_pair(raw), []), data)
        data.notes.append(f"{len(data.frames)} of {len(raws)} frames matched a published path that is smooth")
        return data

    def _add(self, raw: RawFrame, candidates: Sequence[PolarizationPath], data: SourceData) -> None:
        key = find_key(raw, "polarization")
        if key is None:
            raise LabelError(f"Source {self.label!r}: frame {raw.index} has no polarization.")
        found = [(path, k) for path in candidates for k in range(len(path.frames)) if same_crystal(raw, path.frames[k])]
        label = np.asarray(raw.info[key], dtype=float) * E_PER_A2_TO_UC_PER_CM2
        findings: list[Finding] = []
        flags: list[Finding] = []
        best: tuple[PolarizationPath, int] | None = None
        if not found:
            message = f"no frame of {len(candidates)} published paths has this cell and these coordinates"
            findings.append(Finding(code="path_no_match", value=None, threshold=None, unit="", message=message))
        else:
            differences = [_label_difference(label, path, k) for path, k in found]
            k = int(np.argmin(differences))
            best = found[k]
            if differences[k] > LABEL_TOLERANCE:
                message = f"the label is {differences[k]:.3g} quantum off the published one"
                findings.append(
                    Finding(
                        code="path_label_mismatch",
                        value=differences[k],
                        threshold=LABEL_TOLERANCE,
                        unit="quantum",
                        message=message,
                    )
                )
            rejects, flags = judge_path(best[0], PathLimits())
            findings.extend(rejects)
        index = frame_index(raw)
        if findings or best is None:
            formula = reduced_formula(raw.numbers)
            data.rejects.append(
                FrameFindings(source=self.label, source_index=index, formula=formula, findings=findings)
            )
            return
        path, k = best
        frame = make_frame(
            self,
            raw,
            {"polarization": polarization_of(path.changes[k], raw.cell)},
            wfid=path.wfid,
            path_index=k,
            nonpolar_mpid=str(raw.info.get("nonpolar_mpid", "")),
            polar_mpid=str(raw.info.get("polar_mpid", "")),
            polarization_raw=polarization_of(path.fractions[k], raw.cell),
        )
        data.frames.append(frame)
        if flags:
            data.flags[index] = flags


def _pair(raw: RawFrame) -> tuple[str, str]:
    return str(raw.info.get("nonpolar_mpid", "")), str(raw.info.get("polar_mpid", ""))


def _label_difference(label: np.ndarray, path: PolarizationPath, k: int) -> float:
    """Return the largest difference of fractions p/quantum from the published ones, modulo a whole quantum."""
    quanta = np.asarray(path.frames[k].info["polarization_quanta_abc_uC_cm2"])
    difference = label / quanta - path.fractions[k]
    return float(np.abs(difference - np.round(difference)).max())


def same_crystal(one: RawFrame, two: RawFrame) -> bool:
    """Return whether two frames have the same atoms in the same order, cell parameters and fractional coordinates.

    The cells may be rotated against each other; fractional coordinates count modulo 1.
    """
    if not np.array_equal(one.numbers, two.numbers):
        return False
    metric_one, metric_two = one.cell @ one.cell.T, two.cell @ two.cell.T
    lengths_one, lengths_two = np.sqrt(np.diag(metric_one)), np.sqrt(np.diag(metric_two))
    if np.abs(lengths_one - lengths_two).max() > CELL_TOLERANCE:
        return False
    cosines = metric_one / np.outer(lengths_one, lengths_one) - metric_two / np.outer(lengths_two, lengths_two)
    if np.abs(cosines).max() > CELL_TOLERANCE:
        return False
    difference = one.positions @ np.linalg.inv(one.cell) - two.positions @ np.linalg.inv(two.cell)
    difference -= np.round(difference)
    return bool(np.linalg.norm(difference @ two.cell, axis=1).max() < SITE_TOLERANCE)
