"""Molecular dynamics of BaTiO3 in 135 atoms: energies, forces, stresses and the full response to a field."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from fieldflows.datasets.consistency import require_consistent
from fieldflows.datasets.extxyz import RawFrame, read_extxyz
from fieldflows.datasets.frame import LabeledFrame
from fieldflows.datasets.source import Source, SourceData, first_keys, label_frames, largest_field

CONVENTIONS: dict[str, str] = {
    "energy": "eV",
    "forces": "eV_per_angstrom",
    "stress": "eV_per_angstrom3",
    "polarization": "e_per_angstrom2",
    "born_effective_charges": "polarization_displacement",
    "polarizability": "e_per_volt_angstrom",
}
"""ΔP against Z*Δu/Ω confirms polarization and charges; the virial of a pair potential fitted to the forces, stress."""


class BaTiO3MD(Source):
    """``BaTiO3-preprocessed.xyz``: Cartesian P in e/Å², wrapped to ± half a quantum of the supercell.

    The tag REF_electric_field = 0.3, 0.3, 0.3 is not physical (Z*ᵀ𝓔 alone would exceed the forces): labels are those
    at zero field.
    """

    trajectory: ClassVar[bool] = True

    type: Literal["batio3_md"] = "batio3_md"
    license: str = "none stated. Do not redistribute."
    reference: str = "Falletta et al., Nat. Commun. 16, 4031 (2025) (Allegro-pol)"

    def read(self, path: Path, base: Path | None = None) -> SourceData:
        """Return the labeled frames.

        Raises:
            DataError: If the file cannot be read.
            ConventionError: If labels are implausible or contradict each other.
        """
        raws = list(islice(read_extxyz(path), self.limit))
        data = label_frames(self, raws, first_keys(raws, CONVENTIONS))
        data.notes.extend(self._field_note(raws, data.frames))
        data.notes.extend(require_consistent(self.label, data.frames))
        data.notes.append("polarization keeps the file's branches: compare it modulo the quantum of the cell")
        return data

    def _field_note(self, raws: Sequence[RawFrame], frames: Sequence[LabeledFrame]) -> list[str]:
        tag = largest_field(raws)
        if not tag:
            return []
        labels = frames[0].labels
        note = f"the tagged electric field of {tag:g} V/Å is not physical and was ignored"
        if {"forces", "born_effective_charges"} <= labels.keys():
            push = float(np.abs(labels["born_effective_charges"].sum(axis=1)).max()) * tag
            force = float(np.abs(labels["forces"]).max())
            note += f": it would add up to {push:.2f} eV/Å, forces of the first frame reach {force:.2f}"
        return [note]
