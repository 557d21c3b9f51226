"""Whether one space group is a subgroup of another, checked operation by operation on two mapped crystals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fieldflows.physics.bare import BareCrystal, primitive_cell, shortest_differences
from fieldflows.physics.symmetry import atom_permutations, search_symmetry

FloatArray = NDArray[np.float64]

POLAR_POINT_GROUPS = frozenset({"1", "2", "m", "mm2", "4", "4mm", "3", "3m", "6", "6mm"})
"""Point groups that leave a direction as it is: Nye, Physical Properties of Crystals (1957), table 21."""


@dataclass(frozen=True)
class EndGroup:
    """Space group of one end of a path.

    Attributes:
        number: International number, 1 to 230.
        symbol: International symbol.
        point_group: International symbol of the point group.
        order: Number of operations of the point group.
    """

    number: int
    symbol: str
    point_group: str
    order: int

    @property
    def is_polar(self) -> bool:
        """Whether the point group allows a polarization."""
        return self.point_group in POLAR_POINT_GROUPS


@dataclass(frozen=True)
class GroupRelation:
    """How the operations of the polar end act on the nonpolar one.

    Attributes:
        nonpolar: Group of the nonpolar end.
        polar: Group of the polar end.
        n_operations: Operations of the polar end in its cell, pure translations included; the shape of a supercell may
            hide some.
        n_kept: Those that are operations of the nonpolar end too: all, if the one group is a subgroup of the other.
        n_along: Those that map displacements on displacements: they hold at every frame of the path.
        index: Index of the subgroup, if it is one: nonpolar operations per polar operation in the same volume.
    """

    nonpolar: EndGroup
    polar: EndGroup
    n_operations: int
    n_kept: int
    n_along: int
    index: int | None

    @property
    def related(self) -> bool:
        """Whether the space group of the polar end is a subgroup of the nonpolar one's."""
        return self.n_kept == self.n_operations


def relate_groups(
    nonpolar: BareCrystal, polar: BareCrystal, mapped: BareCrystal, symprec: float, tolerance: float
) -> GroupRelation:
    """Return how the operations of a polar crystal act on a nonpolar one that was mapped to its cell.

    An operation (W, w) of the polar end is kept if it maps the lattice and the atoms of the mapped nonpolar crystal on
    themselves within the tolerance, up to a rigid shift.

    Args:
        nonpolar: As given, for its own space group.
        polar: In the cell of the path.
        mapped: The nonpolar crystal in that cell, atoms in the same order and in the nearest images.
        symprec: Tolerance of the search in Å.
        tolerance: Largest distance in Å between image and atom.

    Raises:
        EvaluationError: If a space group cannot be found.
    """
    reduced, transform = polar.reduced()
    inverse = np.linalg.inv(transform)
    other = BareCrystal(transform @ mapped.cell, mapped.fractional @ inverse, mapped.numbers)
    _, _, dataset = search_symmetry(reduced.cell, reduced.positions, reduced.numbers, symprec)
    rotations, translations = dataset.rotations.astype(float), dataset.translations
    permutations = atom_permutations(
        reduced.fractional, reduced.numbers, rotations, translations, reduced.cell, 10 * symprec + 1e-6
    )
    parts = list(zip(rotations, translations, permutations, strict=True))
    lattice = [_keeps_lattice(other.cell, rotation, tolerance) for rotation in rotations]
    kept = [ok and _keeps_atoms(other, w, t, tolerance) for ok, (w, t, _) in zip(lattice, parts, strict=True)]
    differences = reduced.fractional - other.fractional
    along = [ok and _keeps_path(differences, reduced.cell, w, p, tolerance) for ok, (w, _, p) in
             zip(kept, parts, strict=True)]  # fmt: skip
    start, end = end_group(nonpolar, symprec), end_group(polar, symprec)
    cells = len(primitive_cell(polar, symprec)[0]) // len(primitive_cell(nonpolar, symprec)[0])
    index = start.order * cells // end.order if all(kept) else None
    return GroupRelation(start, end, len(rotations), sum(kept), sum(along), index)


def end_group(crystal: BareCrystal, symprec: float) -> EndGroup:
    """Return the space group of a crystal, whatever its cell.

    Args:
        crystal: In any cell; operations that a supercell hides count.
        symprec: Tolerance in Å.

    Raises:
        EvaluationError: If no space group is found.
    """
    primitive, _ = primitive_cell(crystal, symprec)[0].reduced()
    dataset = search_symmetry(primitive.cell, primitive.positions, primitive.numbers, symprec)[2]
    order = len(np.unique(dataset.rotations.reshape(-1, 9), axis=0))
    return EndGroup(int(dataset.number), str(dataset.international), str(dataset.pointgroup).strip(), order)


def _keeps_lattice(cell: FloatArray, rotation: FloatArray, tolerance: float) -> bool:
    """Return whether W is an isometry of a lattice: a vector as long as the cell changes by less than the tolerance."""
    columns = cell.T
    stretches = np.linalg.svd(columns @ rotation @ np.linalg.inv(columns), compute_uv=False)
    return bool(np.abs(stretches - 1).max() * np.linalg.norm(cell, axis=1).max() <= tolerance)


def _keeps_atoms(crystal: BareCrystal, rotation: FloatArray, translation: FloatArray, tolerance: float) -> bool:
    """Return whether (W, w) maps atoms on atoms of their kind, each on its own, up to a rigid shift."""
    images = crystal.fractional @ rotation.T + translation
    distances = np.empty((len(crystal), 3))
    for kind in np.unique(crystal.numbers):
        atoms = np.flatnonzero(crystal.numbers == kind)
        between = shortest_differences(crystal.cell, images[atoms], crystal.fractional[atoms])
        nearest = (between**2).sum(axis=2).argmin(axis=1)
        if len(np.unique(nearest)) < len(atoms):
            return False
        distances[atoms] = between[np.arange(len(atoms)), nearest]
    return bool(np.linalg.norm(distances - distances.mean(axis=0), axis=1).max() <= tolerance)


def _keeps_path(
    differences: FloatArray, cell: FloatArray, rotation: FloatArray, permutation: NDArray[np.intp], tolerance: float
) -> bool:
    """Return whether W maps the displacement of each atom on that of the atom it is brought to."""
    missed = (differences @ rotation.T - differences[permutation]) @ cell
    missed -= missed.mean(axis=0)
    return bool(np.linalg.norm(missed, axis=1).max() <= tolerance)
