"""Whether two crystals are the same, by pymatgen's StructureMatcher, each crystal reduced once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from fieldflows.errors import EvaluationError
from fieldflows.physics.crystal import compact_cell
from fieldflows.structures import MINIMUM_DISTANCE, MINIMUM_VOLUME_PER_ATOM

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

SKEWED = 30.0
"""Condition number of a cell above which shorter lattice vectors are taken first."""


class Tolerances(BaseModel):
    """How far two crystals may differ."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    length: float = Field(
        default=0.2, gt=0, description="Fractional tolerance of lattice lengths.", json_schema_extra={"unit": "1"}
    )
    site: float = Field(
        default=0.3, gt=0, description="Tolerance of sites (RMS) as a fraction of (V/n)^(1/3).",
        json_schema_extra={"unit": "1"},
    )  # fmt: skip
    angle: float = Field(default=5.0, gt=0, description="Tolerance of angles.", json_schema_extra={"unit": "degree"})
    scale: bool = Field(default=True, description="Bring both to the same volume first.")


class CrystalMatcher:
    """Compares crystals; primitive, reduced cells are made when they are needed first, and kept.

    Args:
        tolerances: How far crystals may differ.
    """

    def __init__(self, tolerances: Tolerances) -> None:
        from pymatgen.analysis.structure_matcher import StructureMatcher

        self.matcher = StructureMatcher(
            tolerances.length, tolerances.site, tolerances.angle, primitive_cell=False, scale=tolerances.scale
        )
        self._reduced: dict[int, tuple[Atoms, Structure | None]] = {}

    def same(self, one: Atoms, two: Atoms) -> bool:
        """Whether two crystals are the same; false for a cell that cannot be reduced."""
        first = self._reduce(one)
        second = self._reduce(two)
        if first is None or second is None or len(first) != len(second):
            return False
        return bool(self.matcher.fit(first, second, skip_structure_reduction=True))

    def _reduce(self, atoms: Atoms) -> Structure | None:
        known = self._reduced.get(id(atoms))
        if known is None:
            known = self._reduced[id(atoms)] = (atoms, reduced_structure(atoms))  # the crystal too, to keep its id
        return known[1]


def reduced_structure(atoms: Atoms) -> Structure | None:
    """Return the Niggli-reduced primitive cell, or None if there is none.

    Cells that no crystal has are not tried: pymatgen would list the lattice points of a needle until memory is full.
    """
    from pymatgen.core import Lattice, Structure

    cell = atoms.cell[:]
    if not np.isfinite(cell).all() or abs(np.linalg.det(cell)) < MINIMUM_VOLUME_PER_ATOM * len(atoms):
        return None
    try:
        cell = compact_cell(cell)[0] if np.linalg.cond(cell) > SKEWED else cell
        if np.linalg.norm(cell, axis=1).min() < MINIMUM_DISTANCE:
            return None
        structure = Structure(
            Lattice(cell), list(atoms.symbols), atoms.positions, coords_are_cartesian=True, to_unit_cell=False
        )
        return structure.get_primitive_structure().get_reduced_structure()
    except (ValueError, ArithmeticError, IndexError, EvaluationError):
        return None
