"""Nonpolar references that a polar crystal suggests itself: the nonpolar supergroups that a small distortion reaches.

Two ways lead there.  The search of the space group is repeated with a growing tolerance, as far as spglib follows; and
operations are added one by one that the crystal almost has (:mod:`fieldflows.physics.pseudosymmetry`), again to what
came of it.  What is found is sorted by the size of the distortion.  Nothing tells which of them the crystal passes when
it is switched: they are proposals.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from fieldflows.errors import EvaluationError, PathError
from fieldflows.physics.bare import BareCrystal, primitive_cell
from fieldflows.physics.crystal import symmetrize_crystal
from fieldflows.physics.distortion import Distortion, DistortionLimits, bare_crystal
from fieldflows.physics.pseudosymmetry import pseudosymmetric_crystals
from fieldflows.physics.relation import EndGroup, end_group
from fieldflows.physics.sublattices import strain_norm, stretch_of
from fieldflows.physics.symmetry import SYMPREC
from fieldflows.structures import as_atoms, as_structure, check_structure

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from fieldflows.structures import StructureLike

FloatArray = NDArray[np.float64]

Route = Literal["tolerance", "pseudosymmetry"]

TOLERANCES = tuple(np.geomspace(0.02, 1.5, 16))
"""Tolerances in Å with which the space group is searched, one after the other."""
MOST_PROPOSALS = 8
"""References that are returned at most."""
MOST_ATOMS = 200
"""Atoms of a primitive cell above which operations are not added one by one."""
MOST_ROUNDS = 6
"""Crystals to which operations are added one by one, the polar one and those that came of it."""


@dataclass(frozen=True)
class ProposedReference:
    """A nonpolar crystal near a polar one.

    Attributes:
        structure: In the frame of the polar crystal's primitive cell; atoms in its order.
        group: Its space group.
        route: How it was found.
        distortion: From it to the polar crystal.
        cost: Size of the distortion in Å, as in :mod:`fieldflows.physics.mapping`.
        same_cell: Whether it has cell and order of atoms of the polar crystal as given.
    """

    structure: Structure
    group: EndGroup
    route: Route
    distortion: Distortion
    cost: float
    same_cell: bool


def is_polar(structure: StructureLike, symprec: float = SYMPREC) -> bool:
    """Return whether the point group of a crystal allows a polarization; False if it has no space group.

    Args:
        structure: The crystal, in any cell.
        symprec: Tolerance in Å.
    """
    try:
        return end_group(bare_crystal(as_atoms(structure)), symprec).is_polar
    except EvaluationError:
        return False


def propose_references(
    polar: StructureLike,
    limits: DistortionLimits | None = None,
    symprec: float = SYMPREC,
    most: int = MOST_PROPOSALS,
    rounds: int = MOST_ROUNDS,
) -> list[ProposedReference]:
    """Return nonpolar crystals near a polar one, the smallest distortion first, one for each space group.

    Args:
        polar: The crystal.
        limits: How far they may be.
        symprec: Tolerance of space groups in Å.
        most: Number of proposals.
        rounds: Crystals to which operations are added: 1 for the polar one alone, which finds the nearest references;
            more if nothing is found.

    Raises:
        PathError: If the crystal is not polar, or no nonpolar one is near.
        StructureError: If it is no crystal.
    """
    limits = limits or DistortionLimits()
    atoms = as_atoms(polar)
    check_structure(atoms)
    name = atoms.get_chemical_formula(empirical=True)
    try:
        given = bare_crystal(atoms)
        own = end_group(given, symprec)
        start, _ = primitive_cell(given, symprec)
    except EvaluationError as error:
        raise PathError(f"The symmetry of {name} cannot be found: {error.message}", error.hint) from error
    if not own.is_polar:
        raise PathError(
            f"{name} has the point group {own.point_group} (space group {own.symbol}), which allows no polarization.",
            "Give a polar crystal, or a smaller symprec.",
        )
    best: dict[int, ProposedReference] = {}
    for most_rounds in dict.fromkeys((rounds, max(rounds, MOST_ROUNDS))):
        for crystal, route in _candidates(start, limits, symprec, most_rounds):
            found = _judged(crystal, start, route, limits, symprec, len(start) == len(given))
            known = None if found is None else best.get(found.group.number)
            if found is not None and (known is None or found.cost < known.cost - 1e-6):
                best[found.group.number] = found
        if best:
            break
    if not best:
        raise PathError(
            f"No nonpolar crystal is near {name} ({own.symbol}): with no operation that it almost has, and at no "
            f"tolerance up to {TOLERANCES[-1]:g} Å, does it become nonpolar within {limits.displacement:g} Å and a "
            f"strain of {100 * limits.strain:g} %.",
            "Give a nonpolar reference, or raise the limits.",
        )
    return sorted(best.values(), key=lambda item: item.cost)[:most]


def _candidates(
    crystal: BareCrystal, limits: DistortionLimits, symprec: float, rounds: int
) -> Iterator[tuple[BareCrystal, Route]]:
    seen: set[int] = set()
    with _quiet_spglib():
        for tolerance in TOLERANCES:
            with contextlib.suppress(EvaluationError):
                found = symmetrize_crystal(crystal.cell, crystal.positions, crystal.numbers, tolerance)
                if found.space_group not in seen:
                    seen.add(found.space_group)
                    yield BareCrystal.of(found.cell, found.positions, found.numbers), "tolerance"
    if len(crystal) > MOST_ATOMS:
        return
    pending, reached = [crystal], {_group_number(crystal, symprec)}
    for _ in range(rounds):
        if not pending:
            return
        current = pending.pop(0)
        with contextlib.suppress(EvaluationError):
            for item in pseudosymmetric_crystals(current, symprec, 2 * limits.displacement, limits.strain):
                if item.largest > limits.displacement:
                    continue
                yield item.crystal, "pseudosymmetry"
                number = _group_number(item.crystal, symprec)
                if number and number not in reached:
                    reached.add(number)
                    pending.append(item.crystal)


def _group_number(crystal: BareCrystal, symprec: float) -> int:
    try:
        return end_group(crystal, symprec).number
    except EvaluationError:
        return 0


def _judged(
    crystal: BareCrystal, polar: BareCrystal, route: Route, limits: DistortionLimits, symprec: float, same_cell: bool
) -> ProposedReference | None:
    """Return a candidate that is nonpolar and near enough, or None."""
    from ase import Atoms

    try:
        group = end_group(crystal, symprec)
    except EvaluationError:
        return None
    if group.is_polar:
        return None
    rotation, stretch = stretch_of(crystal.cell, polar.cell)
    if np.linalg.det(rotation) < 0:
        return None
    differences = polar.fractional - crystal.fractional
    displacements = (differences - np.round(differences)) @ polar.cell
    distortion = Distortion(displacements - displacements.mean(axis=0), stretch - np.eye(3))
    if distortion.largest > limits.displacement or distortion.largest_strain > limits.strain:
        return None
    length = (polar.volume / len(polar)) ** (1 / 3)
    cost = float(np.hypot(distortion.root_mean_square, length * strain_norm(distortion.strain)))
    atoms = Atoms(crystal.numbers, positions=crystal.positions, cell=crystal.cell, pbc=True)
    try:
        check_structure(atoms)
    except Exception:  # atoms that meet at a site of high symmetry
        return None
    return ProposedReference(as_structure(atoms), group, route, distortion, cost, same_cell)


@contextlib.contextmanager
def _quiet_spglib() -> Iterator[None]:
    """Keep spglib, which gives up at large tolerances as it should, from writing that to the standard error."""
    before = os.environ.get("SPGLIB_WARNING")
    os.environ["SPGLIB_WARNING"] = "OFF"
    try:
        yield
    finally:
        if before is None:
            del os.environ["SPGLIB_WARNING"]
        else:
            os.environ["SPGLIB_WARNING"] = before
