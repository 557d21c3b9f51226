"""Operations that a crystal almost has: the nearest crystal that has them, in the same frame and order of atoms.

For a crystal with the operations G and an isometry g = (W, w) of its lattice that is none of them, atoms of a kind are
assigned to each other so that the images under g lie as near as possible, with the shift w that centers them.  If G
and g close to a finite group, averaging over it,

    x′_p(κ) = mean over the group of (W x_κ + w),     G′ = mean of W⁻ᵀ G W⁻¹   (the metric of the cell),

gives a crystal that has all its operations.  The rotations of a group need not be close to isometries of the cell as it
is: a tetragonal cell of 3.90 and 4.16 Å has those of a cube but for 4 % of strain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from scipy.optimize import linear_sum_assignment

from fieldflows.physics.bare import BareCrystal, shortest_differences
from fieldflows.physics.symmetry import atom_permutations, search_symmetry

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.intp]

MOST_OPERATIONS = 400
"""A group with more operations is given up."""
ROUNDS = 4
"""Rounds of averaging: each leaves a smaller rest."""
EXACT = 1e-3
"""Distance in Å by which an operation may miss before the last round."""


@dataclass(frozen=True)
class Operation:
    """One operation on the sites of a crystal.

    Attributes:
        matrix: (3, 3) W, integer, for columns of fractional coordinates.
        permutation: (n,) atom on which each atom is brought.
    """

    matrix: IntArray
    permutation: IntArray

    def after(self, other: Operation) -> Operation:
        """Return the operation that does the other one first."""
        return Operation(self.matrix @ other.matrix, self.permutation[other.permutation])

    @property
    def key(self) -> bytes:
        """The same for equal operations only."""
        return self.matrix.tobytes() + self.permutation.tobytes()


@dataclass(frozen=True)
class Pseudosymmetric:
    """A crystal that was brought to operations which it had almost.

    Attributes:
        crystal: In the frame of the original, atoms in the same order.
        n_operations: Operations of the group in its cell.
        largest: Largest displacement of an atom by it, in Å, at the cell of the original.
    """

    crystal: BareCrystal
    n_operations: int
    largest: float


def lattice_isometries(cell: FloatArray, largest_strain: float) -> list[IntArray]:
    """Return the integer matrices W that map a reduced cell on itself but for a small strain, inversion first.

    Args:
        cell: (3, 3) reduced, rows, in Å.
        largest_strain: Largest relative change of a length under W.
    """
    entries = np.array(list(product((-1, 0, 1), repeat=9)), dtype=np.intp).reshape(-1, 3, 3)
    entries = entries[np.abs(np.rint(np.linalg.det(entries.astype(float)))) == 1]
    columns = cell.T
    lengths = np.linalg.norm(columns @ entries, axis=1) / np.linalg.norm(columns, axis=0)
    entries = entries[(np.abs(lengths - 1) <= 2 * largest_strain).all(axis=1)]
    stretches = np.linalg.svd(columns @ entries @ np.linalg.inv(columns), compute_uv=False)
    strains = np.abs(stretches - 1).max(axis=1)
    chosen = entries[strains <= largest_strain]
    return [chosen[i] for i in np.argsort(strains[strains <= largest_strain].round(6), kind="stable")]


def pseudosymmetric_crystals(
    crystal: BareCrystal, symprec: float, largest_shift: float, largest_strain: float
) -> Iterator[Pseudosymmetric]:
    """Yield crystals with one more operation than the given one has, and all that follow from it.

    Args:
        crystal: In any cell.
        symprec: Tolerance for the operations that it has, in Å.
        largest_shift: Distance in Å by which the image of an atom may miss; it is displaced by half of that at most
            where the operation is of order two.
        largest_strain: Largest relative change of a length under an operation.

    Raises:
        EvaluationError: If the crystal has no space group.
    """
    reduced, transform = crystal.reduced()
    own = _own_operations(reduced, symprec)
    known = {operation.matrix.tobytes() for operation in own}
    for matrix in lattice_isometries(reduced.cell, largest_strain):
        if matrix.tobytes() in known:
            continue
        for operation in _assignments(reduced, matrix, largest_shift):
            group = _closed([*own, operation])
            if group is None:
                continue
            found = _averaged(reduced, group)
            if found is None:
                continue
            moved = found.fractional - reduced.fractional
            moved = (moved - moved.mean(axis=0)) @ reduced.cell
            yield Pseudosymmetric(
                BareCrystal(
                    np.rint(np.linalg.inv(transform)) @ found.cell, found.fractional @ transform, crystal.numbers
                ),
                len(group),
                float(np.linalg.norm(moved, axis=1).max()),
            )


def _own_operations(crystal: BareCrystal, symprec: float) -> list[Operation]:
    dataset = search_symmetry(crystal.cell, crystal.positions, crystal.numbers, symprec)[2]
    permutations = atom_permutations(
        crystal.fractional, crystal.numbers, dataset.rotations, dataset.translations, crystal.cell, 10 * symprec + 1e-6
    )
    return [
        Operation(np.asarray(matrix, dtype=np.intp), permutation)
        for matrix, permutation in zip(dataset.rotations, permutations, strict=True)
    ]


def _assignments(crystal: BareCrystal, matrix: IntArray, largest: float) -> list[Operation]:
    """Return the permutations of like atoms for which (W, w) misses least, the best first; none misses by more."""
    kinds, counts = np.unique(crystal.numbers, return_counts=True)
    rarest = np.flatnonzero(crystal.numbers == kinds[counts.argmin()])
    groups = [np.flatnonzero(crystal.numbers == kind) for kind in kinds]
    images = crystal.fractional @ matrix.T
    found: dict[bytes, tuple[float, Operation]] = {}
    for atom in rarest:
        shift = crystal.fractional[atom] - images[rarest[0]]
        permutation = np.full(len(crystal), -1, dtype=np.intp)
        missed = np.zeros((len(crystal), 3))
        for _ in range(6):
            before = permutation.copy()
            for atoms in groups:
                between = shortest_differences(crystal.cell, images[atoms] + shift, crystal.fractional[atoms])
                rows, columns = linear_sum_assignment((between**2).sum(axis=2))
                permutation[atoms[rows]] = atoms[columns]
                missed[atoms[rows]] = between[rows, columns]
            shift = shift + missed.mean(axis=0) @ np.linalg.inv(crystal.cell)
            if np.array_equal(before, permutation):
                break
        worst = float(np.linalg.norm(missed - missed.mean(axis=0), axis=1).max())
        if worst <= largest:
            operation = Operation(matrix, permutation)
            found.setdefault(operation.key, (worst, operation))
    return [operation for _, operation in sorted(found.values(), key=lambda item: item[0])]


def _closed(generators: list[Operation]) -> list[Operation] | None:
    """Return the group that operations generate, or None if it does not stay small."""
    group = {operation.key: operation for operation in generators}
    pending = list(generators)
    new = generators[-1]
    while pending:
        current = pending.pop()
        for product_ in (current.after(new), new.after(current), *(current.after(item) for item in generators[:-1])):
            if product_.key not in group:
                if len(group) >= MOST_OPERATIONS:
                    return None
                group[product_.key] = product_
                pending.append(product_)
    return list(group.values())


def _averaged(crystal: BareCrystal, group: list[Operation]) -> BareCrystal | None:
    """Return the crystal averaged over a group of operations, or None if no shifts make them operations together."""
    metric = crystal.cell @ crystal.cell.T
    matrices = np.array([operation.matrix for operation in group], dtype=float)
    mean = np.einsum("sai,ab,sbj->ij", matrices, metric, matrices) / len(group)
    inverse = np.linalg.inv(crystal.cell)
    stretch = np.real(sqrtm(inverse @ mean @ inverse.T))
    cell = crystal.cell @ (0.5 * (stretch + stretch.T))
    fractional = crystal.fractional
    worst = np.inf
    for _ in range(ROUNDS):
        shifts, worst = np.zeros_like(fractional), 0.0
        for operation in group:
            difference = fractional @ operation.matrix.T - fractional[operation.permutation]
            difference -= difference[0]
            difference -= np.round(difference)
            center = np.arctan2(*(f(2 * np.pi * difference).mean(axis=0) for f in (np.sin, np.cos))) / (2 * np.pi)
            rest = difference - center
            rest -= np.round(rest)
            rest -= rest.mean(axis=0)
            shifts[operation.permutation] += rest
            worst = max(worst, float(np.linalg.norm(rest @ cell, axis=1).max()))
        fractional = fractional + shifts / len(group)
    return BareCrystal(cell, fractional, crystal.numbers) if worst < EXACT else None
