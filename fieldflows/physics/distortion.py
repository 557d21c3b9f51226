"""How far two crystals are apart, and whether that makes them the ends of a path: limits, errors, warnings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from fieldflows.errors import EvaluationError, PathError, SettingsError
from fieldflows.physics.bare import BareCrystal
from fieldflows.physics.mapping import CrystalMapping, map_crystal
from fieldflows.physics.relation import GroupRelation, end_group
from fieldflows.structures import as_atoms, closest_pair

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

FloatArray = NDArray[np.float64]

Match = Literal["search", "given"]
"""How sites belong together: found out, or atom by atom in the order and cells given."""

SAME_DISPLACEMENT = 1e-3
"""Largest displacement in Å of crystals that count as the same."""
SAME_STRAIN = 1e-4
"""Largest strain of crystals that count as the same."""


@dataclass(frozen=True)
class DistortionLimits:
    """How far the ends may be apart, and what is flagged.

    All 209 published paths keep the first limit, nine of ten the second.

    Attributes:
        displacement: Largest displacement of an atom, in Å, without rigid shift and strain.
        strain: Largest relative change of a length from one end to the other, either way.
        symmetry: Largest distance in Å by which an operation of the polar end may miss the nonpolar one; at least three
            times the tolerance of space groups.
        image: Share of the way to its next periodic image from which a displaced atom is flagged.
        distance: Distance of two atoms on the path, relative to the smaller one at its ends, below which it is flagged.
    """

    displacement: float = 1.5
    strain: float = 0.25
    symmetry: float = 0.03
    image: float = 0.4
    distance: float = 0.8

    def __post_init__(self) -> None:
        for name in ("displacement", "strain", "symmetry", "image", "distance"):
            value = getattr(self, name)
            if not np.isfinite(value) or value <= 0:
                raise SettingsError(f"The limit {name} of a path must be positive and finite; found {value}.")


@dataclass(frozen=True)
class PathWarning:
    """One thing to know before a path is used.

    Attributes:
        code: Machine-readable name.
        message: One sentence with numbers and units.
        value: The number that was found.
        threshold: The limit that it passed.
    """

    code: str
    message: str
    value: float
    threshold: float


@dataclass(frozen=True)
class Distortion:
    """What happens from the nonpolar to the polar end.

    Attributes:
        displacements: (n, 3) Å, Cartesian in the polar cell, without their mean.
        strain: (3, 3) S − 1 of the cell: polar cell = nonpolar cell · S.
    """

    displacements: FloatArray
    strain: FloatArray

    @property
    def norms(self) -> FloatArray:
        """(n,) length of each displacement, Å."""
        return np.linalg.norm(self.displacements, axis=1)

    @property
    def largest(self) -> float:
        """Largest displacement, Å."""
        return float(self.norms.max())

    @property
    def root_mean_square(self) -> float:
        """√mean |u|², Å."""
        return float(np.sqrt((self.norms**2).mean()))

    @property
    def largest_strain(self) -> float:
        """Largest relative change of a length, whichever end is the longer."""
        values = np.linalg.eigvalsh(self.strain + np.eye(3))
        return float(max(values[-1], 1 / values[0]) - 1)


def bare_crystal(atoms: Atoms) -> BareCrystal:
    """Return the arrays of a crystal."""
    return BareCrystal.of(atoms.cell[:], atoms.positions, atoms.numbers)


def check_different(start: Atoms, end: Atoms, symprec: float) -> None:
    """Raise if both ends are the same crystal, in whatever cell, order and orientation.

    Raises:
        PathError: Names the numbers.
    """
    try:
        found = map_crystal(bare_crystal(start), bare_crystal(end), SAME_STRAIN, symprec)
    except EvaluationError:
        return
    distortion = Distortion(found.displacements, found.strain)
    if distortion.largest < SAME_DISPLACEMENT:
        raise PathError(
            f"Both ends are the same crystal: no atom moves by more than {distortion.largest:.1g} Å, no length by "
            f"more than {100 * distortion.largest_strain:.1g} %.",
            "Give a nonpolar and a polar structure.",
        )


def check_polar(start: Atoms, end: Atoms, symprec: float) -> None:
    """Raise unless the second end is polar and the first is not.

    Raises:
        PathError: Names the point group.
    """
    try:
        nonpolar, polar = end_group(bare_crystal(start), symprec), end_group(bare_crystal(end), symprec)
    except EvaluationError as error:
        raise PathError(f"The symmetry of the ends cannot be found: {error.message}", error.hint) from error
    if nonpolar.is_polar:
        raise PathError(
            f"The nonpolar end has the polar point group {nonpolar.point_group} (space group {nonpolar.symbol}): its "
            "polarization is no zero to start from.",
            "Give the nonpolar parent; or a larger symprec, if it is one but for noise.",
        )
    if not polar.is_polar:
        raise PathError(
            f"The polar end has the point group {polar.point_group} (space group {polar.symbol}), which allows no "
            "polarization.",
            "Give the polar structure second, or a smaller symprec.",
        )


def check_size(distortion: Distortion, end: Atoms, limits: DistortionLimits, match: Match) -> None:
    """Raise unless the distortion is small.

    Raises:
        PathError: Names the number and the limit.
    """
    found = "The smallest distortion found" if match == "search" else "The distortion in the order given"
    hint = "Choose other ends, or raise the limit" + (
        "; or let the sites be matched (match='search')." if match == "given" else "."
    )
    largest, strain = distortion.largest, distortion.largest_strain
    if largest > limits.displacement:
        atom = int(distortion.norms.argmax())
        raise PathError(
            f"{found} moves atom {atom} ({end.symbols[atom]}) by {largest:.2f} Å; at most {limits.displacement:g} Å "
            "is allowed.",
            hint,
        )
    if strain > limits.strain:
        raise PathError(
            f"{found} changes a length by {100 * strain:.1f} %; at most {100 * limits.strain:g} % is allowed.", hint
        )


def check_relation(
    found: GroupRelation, limits: DistortionLimits, relation: Literal["require", "warn"]
) -> list[PathWarning]:
    """Return warnings about the space groups, or raise.

    Raises:
        PathError: If the groups are unrelated, and that is no warning only.
    """
    warnings = []
    if found.n_kept < found.n_operations:
        message = (
            f"{found.polar.symbol} is no subgroup of {found.nonpolar.symbol} here: {found.n_kept} of "
            f"{found.n_operations} operations of the polar end are operations of the nonpolar one within "
            f"{limits.symmetry:g} Å"
        )
        if relation == "require":
            raise PathError(f"{message}.", "Choose ends that are related, or accept it (relation='warn').")
        warnings.append(PathWarning("unrelated_groups", message, found.n_kept, found.n_operations))
    elif found.n_along < found.n_operations:
        message = (
            f"{found.n_along} of {found.n_operations} operations of the polar end hold along the path: between its "
            "ends the crystal has less symmetry than at both"
        )
        warnings.append(PathWarning("symmetry_lost", message, found.n_along, found.n_operations))
    return warnings


def _lattice_vectors(cell: FloatArray) -> FloatArray:
    """Return the (26, 3) shorter vectors of the lattice of a reduced cell, Å."""
    reduced = BareCrystal(cell, np.zeros((0, 3)), np.zeros(0, dtype=np.intp)).reduced()[0].cell
    steps = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    return steps[(steps != 0).any(axis=1)] @ reduced


def check_nearest(mapping: CrystalMapping, end: Atoms) -> list[PathWarning]:
    """Flag atoms that go to another image than the nearest: rounding fractions does that in skewed cells."""
    vectors = _lattice_vectors(end.cell[:])
    moved = (bare_crystal(end).fractional - mapping.fractional) @ end.cell[:]
    nearest = np.linalg.norm(moved[:, None, :] + vectors, axis=2).min(axis=1)
    excess = np.linalg.norm(moved, axis=1) - nearest
    atom = int(excess.argmax())
    if excess[atom] < 1e-6:
        return []
    message = (
        f"atom {atom} ({end.symbols[atom]}) moves by {nearest[atom] + excess[atom]:.2f} Å, although an image of it is "
        f"only {nearest[atom]:.2f} Å away: more than half the way to that image"
    )
    return [PathWarning("wrong_image", message, float(nearest[atom] + excess[atom]), float(nearest[atom]))]


def check_images(mapping: CrystalMapping, end: Atoms, limits: DistortionLimits) -> list[PathWarning]:
    """Flag an atom that comes near the middle between two images: which of them is meant is then open."""
    vectors = _lattice_vectors(end.cell[:])
    shares = (mapping.displacements @ vectors.T) / (vectors**2).sum(axis=1)
    atom = int(shares.max(axis=1).argmax())
    share = float(shares[atom].max())
    if share <= limits.image:
        return []
    message = f"atom {atom} ({end.symbols[atom]}) moves {100 * share:.0f} % of the way to its next periodic image"
    return [PathWarning("image", message, share, limits.image)]


def check_distances(frames: list[Structure], limits: DistortionLimits) -> list[PathWarning]:
    """Flag atoms that come much closer on the way than at both ends."""
    found = [closest_pair(as_atoms(frame))[0] for frame in frames]
    between = int(np.argmin(found))
    ends = min(found[0], found[-1])
    if not np.isfinite(found[between]) or found[between] >= limits.distance * min(ends, 1.5):
        return []
    message = f"two atoms are {found[between]:.2f} Å apart in frame {between}"
    return [PathWarning("close_atoms", message, found[between], limits.distance * min(ends, 1.5))]
