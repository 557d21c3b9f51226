"""Crystals at the border: conversion between ASE and pymatgen, and checks that a structure can be computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from fieldflows.errors import StructureError

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

StructureLike: TypeAlias = "Atoms | Structure"
"""An ``ase.Atoms`` or a pymatgen ``Structure``."""

MINIMUM_DISTANCE = 0.5
"""Shortest interatomic distance in Å that is accepted."""

MINIMUM_VOLUME_PER_ATOM = 2.0
"""Smallest volume per atom in Å³ that is accepted (diamond has 5.7, hydrogen at 500 GPa about 1.2)."""

MAXIMUM_VOLUME_PER_ATOM = 2000.0
"""Largest volume per atom in Å³ that is accepted."""


def as_atoms(structure: StructureLike) -> Atoms:
    """Return an ASE copy of a crystal, atoms in the same order, without calculator.

    Raises:
        StructureError: If the object is no structure or has partially occupied sites.
    """
    from ase import Atoms

    if isinstance(structure, Atoms):
        copy = structure.copy()
        copy.calc = None
        return copy
    from pymatgen.core import Structure

    if isinstance(structure, Structure):
        if not structure.is_ordered:
            partial = [f"{i} ({site.species_string})" for i, site in enumerate(structure) if not site.is_ordered]
            raise StructureError(
                f"{structure.formula} has partially occupied sites: {', '.join(partial[:4])}.",
                "Order it first, for example with pymatgen's OrderDisorderedStructureTransformation.",
            )
        return Atoms(
            numbers=[site.specie.Z for site in structure],
            positions=structure.cart_coords,
            cell=structure.lattice.matrix,
            pbc=True,
        )
    raise StructureError(
        f"Expected an ase.Atoms or a pymatgen Structure, found {type(structure).__name__}.",
        "Read files with ase.io.read or Structure.from_file first.",
    )


def as_structure(structure: StructureLike) -> Structure:
    """Return a pymatgen Structure with the atoms in the same order and the lattice in the same frame.

    Raises:
        StructureError: If the object is no periodic structure.
    """
    from pymatgen.core import Lattice, Structure

    if isinstance(structure, Structure):
        return structure
    atoms = as_atoms(structure)
    check_structure(atoms)
    return Structure(
        Lattice(atoms.cell[:]), list(atoms.symbols), atoms.positions, coords_are_cartesian=True, to_unit_cell=False
    )


def check_structure(structure: StructureLike, name: str | None = None) -> None:
    """Raise unless the structure is a periodic crystal with finite, separated atoms.

    Checked in this order: at least one atom; finite cell and positions; periodic in three directions with a
    cell of positive volume; volume per atom plausible (a cell in bohr or nm is not); no two atoms closer than
    :data:`MINIMUM_DISTANCE`.

    Args:
        structure: The crystal.
        name: What to call it in messages; the formula by default.

    Raises:
        StructureError: Says which check failed, with the number found.
    """
    atoms = as_atoms(structure)
    label = name or atoms.get_chemical_formula(empirical=True) or "the structure"
    if len(atoms) == 0:
        raise StructureError(f"{label} holds no atoms.", "Check that the file is complete.")
    if (atoms.numbers < 1).any():
        raise StructureError(f"{label} holds dummy atoms (atomic number 0).", "Remove or replace them.")
    if not np.isfinite(atoms.cell[:]).all() or not np.isfinite(atoms.positions).all():
        bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
        where = f"positions of atoms {bad[:5].tolist()}" if len(bad) else "the cell"
        raise StructureError(f"{label} has values that are not finite in {where}.", "Check the source file.")
    if not atoms.pbc.all():
        raise StructureError(
            f"{label} is not periodic in three directions (pbc = {atoms.pbc.tolist()}).",
            "Response per volume is defined for bulk crystals only; a molecule or slab needs a three-dimensional cell.",
        )
    volume = abs(float(np.linalg.det(atoms.cell[:])))
    per_atom = volume / len(atoms)
    if volume < 1e-3:
        raise StructureError(f"The cell of {label} has zero volume.", "Give three independent lattice vectors in Å.")
    if not MINIMUM_VOLUME_PER_ATOM <= per_atom <= MAXIMUM_VOLUME_PER_ATOM:
        raise StructureError(
            f"{label} has {per_atom:.3g} Å³ per atom; {MINIMUM_VOLUME_PER_ATOM:g} to {MAXIMUM_VOLUME_PER_ATOM:g} is "
            "expected.",
            "Check the unit of lengths: cells are read in Å, not in bohr or nm.",
        )
    distance, pair = closest_pair(atoms)
    if distance < MINIMUM_DISTANCE:
        raise StructureError(
            f"Atoms {pair[0]} and {pair[1]} of {label} are {distance:.3f} Å apart (least allowed: "
            f"{MINIMUM_DISTANCE} Å).",
            "Remove duplicated sites, or check the unit of lengths.",
        )


def closest_pair(atoms: Atoms) -> tuple[float, tuple[int, int]]:
    """Return the shortest distance in Å between two atoms, periodic images included, and their indices.

    Distances above 1.5 Å are not searched for: the result is then ``(inf, (0, 0))``.
    """
    from matscipy.neighbours import neighbour_list

    i, j, d = neighbour_list("ijd", atoms, 1.5)
    if len(d) == 0:
        return float("inf"), (0, 0)
    k = int(np.argmin(d))
    return float(d[k]), (int(i[k]), int(j[k]))
