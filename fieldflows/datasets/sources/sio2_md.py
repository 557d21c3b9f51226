"""Molecular dynamics of α-quartz in 72 atoms: energies, forces, stresses and the full response to a field."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

from fieldflows.datasets.consistency import require_consistent
from fieldflows.datasets.extxyz import read_extxyz
from fieldflows.datasets.source import Source, SourceData, first_keys, label_frames, refuse_field

CONVENTIONS: dict[str, str] = {
    "energy": "eV",
    "forces": "eV_per_angstrom",
    "stress": "eV_per_angstrom3",
    "polarization": "dipole_e_angstrom",
    "born_effective_charges": "polarization_displacement",
    "polarizability": "per_cell",
}
"""ΔP against Z*Δu/Ω confirms polarization and charges; the virial of a pair potential fitted to the forces, stress."""


class SiO2MD(Source):
    """``SiO2.xyz`` with its original keys: dipole in e·Å and polarizability in e·Å²/V, both per cell."""

    trajectory: ClassVar[bool] = True

    type: Literal["sio2_md"] = "sio2_md"
    license: str = "none stated. Do not redistribute."
    reference: str = "Falletta et al., Nat. Commun. 16, 4031 (2025) (Allegro-pol)"

    def read(self, path: Path, base: Path | None = None) -> SourceData:
        """Return the labeled frames.

        Raises:
            DataError: If the file cannot be read.
            ConventionError: If labels are implausible or contradict each other.
        """
        raws = list(islice(read_extxyz(path), self.limit))
        refuse_field(self, raws)
        data = label_frames(self, raws, first_keys(raws, CONVENTIONS))
        data.notes.extend(require_consistent(self.label, data.frames))
        return data
