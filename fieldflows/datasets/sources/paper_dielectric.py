"""Dielectric tensors and Born charges of Materials Project crystals, in the 2025 files of the MACE-Field paper."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import Field

from fieldflows.datasets.extxyz import read_extxyz
from fieldflows.datasets.source import Source, SourceData, first_keys, label_frames, refuse_field

CONVENTIONS: dict[str, str] = {
    "born_effective_charges": "polarization_displacement",
    "polarizability": "gaussian",
    "epsilon_ionic": "permittivity",
    "piezoelectric": "vasp",
}
"""Measured: n = √(1 + 4π tr(x)/3) is the Matbench value of the same material to 1e-6."""


class PaperDielectric(Source):
    """``dielectric-{train,valid,test}.xyz``: α as (ε∞ − 1)/(4π), although the paper says e/(V Å).

    Frames hold REF_becs (or REF_bec), REF_polarisability, REF_dielectric_ionic, REF_piezoelectric; no energies, no
    forces, no identifiers.
    """

    type: Literal["paper_dielectric"] = "paper_dielectric"
    polarizability: Literal["gaussian", "susceptibility", "e_per_volt_angstrom"] = Field(
        default="gaussian", description="Convention of REF_polarisability; the 2026 files have 'susceptibility'."
    )
    license: str = "none stated; labels derive from the Materials Project (CC-BY-4.0). Do not redistribute."
    reference: str = (
        "Martin et al., PRX Intelligence 1, 013006 (2026); Materials Project; Petousis et al., Sci. Data 4, 160134 "
        "(2017)"
    )

    def read(self, path: Path, base: Path | None = None) -> SourceData:
        """Return the labeled frames.

        Raises:
            DataError: If the file cannot be read.
            ConventionError: If the polarizabilities are implausible.
        """
        raws = list(islice(read_extxyz(path), self.limit))
        refuse_field(self, raws)
        data = label_frames(self, raws, first_keys(raws, {**CONVENTIONS, "polarizability": self.polarizability}))
        data.notes.append("config_*_weight keys are not read: a label that is absent has no weight")
        return data
