"""A crystal brought to its own symmetry, in its own frame: exact operations, and the primitive cell.

Nothing is rotated and no origin is moved, so that tensors of the symmetrized crystal are tensors of the crystal as
given.  What moves is reported.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import sqrtm

from fieldflows.errors import EvaluationError
from fieldflows.physics.symmetry import MOST_IMAGES, atom_permutations, search_symmetry

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class SymmetricCrystal:
    """A crystal whose cell and positions obey the operations to rounding.

    Attributes:
        cell: (3, 3) lattice vectors as rows, in Å.
        positions: (n, 3) Cartesian, in Å, in the periodic images of the original.
        numbers: (n,) atomic numbers.
        rotations: (s, 3, 3) orthogonal matrices R in the Cartesian frame of the cell, proper and improper.
        permutations: (s, n) atom on which operation s brings each atom.
        space_group: International number of the crystal; a supercell whose shape breaks its symmetry has fewer
            operations.
        point_group_order: Number of rotations of that group.
        max_shift: Largest displacement of an atom by the symmetrization, in Å, besides the strain of the cell.
        strain: Largest component of the (pure) strain of the cell by the symmetrization.
        representatives: (n,) for a primitive cell, the atoms of the original cell that it keeps.
        mapping: (N,) for each atom of the original cell, the atom of this one that it is a periodic image of.
    """

    cell: FloatArray
    positions: FloatArray
    numbers: NDArray[np.intp]
    rotations: FloatArray
    permutations: NDArray[np.intp]
    space_group: int
    point_group_order: int
    max_shift: float
    strain: float
    representatives: NDArray[np.intp]
    mapping: NDArray[np.intp]

    @property
    def multiplicity(self) -> int:
        """Number of these cells in the original one."""
        return len(self.mapping) // len(self.numbers)

    @property
    def n_operations(self) -> int:
        """Number of operations, pure translations included."""
        return len(self.rotations)

    def primitive(self) -> SymmetricCrystal:
        """Return the primitive cell, with one operation per rotation; itself if it is primitive.

        Its lattice is that of the original in the same frame, its atoms are atoms of the original.
        """
        pure = [s for s, rotation in enumerate(self.rotations) if np.abs(rotation - np.eye(3)).max() < 1e-6]
        if len(pure) == 1:
            return self
        count = len(pure)
        label = self.permutations[pure].min(axis=0)
        representatives, mapping = np.unique(label, return_inverse=True)
        if len(representatives) * count != len(self.numbers):
            raise EvaluationError("The pure translations of the crystal do not map its atoms on each other freely.")
        lattice = self._primitive_lattice(pure, count)
        first = self._first_of_each_rotation()
        permutations = mapping[self.permutations[np.ix_(first, representatives)]]
        return SymmetricCrystal(
            cell=lattice,
            positions=self.positions[representatives],
            numbers=self.numbers[representatives],
            rotations=self.rotations[first],
            permutations=permutations,
            space_group=self.space_group,
            point_group_order=self.point_group_order,
            max_shift=self.max_shift,
            strain=self.strain,
            representatives=self.representatives[representatives],
            mapping=mapping[self.mapping],
        )

    def _first_of_each_rotation(self) -> NDArray[np.intp]:
        _, first = np.unique(
            np.round(self.rotations, 4).reshape(len(self.rotations), 9) + 0.0, axis=0, return_index=True
        )
        return np.sort(first)

    def _primitive_lattice(self, pure: list[int], count: int) -> FloatArray:
        """Return short lattice vectors (rows) of the lattice that cell and pure translations span."""
        compact = compact_cell(self.cell)[0]  # a skewed cell hides its shortest vectors
        inverse = np.linalg.inv(compact)
        steps = []
        for s in pure:
            step = (self.positions[self.permutations[s, 0]] - self.positions[0]) @ inverse
            # a translation of order m has fractions of m, which divides the number of translations
            step = np.round(step * count) / count
            steps.append((step - np.round(step)) @ compact)
        return reduced_basis(np.array([*steps, *compact]), abs(np.linalg.det(compact)) / count)


def compact_cell(cell: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return the shortest lattice vectors (rows, Å) of a lattice, and the integer matrix T: compact = T · cell.

    Averages and inverses in a skewed cell lose as many digits as the square of its condition number has.

    Raises:
        EvaluationError: If there are no shortest vectors, since the cell is flat or not finite.
    """
    from ase.geometry import minkowski_reduce

    lattice = np.asarray(cell, dtype=float)
    try:
        transform = minkowski_reduce(lattice)[1]
    except (RuntimeError, ValueError) as error:
        raise EvaluationError(
            f"The cell cannot be reduced to short vectors: {error}.", "Give a reduced cell."
        ) from error
    return transform @ lattice, np.asarray(transform, dtype=float)


def reduced_basis(vectors: ArrayLike, volume: float) -> FloatArray:
    """Return three short vectors (rows, right-handed) that span the lattice generated by ``vectors``.

    Args:
        vectors: (m, 3) generators, whose sums and differences fill the lattice.
        volume: Volume of the primitive cell of that lattice in Å³.

    Raises:
        EvaluationError: If no three vectors near the origin span that volume.
    """
    generators = np.asarray(vectors, dtype=float)
    steps = np.array([-1, 0, 1])
    corners = np.array(np.meshgrid(steps, steps, steps, indexing="ij")).reshape(3, -1).T
    candidates = generators[:-3, None, :] + (corners @ generators[-3:])[None, :, :]
    candidates = np.concatenate([candidates.reshape(-1, 3), generators[-3:]])
    lengths = np.linalg.norm(candidates, axis=1)
    order = np.argsort(lengths.round(8), kind="stable")
    candidates = candidates[order[lengths[order] > 1e-6]]
    first = candidates[0]
    for second in candidates[1:]:
        area = np.cross(first, second)
        if np.linalg.norm(area) < 1e-6 * np.linalg.norm(first) * np.linalg.norm(second):
            continue
        volumes = candidates @ area
        fitting = np.flatnonzero(np.abs(np.abs(volumes) - volume) < 1e-6 * volume)
        if len(fitting):
            third = candidates[fitting[0]]
            return np.array([first, second, third if volumes[fitting[0]] > 0 else -third])
    raise EvaluationError("No primitive lattice was found among the translations of the crystal.")


def symmetrize_crystal(cell: ArrayLike, positions: ArrayLike, numbers: ArrayLike, symprec: float) -> SymmetricCrystal:
    """Return the crystal with cell and positions averaged over its space group.

        metric  G_s = (1/s) Σ Wᵀ G W,          cell' = cell · (symmetric stretch with metric G_s)
        positions  f'_p(κ) = (1/s) Σ (W f_κ + w), each term in the periodic image nearest to f_p(κ)

    W and w are the operations in fractional coordinates.  The stretch has no rotational part.  Of a large supercell
    only the pure translations are used; its primitive cell has the others.

    Args:
        cell: (3, 3) lattice vectors as rows, in Å.
        positions: (n, 3) Cartesian, in Å; any periodic image.
        numbers: (n,) atomic numbers.
        symprec: Tolerance of the search in Å.

    Raises:
        EvaluationError: If no space group is found, an operation maps an atom on none, or a supercell is too large.
    """
    compact, transform = compact_cell(cell)
    lattice, fractional, dataset = search_symmetry(compact, positions, numbers, symprec)
    kinds = np.asarray(numbers, dtype=np.intp)
    matrices, translations = _operations(dataset, len(kinds))
    permutations = atom_permutations(fractional, kinds, matrices, translations, lattice, 10 * symprec + 1e-6)
    metric = lattice @ lattice.T
    averaged = np.einsum("sai,ab,sbj->ij", matrices, metric, matrices) / len(matrices)
    inverse = np.linalg.inv(lattice)
    stretch = np.real(sqrtm(inverse @ averaged @ inverse.T))
    stretch = 0.5 * (stretch + stretch.T)
    new_lattice = lattice @ stretch
    shifts = np.zeros_like(fractional)
    for matrix, translation, permutation in zip(matrices, translations, permutations, strict=True):
        difference = fractional @ matrix.T + translation - fractional[permutation]
        shifts[permutation] += difference - np.round(difference)
    shifts /= len(matrices)
    new_positions = (fractional + shifts) @ new_lattice
    columns = new_lattice.T
    rotations = columns @ matrices @ np.linalg.inv(columns)
    identity = np.arange(len(kinds))
    return SymmetricCrystal(
        cell=np.round(np.linalg.inv(transform)) @ new_lattice,
        positions=new_positions,
        numbers=kinds,
        rotations=rotations,
        permutations=permutations,
        space_group=int(dataset.number),
        point_group_order=_point_group_order(int(dataset.hall_number)),
        max_shift=float(np.linalg.norm(shifts @ new_lattice, axis=1).max()),
        strain=float(np.abs(stretch - np.eye(3)).max()),
        representatives=identity,
        mapping=identity,
    )


def _operations(dataset: Any, n_atoms: int) -> tuple[FloatArray, FloatArray]:
    """Return the operations (W, w) to use, so that the work is limited: it takes operations times atoms."""
    matrices, translations = dataset.rotations, dataset.translations
    if len(matrices) * n_atoms > MOST_IMAGES:
        pure = (matrices == np.eye(3, dtype=int)).all(axis=(1, 2))
        matrices, translations = matrices[pure], translations[pure]
    if len(matrices) * n_atoms > 10 * MOST_IMAGES:
        raise EvaluationError(
            f"A supercell of {n_atoms} atoms with {len(matrices)} translations is too large to be symmetrized.",
            "Use its primitive cell.",
        )
    return matrices.astype(float), translations


@cache
def _point_group_order(hall_number: int) -> int:
    """Return the number of rotations of a space group, from the tables of spglib."""
    import spglib

    operations: Any = spglib.get_symmetry_from_database(hall_number)
    return len(np.unique(operations["rotations"].reshape(-1, 9), axis=0))


def primitive_crystal(cell: ArrayLike, positions: ArrayLike, numbers: ArrayLike, symprec: float) -> SymmetricCrystal:
    """Return the primitive cell of a crystal with all its operations, also of those that the given cell hides.

    A supercell of 2 × 1 × 1 cells of a cubic crystal, say, is not mapped on itself by the threefold axes.

    Args:
        cell: (3, 3) lattice vectors as rows, in Å.
        positions: (n, 3) Cartesian, in Å; any periodic image.
        numbers: (n,) atomic numbers.
        symprec: Tolerance of the search in Å.

    Raises:
        EvaluationError: As :func:`symmetrize_crystal`.
    """
    found = symmetrize_crystal(cell, positions, numbers, symprec).primitive()
    if found.n_operations >= found.point_group_order:
        return found
    again = symmetrize_crystal(found.cell, found.positions, found.numbers, symprec)
    if again.n_operations <= found.n_operations or again.primitive() is not again:
        return found
    return replace(
        again,
        max_shift=found.max_shift + again.max_shift,
        strain=found.strain + again.strain,
        representatives=found.representatives,
        mapping=found.mapping,
    )
