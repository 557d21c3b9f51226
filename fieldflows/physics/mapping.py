"""One crystal laid on another: the cell, the sites and the periodic images that make the distortion smallest.

A reference crystal (lattice C, rows) is described in the cell L of a target crystal that holds as many atoms:

    L = T C Qᵀ S,     r_target(i) = [x_i + Δx_i] L,     x_i: fractional coordinates of the reference in its cell T C Qᵀ

T has rational entries, Q is a proper rotation, S a symmetric stretch.  Among all T whose stretch is small, all
permutations of like atoms and all rigid shifts, the one is taken with the smallest

    cost² = (1/n) Σ_i |Δx_i L|² + (Ω/n)^(2/3) tr (S − 1)²     (Å²).

Both crystals are reduced first, so that the answer depends neither on the choice of cells nor on the order of atoms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from fieldflows.errors import EvaluationError
from fieldflows.physics.bare import BareCrystal, primitive_cell, shortest_differences
from fieldflows.physics.origins import symmetric_shifts
from fieldflows.physics.sublattices import candidate_cells, distinct_cells, strain_norm, stretch_of
from fieldflows.physics.symmetry import search_symmetry

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.intp]

MOST_SHIFTS = 64
"""Rigid shifts that are tried for a cell."""
SAME_SHIFT = 0.02
"""Rigid shifts that are nearer to each other, in Å, are taken for one."""
MOST_WORK = 40_000
"""Cells that are tried at most, times the square of the number of atoms."""
LEAST_CELLS = 40
"""Cells that may be tried whatever the number of atoms."""
MOST_FREE = 16
"""Starts along directions in which symmetry leaves the shift free."""
MOST_ROUNDS = 10
"""Rounds of assignment and centering from one shift."""
MOST_ASSIGNMENTS = 12
"""Assignments of sites in one cell that are looked at, the best ones."""
STAGES = (0.01, 0.03, 0.08)
"""Strains up to which cells are searched first: most crystals are found there, and small strains mean few cells."""


@dataclass(frozen=True)
class CrystalMapping:
    """A reference crystal in the cell of a target.

    Attributes:
        transform: (3, 3) T, rational: cell = T · (reference cell as given) · Qᵀ.
        rotation: (3, 3) Q, proper: the reference is turned by it into the frame of the target.
        translation: (3,) Å, rigid shift after the rotation, modulo the mapped lattice.
        sites: (n,) for each atom of the target, the atom of the reference as given that it comes from.
        cell: (3, 3) mapped cell, rows, in Å.
        fractional: (n, 3) of the mapped reference, in the images nearest to the target as given.
        displacements: (n, 3) Δx L, from reference to target, in Å, Cartesian, without mean.
        strain: (3, 3) S − 1, symmetric.
        cost: In Å.
    """

    transform: FloatArray
    rotation: FloatArray
    translation: FloatArray
    sites: IndexArray
    cell: FloatArray
    fractional: FloatArray
    displacements: FloatArray
    strain: FloatArray
    cost: float


@dataclass(frozen=True)
class _Sites:
    """Atoms of the reference for the atoms of the target, for one cell."""

    order: IndexArray
    differences: FloatArray
    squares: float


def map_crystal(
    reference: BareCrystal,
    target: BareCrystal,
    largest_strain: float,
    symprec: float,
    accept: Callable[[CrystalMapping], bool] | None = None,
) -> CrystalMapping:
    """Return the smallest distortion that makes the target of the reference.

    Args:
        reference: In any cell.
        target: Its cell is kept; it may be a supercell.
        largest_strain: Principal stretches lie between 1/(1 + largest_strain) and 1 + largest_strain.
        symprec: Tolerance in Å for translations and rotations of the reference.
        accept: What else must hold; the smallest distortion at all comes back if nothing is accepted.

    Raises:
        EvaluationError: If no cell of the reference holds the atoms of the target, or fits it.
    """
    search = _Search(reference, target, symprec)
    best: CrystalMapping | None = None
    rejected: CrystalMapping | None = None

    def look(matrix: FloatArray, strain: float, assignments: list[_Sites]) -> None:
        nonlocal best, rejected
        for sites in assignments:
            cost = float(np.hypot(np.sqrt(sites.squares), strain))
            if best is not None and cost >= best.cost - 1e-9:
                return
            mapping = search.assemble(matrix, sites, cost)
            if accept is None or accept(mapping):
                best = mapping
                return
            rejected = mapping if rejected is None or cost < rejected.cost else rejected

    for stage in [*(stage for stage in STAGES if stage < largest_strain), largest_strain]:
        limit = stage
        if best is not None:  # no cell with more strain can have a smaller cost
            limit = min(stage, (1 + 1e-9) * best.cost / max(search.length - best.cost, 1e-3))
        for matrix, strain in search.cells(limit):
            if (best is not None and strain >= best.cost - 1e-9) or search.exhausted:
                break
            look(matrix, strain, search.sites(matrix))
        if best is not None and best.cost <= search.length * limit / (1 + limit):
            break
    if best is None:  # the shifts at which the symmetry of the target holds may be far from any that were met
        for matrix, strain in search.tried:
            if best is None or strain < best.cost - 1e-9:
                look(matrix, strain, search.sites(matrix, symmetric=True))
    found = best or rejected
    if found is None:
        raise EvaluationError(
            f"No cell of the first crystal with {len(target)} atoms fits that of the second within a strain of "
            f"{100 * largest_strain:.3g} %; their volumes per atom are {reference.volume / len(reference):.3f} and "
            f"{target.volume / len(target):.3f} Å³."
        )
    return found


class _Search:
    """Two crystals made ready: the reference primitive, the target reduced.

    Args:
        reference: As given.
        target: As given.
        symprec: Tolerance in Å.
    """

    def __init__(self, reference: BareCrystal, target: BareCrystal, symprec: float) -> None:
        self.reference, self.target = reference, target
        primitive, self.representatives = primitive_cell(reference, symprec)
        self.primitive, _ = primitive.reduced()
        self.reduced, self.transform = target.reduced()
        self.multiple = _multiple(self.primitive, self.reduced)
        found = search_symmetry(self.primitive.cell, self.primitive.positions, self.primitive.numbers, symprec)[2]
        rotations = found.rotations.astype(float)
        self.proper = rotations[np.linalg.det(rotations) > 0]
        self.length = (target.volume / len(target)) ** (1 / 3)
        self.tried: list[tuple[FloatArray, float]] = []
        self._done: set[bytes] = set()
        dataset = search_symmetry(self.reduced.cell, self.reduced.positions, self.reduced.numbers, symprec)[2]
        self.operations = dataset.rotations.astype(float), dataset.translations

    @property
    def exhausted(self) -> bool:
        """Whether enough cells were tried."""
        return len(self.tried) > max(LEAST_CELLS, MOST_WORK // len(self.target) ** 2)

    def cells(self, limit: float) -> Iterator[tuple[FloatArray, float]]:
        """Yield cells H that were not yet yielded, and their part of the cost, by growing strain."""
        cells = candidate_cells(self.primitive.cell, self.reduced.cell, self.multiple, limit)
        for matrix in distinct_cells(cells, self.proper):
            chosen = self._least_rotated(matrix)
            if chosen.tobytes() not in self._done:
                self._done.add(chosen.tobytes())
                _, stretch = stretch_of(chosen @ self.primitive.cell, self.reduced.cell)
                self.tried.append((chosen, self.length * strain_norm(stretch - np.eye(3))))
                yield self.tried[-1]

    def _least_rotated(self, matrix: FloatArray) -> FloatArray:
        """Return of those cells that are equal by symmetry the one turned least: crystals given alike stay so."""
        equal = np.rint(matrix @ self.proper.transpose(0, 2, 1)) + 0.0
        traces = [np.trace(stretch_of(item @ self.primitive.cell, self.reduced.cell)[0]) for item in equal]
        return equal[int(np.argmax(np.round(traces, 6)))]

    def sites(self, matrix: FloatArray, symmetric: bool = False) -> list[_Sites]:
        """Return what sites can be assigned in a cell, the smallest displacements first.

        Args:
            matrix: H.
            symmetric: Start where operations of the target are operations of the reference, not where atoms meet.
        """
        starts = _shifts(self.primitive, self.primitive.fractional @ np.linalg.inv(matrix), self.reduced)
        if symmetric:
            starts = symmetric_shifts(self.primitive, matrix, *self.operations, starts[:MOST_FREE])
        return match_sites(self.primitive, matrix, self.reduced, starts)

    def assemble(self, matrix: FloatArray, sites: _Sites, cost: float) -> CrystalMapping:
        """Return a mapping in the cells as given."""
        reference, target = self.reference, self.target
        unrotated = np.linalg.inv(self.transform) @ matrix @ self.primitive.cell
        rotation, stretch = stretch_of(unrotated, target.cell)
        cell = unrotated @ rotation.T
        differences = sites.differences @ self.transform
        fractional = target.fractional - differences
        order = self.representatives[sites.order]
        shift = fractional[0] - reference.positions[order[0]] @ rotation.T @ np.linalg.inv(cell)
        return CrystalMapping(
            transform=unrotated @ np.linalg.inv(reference.cell),
            rotation=rotation,
            translation=(shift - np.round(shift)) @ cell,
            sites=order,
            cell=cell,
            fractional=fractional,
            displacements=differences @ target.cell,
            strain=stretch - np.eye(3),
            cost=cost,
        )


def _multiple(primitive: BareCrystal, target: BareCrystal) -> int:
    kinds, counts = np.unique(primitive.numbers, return_counts=True)
    others, totals = np.unique(target.numbers, return_counts=True)
    if not np.array_equal(kinds, others) or (totals * counts[0] != counts * totals[0]).any():
        raise EvaluationError("The crystals have different compositions.")
    if len(target) % len(primitive):
        raise EvaluationError(
            f"The primitive cell of the first crystal has {len(primitive)} atoms, that of the second as given "
            f"{len(target)}, which is no multiple."
        )
    return len(target) // len(primitive)


def match_sites(reference: BareCrystal, matrix: FloatArray, target: BareCrystal, starts: FloatArray) -> list[_Sites]:
    """Return permutations of like atoms with their best rigid shifts, by growing mean square displacement.

    Args:
        reference: Primitive.
        matrix: H, integer: the cell of the target is H·reference.cell but for the stretch.
        target: Reduced.
        starts: (k, 3) shifts in fractional coordinates of the target; each follows the mean displacement.
    """
    from pymatgen.util.coord import lattice_points_in_supercell

    points = np.asarray(lattice_points_in_supercell(np.rint(matrix).astype(int)))
    base = reference.fractional @ np.linalg.inv(matrix)
    tiled = (base[:, None, :] + points[None, :, :]).reshape(-1, 3)
    kinds = np.repeat(reference.numbers, len(points))
    groups = [(np.flatnonzero(target.numbers == z), np.flatnonzero(kinds == z)) for z in np.unique(kinds)]
    visited = _Visited(matrix, reference.cell)
    found: dict[float, _Sites] = {}
    for shift in starts:
        sites = _settle(tiled, shift, target, groups, visited)
        if sites is not None:
            order = sites.order // len(points)
            found.setdefault(round(sites.squares, 6), _Sites(order, sites.differences, sites.squares))
    return [found[key] for key in sorted(found)][:MOST_ASSIGNMENTS]


class _Visited:
    """Rigid shifts that were met already, modulo the lattice of the reference: the same ones lead to the same end.

    Args:
        matrix: H, integer.
        cell: (3, 3) of the reference, rows, in Å.
    """

    def __init__(self, matrix: FloatArray, cell: FloatArray) -> None:
        self.matrix, self.cell = matrix, cell
        self.shifts = np.zeros((0, 3))

    def __contains__(self, shift: FloatArray) -> bool:
        steps = (self.shifts - shift) @ self.matrix
        return bool((np.linalg.norm((steps - np.round(steps)) @ self.cell, axis=1) < SAME_SHIFT).any())

    def add(self, shift: FloatArray) -> None:
        """Note a shift in fractional coordinates of the target."""
        self.shifts = np.vstack([self.shifts, shift])


def _shifts(reference: BareCrystal, base: FloatArray, target: BareCrystal) -> FloatArray:
    """Return shifts that bring an atom of the reference on one of the target, the rarest element first."""
    kinds, counts = np.unique(reference.numbers, return_counts=True)
    shifts: list[FloatArray] = []
    for kind in kinds[np.argsort(counts, kind="stable")]:
        own, other = base[reference.numbers == kind], target.fractional[target.numbers == kind]
        # one atom of the target is enough but for displacements of its own; others start nearer to the end
        new = (other[:, None, :] - own[None, :, :]).reshape(-1, 3)
        if shifts and len(shifts) + len(new) > MOST_SHIFTS:
            break
        shifts.extend(new[:MOST_SHIFTS] if not shifts else new)
    return np.array(shifts)


def _settle(
    tiled: FloatArray,
    shift: FloatArray,
    target: BareCrystal,
    groups: list[tuple[IndexArray, IndexArray]],
    visited: _Visited,
) -> _Sites | None:
    """Assign, center, and go on until the assignment stays; None where another start has led already."""
    order = np.full(len(target), -1, dtype=np.intp)
    vectors = np.zeros_like(target.fractional)
    own: list[FloatArray] = []
    for _ in range(MOST_ROUNDS):
        if shift in visited:
            break
        own.append(shift)
        new = np.empty_like(order)
        for atoms, sites in groups:
            between = shortest_differences(target.cell, tiled[sites] + shift, target.fractional[atoms])
            rows, columns = linear_sum_assignment((between**2).sum(axis=2))
            new[atoms[columns]] = sites[rows]
            vectors[atoms[columns]] = between[rows, columns]
        shift = shift + vectors.mean(axis=0) @ np.linalg.inv(target.cell)
        if np.array_equal(new, order):
            break
        order = new
    done = shift not in visited
    for item in own:
        visited.add(item)
    if not own or not done:
        return None
    centered = vectors - vectors.mean(axis=0)
    return _Sites(order, centered @ np.linalg.inv(target.cell), float((centered**2).sum(axis=1).mean()))
