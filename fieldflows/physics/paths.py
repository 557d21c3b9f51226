"""Paths from a nonpolar to a polar crystal: cells and sites matched, rotation and shift removed, frames interpolated.

Fractional coordinates and the stretch of the cell go linearly from the polar end (L, x) to the nonpolar one
(L S⁻¹, x − Δx), as in the published paths (Smidt et al., Sci. Data 7, 72 (2020)) and with the same code, pymatgen's
``Structure.interpolate``:

    L_k = L [1 + λ_k (S⁻¹ − 1)],     x_k = x − λ_k Δx,     λ_k = (n − 1 − k)/(n − 1),     k = 0 ... n − 1

The frame of the polar end as given is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from fieldflows.errors import EvaluationError, PathError, SettingsError
from fieldflows.physics.bare import BareCrystal
from fieldflows.physics.distortion import (
    Distortion,
    DistortionLimits,
    Match,
    PathWarning,
    bare_crystal,
    check_different,
    check_distances,
    check_images,
    check_nearest,
    check_polar,
    check_relation,
    check_size,
)
from fieldflows.physics.mapping import CrystalMapping, map_crystal
from fieldflows.physics.relation import GroupRelation, relate_groups
from fieldflows.physics.sublattices import strain_norm, stretch_of
from fieldflows.physics.symmetry import SYMPREC
from fieldflows.structures import as_atoms, as_structure, check_structure

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

    from fieldflows.structures import StructureLike

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class DistortionPath:
    """Crystals from a nonpolar to a polar one, atom by atom in the same order.

    Attributes:
        frames: pymatgen structures, nonpolar first; the last one is the polar end as given.
        mapping: Which cell and which atoms of the nonpolar crystal they come from; sites and cell of frame 0.
        distortion: From the first to the last frame.
        relation: Space groups of the ends, and how far the one is a subgroup of the other.
        warnings: What to know before using the path.
    """

    frames: tuple[Structure, ...]
    mapping: CrystalMapping
    distortion: Distortion
    relation: GroupRelation
    warnings: tuple[PathWarning, ...] = field(default=())

    @property
    def nonpolar(self) -> Structure:
        """The first frame."""
        return self.frames[0]

    @property
    def polar(self) -> Structure:
        """The last frame."""
        return self.frames[-1]

    @property
    def rotation(self) -> FloatArray:
        """(3, 3) proper rotation that was applied to the nonpolar crystal as given."""
        return self.mapping.rotation

    def __len__(self) -> int:
        return len(self.frames)


def build_path(
    nonpolar: StructureLike | str,
    polar: StructureLike | str,
    n_frames: int = 10,
    match: Match = "search",
    *,
    limits: DistortionLimits | None = None,
    symprec: float = SYMPREC,
    relation: Literal["require", "warn"] = "require",
    provider: Callable[[str], StructureLike] | None = None,
) -> DistortionPath:
    """Return the path between two crystals.

    Args:
        nonpolar: Crystal without polarization, in any cell, orientation and order of atoms; or its identifier.
        polar: Crystal with polarization; its cell, frame and order are those of the path; or its identifier.
        n_frames: Frames, both ends included.
        match: "search" finds the smallest distortion; "given" takes atoms and lattice vectors in the order given, as
            published pairs are written.
        limits: How far the ends may be apart.
        symprec: Tolerance of space groups in Å.
        relation: Whether a polar end whose space group is no subgroup of the nonpolar one's is an error, or a warning.
        provider: Returns the crystal of an identifier, such as one that asks the Materials Project.

    Raises:
        PathError: If no small distortion connects the ends, if they are the same crystal, or their symmetry is wrong.
        StructureError: If an end is no crystal.
        SettingsError: If an option is wrong, or an identifier comes without a provider.
    """
    if n_frames < 2:
        raise SettingsError(f"A path has its two ends at least; {n_frames} frames were asked for.")
    if match not in ("search", "given"):
        raise SettingsError(f"There is no way {match!r} to match sites.", "Known: given, search.")
    limits = limits or DistortionLimits()
    limits = replace(limits, symmetry=max(limits.symmetry, 3 * symprec))
    start, end = _end(nonpolar, "nonpolar", provider), _end(polar, "polar", provider)
    names = [as_structure(atoms).composition.reduced_formula for atoms in (start, end)]
    if names[0] != names[1]:
        raise PathError(
            f"The nonpolar end is {names[0]}, the polar one {names[1]}.", "Give two structures of one compound."
        )
    check_different(start, end, symprec)
    check_polar(start, end, symprec)
    mapping = _searched(start, end, limits, symprec) if match == "search" else _as_given(start, end)
    distortion = Distortion(mapping.displacements, mapping.strain)
    check_size(distortion, end, limits, match)
    related = _relation(start, end, mapping, limits, symprec)
    warnings = check_relation(related, limits, relation)
    frames = _interpolate(mapping, end, n_frames, match)
    if match == "given":
        warnings += check_nearest(mapping, end)
    warnings += [*check_images(mapping, end, limits), *check_distances(frames, limits)]
    return DistortionPath(tuple(frames), mapping, distortion, related, tuple(warnings))


def _end(value: StructureLike | str, name: str, provider: Callable[[str], StructureLike] | None) -> Atoms:
    if isinstance(value, str):
        if provider is None:
            raise SettingsError(
                f"The {name} end is given by the identifier {value!r}, but nothing says where structures come from.",
                "Give a structure, or a provider.",
            )
        value = provider(value)
    atoms = as_atoms(value)
    check_structure(atoms, f"the {name} end ({atoms.get_chemical_formula(empirical=True)})")
    return atoms


def _searched(start: Atoms, end: Atoms, limits: DistortionLimits, symprec: float) -> CrystalMapping:
    """Return the smallest distortion that keeps the symmetry of the polar end; without one, the smallest at all."""

    def small_and_related(mapping: CrystalMapping) -> bool:
        if np.linalg.norm(mapping.displacements, axis=1).max() > limits.displacement:
            return False
        found = _relation(start, end, mapping, limits, symprec)
        return found.related and found.n_along == found.n_operations

    try:
        return map_crystal(bare_crystal(start), bare_crystal(end), limits.strain, symprec, small_and_related)
    except EvaluationError as error:
        raise PathError(
            f"The nonpolar crystal cannot be laid on the polar one. {error.message}",
            error.hint or "Choose ends that are related by a small distortion, or raise the limit of the strain.",
        ) from error


def _as_given(start: Atoms, end: Atoms) -> CrystalMapping:
    """Return the mapping of crystals whose cells and atoms correspond as they are written; images by fractions."""
    if not np.array_equal(start.numbers, end.numbers):
        raise PathError(
            f"Atom by atom, the ends hold different elements ({len(start)} and {len(end)} atoms).",
            "Let the sites be matched (match='search').",
        )
    first, last = bare_crystal(start), bare_crystal(end)
    if np.linalg.det(first.cell) * np.linalg.det(last.cell) < 0:
        raise PathError(
            "The cells of the two ends have opposite handedness.", "Let the cells be matched (match='search')."
        )
    rotation, stretch = stretch_of(first.cell, last.cell)
    differences = last.fractional - first.fractional
    differences -= np.round(differences)
    displacements = differences @ last.cell
    displacements -= displacements.mean(axis=0)
    strain = stretch - np.eye(3)
    length = (last.volume / len(last)) ** (1 / 3)
    return CrystalMapping(
        transform=np.eye(3),
        rotation=rotation,
        translation=np.zeros(3),
        sites=np.arange(len(last)),
        cell=first.cell @ rotation.T,
        fractional=last.fractional - differences,
        displacements=displacements,
        strain=strain,
        cost=float(np.hypot(np.sqrt((displacements**2).sum(axis=1).mean()), length * strain_norm(strain))),
    )


def _relation(
    start: Atoms, end: Atoms, mapping: CrystalMapping, limits: DistortionLimits, symprec: float
) -> GroupRelation:
    mapped = BareCrystal(mapping.cell, mapping.fractional, bare_crystal(end).numbers)
    try:
        return relate_groups(bare_crystal(start), bare_crystal(end), mapped, symprec, limits.symmetry)
    except EvaluationError as error:
        raise PathError(f"The symmetry of the ends cannot be found: {error.message}", error.hint) from error


def _interpolate(mapping: CrystalMapping, end: Atoms, n_frames: int, match: Match) -> list[Structure]:
    from pymatgen.core import Lattice, Structure

    last = as_structure(end)
    first = Structure(Lattice(mapping.cell), last.species, mapping.fractional)
    # the images are chosen already; those of pymatgen depend on the choice of the cell
    return last.interpolate(first, nimages=n_frames - 1, interpolate_lattices=True, pbc=match == "given")[::-1]
