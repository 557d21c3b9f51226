"""Relaxation of a crystal with a model's forces and stress, before a property is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from fieldflows.schemas.common import finite_or_none, quantity
from fieldflows.schemas.provenance import Relaxation

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from fieldflows.backends.base import FieldModel
    from fieldflows.structures import StructureLike


class RelaxSettings(BaseModel):
    """How to relax."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    force_threshold: float = quantity("eV/Å", "Largest force allowed, on atoms and on the cell.", 0.005, gt=0)
    max_steps: int = quantity("1", "Largest number of steps.", 500, ge=1)
    relax_cell: bool = Field(True, description="Whether the cell may change too.")


def relax_structure(
    structure: StructureLike, model: FieldModel, settings: RelaxSettings | None = None
) -> tuple[Structure, Relaxation]:
    """Return the relaxed crystal, atoms in the same order, and a record of how it went.

    L-BFGS on atoms and, if asked, the deformation gradient (ASE's Fréchet cell filter), at zero field.  A relaxation
    that runs out of steps is returned with ``converged=False``.

    Args:
        structure: The crystal.
        model: A model that was trained on energies and forces.
        settings: Thresholds.

    Raises:
        CapabilityError: If the model has no energy surface.
        StructureError: If the crystal is broken, or falls apart on the way.
    """
    from ase.filters import FrechetCellFilter
    from ase.optimize import LBFGS

    from fieldflows.calculators import FieldCalculator
    from fieldflows.properties.base import model_card
    from fieldflows.structures import as_atoms, as_structure, check_structure

    settings = settings or RelaxSettings()
    observables = ("energy", "forces", "stress") if settings.relax_cell else ("energy", "forces")
    model.info.require(observables, "relaxation")
    check_structure(structure)
    atoms = as_atoms(structure)
    atoms.calc = FieldCalculator(model)
    energy, volume = atoms.get_potential_energy(), atoms.get_volume()
    optimizer = LBFGS(FrechetCellFilter(atoms) if settings.relax_cell else atoms, logfile=None)
    converged = optimizer.run(fmax=settings.force_threshold, steps=settings.max_steps)
    check_structure(atoms)
    record = Relaxation(
        model=model_card(model),
        converged=bool(converged),
        n_steps=int(optimizer.nsteps),
        force_threshold=settings.force_threshold,
        max_force=finite_or_none(np.linalg.norm(atoms.get_forces(), axis=1).max()),
        relax_cell=settings.relax_cell,
        volume_change=finite_or_none(atoms.get_volume() / volume - 1.0),
        energy_change=finite_or_none(atoms.get_potential_energy() - energy),
    )
    return as_structure(atoms), record
