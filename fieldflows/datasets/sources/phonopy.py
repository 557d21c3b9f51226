"""Born charges, ε∞ and forces from files of phonopy, such as those of PhononDB."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from fieldflows.datasets.extxyz import RawFrame
from fieldflows.datasets.frame import reduced_formula
from fieldflows.datasets.labels import Convention, get_convention
from fieldflows.datasets.phonopy_files import PhonopyCell, find_phonopy_files, read_phonopy_file, unpacked
from fieldflows.datasets.source import Source, SourceData, label_frames
from fieldflows.errors import DataError
from fieldflows.schemas.dataset import Finding, FrameFindings

CHARGES, EPSILON, FORCES = "born_effective_charge", "dielectric_constant", "forces"


class PhonopySource(Source):
    """``phonopy_params.yaml`` or another YAML file of phonopy, an archive with one, or a folder of many of either.

    The frame is phonopy's primitive cell.  Where the YAML file has no Born charges, a file ``BORN`` beside it is taken.
    With ``displaced`` the displaced supercells become frames with forces, as the calculation gave them: neither drift
    nor residual forces are subtracted.
    """

    type: Literal["phonopy"] = "phonopy"
    displaced: bool = Field(default=False, description="Add displaced supercells with their forces, where they are.")

    @property
    def trajectory(self) -> bool:  # type: ignore[override]
        """Whether near copies stay: displaced supercells are alike on purpose."""
        return self.displaced

    def read(self, path: Path, base: Path | None = None) -> SourceData:
        """Return the labeled frames of all files that phonopy understands.

        Raises:
            DataError: If there is no file, or none can be used.
            SettingsError: If phonopy is not installed.
            ConventionError: If the permittivities are implausible.
        """
        raws: list[RawFrame] = []
        origins: list[str] = []
        notes: list[str] = []
        rejects: list[FrameFindings] = []
        for file in find_phonopy_files(path)[: self.limit]:
            origin = file.relative_to(path).as_posix() if path.is_dir() else file.name
            for item in self._entries(file, origin, alone=file == path, notes=notes):
                if isinstance(item, Finding):
                    rejects.append(
                        FrameFindings(source=self.label, source_index=len(origins), formula="", findings=[item])
                    )
                else:
                    item.index = len(origins)
                    raws.append(item)
                origins.append(origin)
        if not raws:
            raise DataError(f"Source {self.label!r}: {path} holds no label; {rejects[0].findings[0].message}.")
        present = {key for raw in raws for key in (*raw.info, *raw.arrays)}
        data = label_frames(self, raws, {name: rule for name, rule in _rules().items() if rule[0] in present})
        data.n_frames = len(origins)
        data.rejects.extend(rejects)
        data.notes += notes
        for frame in data.frames:
            frame.extra["origin"] = origins[frame.source_index]
        return data

    def _entries(self, file: Path, origin: str, alone: bool, notes: list[str]) -> list[RawFrame | Finding]:
        """Return the frames of a file, or the reason why it has none.

        Raises:
            DataError: If the file cannot be read and is the only one.
        """
        try:
            with unpacked(file) as place:
                found = [read_phonopy_file(item, self.displaced) for item in find_phonopy_files(place)]
        except DataError as error:
            if alone:
                raise
            return [_finding("malformed", error.message)]
        notes += [f"{origin}: {note}" for item in found for note in item.notes]
        cells = [cell for item in found for cell in (item.primitive, *item.displaced)]
        frames = [raw for raw in map(_raw, cells) if raw.info or raw.arrays]
        formula = reduced_formula(found[0].primitive.numbers)
        return [*frames] or [_finding("no_label", f"{origin} ({formula}) has no Born charges, ε∞ or forces")]


def _rules() -> dict[str, tuple[str, Convention]]:
    return {
        "born_effective_charges": (CHARGES, get_convention("born_effective_charges", "polarization_displacement")),
        "polarizability": (EPSILON, get_convention("polarizability", "permittivity")),
        "forces": (FORCES, get_convention("forces", "eV_per_angstrom")),
    }


def _finding(code: str, message: str) -> Finding:
    return Finding(code=code, value=None, threshold=None, unit="", message=message)


def _raw(cell: PhonopyCell) -> RawFrame:
    raw = RawFrame(cell.numbers, cell.positions, cell.cell, np.ones(3, dtype=bool))
    if cell.epsilon is not None:
        raw.info[EPSILON] = cell.epsilon.ravel()
    if cell.born_charges is not None:
        raw.arrays[CHARGES] = cell.born_charges.reshape(len(cell.numbers), 9)
    if cell.forces is not None:
        raw.arrays[FORCES] = cell.forces
    return raw
