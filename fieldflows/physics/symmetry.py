"""Space group, Cartesian operations in the frame of the crystal as given, and the IEEE orientation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from fieldflows.errors import EvaluationError

FloatArray = NDArray[np.float64]

SYMPREC = 0.01
"""Tolerance in Å for space groups, as everywhere in the Materials Project."""
FIT_SYMPREC = 0.1
"""Tolerance in Å for symmetrizing tensors, as in the Materials Project's dielectric documents."""
LARGEST_CONDITION = 1e6
"""Condition number of the most skewed cell whose symmetry is searched; spglib ends the process for some at 1e8."""
MOST_IMAGES = 1_000_000
"""Operations times atoms that are worked on at once; a cell of 216 atoms of rock salt has a little more."""

_CRYSTAL_SYSTEMS = (
    (2, "triclinic"),
    (15, "monoclinic"),
    (74, "orthorhombic"),
    (142, "tetragonal"),
    (167, "trigonal"),
    (194, "hexagonal"),
    (230, "cubic"),
)


@dataclass(frozen=True)
class SpaceGroup:
    """Name of the symmetry.

    Attributes:
        number: International number, 1 to 230.
        symbol: International symbol.
        point_group: International symbol of the point group.
        crystal_system: In lower case.
    """

    number: int
    symbol: str
    point_group: str
    crystal_system: str


@dataclass(frozen=True)
class SymmetryOperations:
    """The operations of a space group on one crystal, in its own Cartesian frame.

    Attributes:
        rotations: (s, 3, 3) orthogonal matrices R, proper and improper.
        permutations: (s, n) atom on which operation s brings each atom.
    """

    rotations: FloatArray
    permutations: NDArray[np.intp]

    def symmetrize(self, tensor: ArrayLike) -> FloatArray:
        """Return the mean of R T Rᵀ over the operations, for a (3, 3) tensor of the crystal as a whole."""
        matrix = np.asarray(tensor, dtype=float)
        return np.einsum("sia,ab,sjb->ij", self.rotations, matrix, self.rotations) / len(self.rotations)

    def symmetrize_vector(self, vector: ArrayLike) -> FloatArray:
        """Return the mean of R v over the operations, (3,); zero unless the crystal is polar."""
        return np.einsum("sia,a->i", self.rotations, np.asarray(vector, dtype=float)) / len(self.rotations)

    def symmetrize_site_tensors(self, tensors: ArrayLike) -> FloatArray:
        """Return (n, 3, 3) tensors of the atoms, averaged as T_s(κ) ← mean over s of R_s T_κ R_sᵀ."""
        values = np.asarray(tensors, dtype=float)
        result = np.zeros_like(values)
        for rotation, permutation in zip(self.rotations, self.permutations, strict=True):
            result[permutation] += rotation @ values @ rotation.T
        return result / len(self.rotations)


def search_symmetry(
    cell: ArrayLike, positions: ArrayLike, numbers: ArrayLike, symprec: float = SYMPREC
) -> tuple[FloatArray, FloatArray, Any]:
    """Return lattice (rows, Å), fractional coordinates (n, 3) and spglib's dataset; the last few are kept.

    Raises:
        EvaluationError: If spglib finds no space group, or the cell is too skewed to ask.
    """
    lattice = np.ascontiguousarray(cell, dtype=float)
    condition = np.linalg.cond(lattice)
    if not condition < LARGEST_CONDITION:
        raise EvaluationError(
            f"The cell is too skewed for a search of its symmetry: its condition number is {condition:.1g}.",
            "Choose shorter lattice vectors.",
        )
    fractional = np.ascontiguousarray(np.asarray(positions, dtype=float) @ np.linalg.inv(lattice))
    kinds = np.ascontiguousarray(numbers, dtype=np.int64)
    return lattice, fractional, _search(lattice.tobytes(), fractional.tobytes(), kinds.tobytes(), symprec)


@lru_cache(maxsize=4)
def _search(lattice: bytes, fractional: bytes, kinds: bytes, symprec: float) -> Any:
    """Search the space group; the last few are kept, since group and orientation need the same search."""
    import spglib

    crystal: Any = (
        np.frombuffer(lattice).reshape(3, 3),
        np.frombuffer(fractional).reshape(-1, 3),
        np.frombuffer(kinds, dtype=np.int64),
    )
    reason = ""
    try:
        dataset = spglib.get_symmetry_dataset(crystal, symprec=symprec)
    except spglib.SpglibError as error:
        dataset, reason = None, f": {error}"
    if dataset is None:
        raise EvaluationError(
            f"No space group was found at a tolerance of {symprec} Å{reason}.", "Try a smaller symprec."
        )
    return dataset


def space_group(cell: ArrayLike, positions: ArrayLike, numbers: ArrayLike, symprec: float = SYMPREC) -> SpaceGroup:
    """Return the space group of a crystal.

    Args:
        cell: (3, 3) lattice vectors as rows, in Å.
        positions: (n, 3) Cartesian, in Å.
        numbers: (n,) atomic numbers.
        symprec: Tolerance in Å.

    Raises:
        EvaluationError: If spglib finds none.
    """
    dataset = search_symmetry(cell, positions, numbers, symprec)[2]
    system = next(name for last, name in _CRYSTAL_SYSTEMS if dataset.number <= last)
    return SpaceGroup(int(dataset.number), str(dataset.international), str(dataset.pointgroup).strip(), system)


def symmetry_operations(
    cell: ArrayLike, positions: ArrayLike, numbers: ArrayLike, symprec: float = FIT_SYMPREC
) -> SymmetryOperations:
    """Return all operations of the space group in the Cartesian frame of the cell as given.

    Rotations are brought to the nearest orthogonal matrix, since a cell may be distorted within the tolerance.  Of a
    large supercell there is one operation for each rotation: pure translations do nothing to tensors of the crystal.

    Args:
        cell: (3, 3) lattice vectors as rows, in Å.
        positions: (n, 3) Cartesian, in Å.
        numbers: (n,) atomic numbers.
        symprec: Tolerance in Å.

    Raises:
        EvaluationError: If spglib finds no space group, or an operation maps an atom on none.
    """
    lattice, fractional, dataset = search_symmetry(cell, positions, numbers, symprec)
    kinds = np.asarray(numbers)
    matrices, translations = dataset.rotations, dataset.translations
    if len(matrices) * len(kinds) > MOST_IMAGES:
        first = np.sort(np.unique(matrices.reshape(-1, 9), axis=0, return_index=True)[1])
        matrices, translations = matrices[first], translations[first]
    left, _, right = np.linalg.svd(lattice.T @ matrices @ np.linalg.inv(lattice.T))
    permutations = atom_permutations(fractional, kinds, matrices, translations, lattice, tolerance=10 * symprec)
    return SymmetryOperations(left @ right, permutations)


def atom_permutations(
    fractional: FloatArray,
    numbers: ArrayLike,
    rotations: ArrayLike,
    translations: ArrayLike,
    lattice: FloatArray,
    tolerance: float,
) -> NDArray[np.intp]:
    """Return the atom on which each operation (W, w) brings each atom, (s, n).

    Args:
        fractional: (n, 3) fractional coordinates.
        numbers: (n,) atomic numbers.
        rotations: (s, 3, 3) matrices W in fractional coordinates.
        translations: (s, 3) vectors w in fractional coordinates.
        lattice: (3, 3) lattice vectors as rows, in Å.
        tolerance: Largest distance in Å between image and atom.

    Raises:
        EvaluationError: If an operation brings an atom on none of its kind.
    """
    kinds = np.asarray(numbers)
    images = fractional @ np.asarray(rotations, dtype=float).transpose(0, 2, 1) + np.asarray(translations)[:, None, :]
    # a fourth coordinate keeps the elements apart; zero in boxsize means that it is not periodic
    tree = cKDTree(np.column_stack([fractional % 1.0 % 1.0, kinds]), boxsize=[1.0, 1.0, 1.0, 0.0])
    repeated = np.broadcast_to(kinds, images.shape[:2])[..., None]
    _, nearest = tree.query(np.concatenate([images % 1.0 % 1.0, repeated], axis=2))
    difference = images - fractional[nearest]
    distances = np.linalg.norm((difference - np.round(difference)) @ lattice, axis=2)
    complete = (np.sort(nearest, axis=1) == np.arange(len(kinds))).all()
    if not complete or distances.max() > tolerance or (kinds[nearest] != kinds).any():
        raise EvaluationError(
            f"A symmetry operation maps an atom on none of its kind within {tolerance:.3g} Å.",
            "Use a smaller symprec, or refine the structure.",
        )
    return nearest.astype(np.intp)


def symmetrize_tensor(
    tensor: ArrayLike, cell: ArrayLike, positions: ArrayLike, numbers: ArrayLike, symprec: float = FIT_SYMPREC
) -> FloatArray:
    """Return a (3, 3) tensor averaged over the point group of the crystal, in its own frame."""
    return symmetry_operations(cell, positions, numbers, symprec).symmetrize(tensor)


def ieee_rotation(cell: ArrayLike, positions: ArrayLike, numbers: ArrayLike, symprec: float = SYMPREC) -> FloatArray:
    """Return the matrix R that brings tensors to the IEEE 1987 orientation: T_ieee = R T Rᵀ.

    The rows of R are the IEEE axes in the frame of the cell as given.  The choice of axes is that of pymatgen's
    ``Tensor.get_ieee_rotation``, which the Materials Project uses: cubic a, b, c; tetragonal, trigonal and
    hexagonal c ∥ 3, a ∥ 1; orthorhombic c < a < b; monoclinic the unique axis ∥ 2 and the shorter of the other
    two ∥ 3; triclinic from the sorted lattice vectors; all of the conventional cell of spglib.  R may be improper,
    which a tensor of even rank does not see.

    Args:
        cell: (3, 3) lattice vectors as rows, in Å.
        positions: (n, 3) Cartesian, in Å.
        numbers: (n,) atomic numbers.
        symprec: Tolerance in Å.

    Raises:
        EvaluationError: If spglib finds no space group.
    """
    lattice, _, dataset = search_symmetry(cell, positions, numbers, symprec)
    vectors = (lattice.T @ np.linalg.inv(dataset.transformation_matrix)).T
    system = next(name for last, name in _CRYSTAL_SYSTEMS if dataset.number <= last)
    lengths = np.linalg.norm(vectors, axis=1)
    units = vectors / lengths[:, None]
    order = np.argsort(lengths, kind="stable")
    angles = np.degrees(np.arccos(np.clip([units[1] @ units[2], units[0] @ units[2], units[0] @ units[1]], -1.0, 1.0)))
    if system == "cubic":
        rows = units.copy()
    elif system == "tetragonal":
        rows = units[order]
        if abs(lengths[2] - lengths[1]) < abs(lengths[1] - lengths[0]):
            rows = rows[::-1].copy()
        rows[1] = _unit(np.cross(rows[2], rows[0]))
    elif system == "orthorhombic":
        rows = np.roll(units[order], 2, axis=0)
    elif system in ("trigonal", "hexagonal"):
        axis = int(np.argmin(np.abs(angles - 120.0)))
        first = next(i for i in range(3) if i != axis)
        rows = np.array([units[first], _unit(np.cross(units[axis], units[first])), units[axis]])
    elif system == "monoclinic":
        unique = int(np.argmax(np.abs(angles - 90.0)))
        short = next(i for i in order if i != unique)
        rows = np.array([np.cross(units[unique], units[short]), units[unique], units[short]])
    else:
        rows = units[order]
        rows[1] = _unit(np.cross(rows[2], rows[0]))
        rows[0] = np.cross(rows[1], rows[2])
    return _orthonormal(rows)


def _unit(vector: FloatArray) -> FloatArray:
    return vector / np.linalg.norm(vector)


def _orthonormal(rows: FloatArray) -> FloatArray:
    """Keep the first row, straighten the second in their plane, and complete to a right-handed frame."""
    first = _unit(rows[0])
    second = _unit(rows[1] - (rows[1] @ first) * first)
    return np.array([first, second, np.cross(first, second)])


def rotate_tensor(tensor: ArrayLike, rotation: ArrayLike) -> FloatArray:
    """Return R T Rᵀ of a (3, 3) tensor."""
    matrix = np.asarray(rotation, dtype=float)
    return matrix @ np.asarray(tensor, dtype=float) @ matrix.T
