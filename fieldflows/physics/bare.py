"""Bare crystals as arrays: reduced and primitive cells, and shortest vectors between sites."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fieldflows.errors import EvaluationError
from fieldflows.physics.crystal import compact_cell, reduced_basis
from fieldflows.physics.symmetry import atom_permutations, search_symmetry

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.intp]


@dataclass(frozen=True)
class BareCrystal:
    """Arrays of a crystal.

    Attributes:
        cell: (3, 3) lattice vectors as rows, in Å.
        fractional: (n, 3) fractional coordinates.
        numbers: (n,) atomic numbers.
    """

    cell: FloatArray
    fractional: FloatArray
    numbers: IndexArray

    @classmethod
    def of(cls, cell: ArrayLike, positions: ArrayLike, numbers: ArrayLike) -> BareCrystal:
        """Return a crystal from Cartesian positions in Å."""
        matrix = np.asarray(cell, dtype=float)
        return cls(matrix, np.asarray(positions, dtype=float) @ np.linalg.inv(matrix), np.asarray(numbers, np.intp))

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def positions(self) -> FloatArray:
        """(n, 3) Cartesian, in Å."""
        return self.fractional @ self.cell

    @property
    def volume(self) -> float:
        """In Å³."""
        return abs(float(np.linalg.det(self.cell)))

    def reduced(self) -> tuple[BareCrystal, FloatArray]:
        """Return the crystal on its shortest lattice vectors, and the integer matrix U: reduced cell = U · cell."""
        cell, transform = compact_cell(self.cell)
        return BareCrystal(cell, self.fractional @ np.linalg.inv(transform), self.numbers), transform


def shortest_differences(cell: FloatArray, start: FloatArray, end: FloatArray) -> FloatArray:
    """Return (n, m, 3) shortest vectors in Å from fractional coordinates (n, 3) to (m, 3), over all images."""
    from pymatgen.core import Lattice
    from pymatgen.util.coord import pbc_shortest_vectors

    return np.asarray(pbc_shortest_vectors(Lattice(cell), start, end))


def primitive_cell(crystal: BareCrystal, symprec: float) -> tuple[BareCrystal, IndexArray]:
    """Return the primitive cell of a crystal in the same frame, and the atom of the original that each atom is.

    A primitive crystal comes back as it is; otherwise atoms are averaged over the pure translations, which moves them
    by less than ``symprec``.

    Raises:
        EvaluationError: If no space group is found.
    """
    compact, _ = crystal.reduced()
    _, _, dataset = search_symmetry(compact.cell, compact.positions, compact.numbers, symprec)
    pure = (dataset.rotations == np.eye(3, dtype=int)).all(axis=(1, 2))
    translations = dataset.translations[pure]
    if len(translations) == 1:
        return crystal, np.arange(len(crystal))
    rotations = np.broadcast_to(np.eye(3), (len(translations), 3, 3))
    found = atom_permutations(
        compact.fractional, compact.numbers, rotations, translations, compact.cell, 10 * symprec + 1e-6
    )
    count = len(translations)
    representatives, sizes = np.unique(found.min(axis=0), return_counts=True)
    if (sizes != count).any():
        raise EvaluationError("The pure translations of the crystal do not map its atoms on each other freely.")
    steps = np.round((translations - np.round(translations)) * count) / count
    lattice = reduced_basis(np.array([*(steps @ compact.cell), *compact.cell]), compact.volume / count)
    images = compact.fractional[found[:, representatives]] - translations[:, None, :]
    drift = images - compact.fractional[representatives]
    mean = compact.fractional[representatives] + (drift - np.round(drift)).mean(axis=0)
    primitive = BareCrystal.of(lattice, mean @ compact.cell, compact.numbers[representatives])
    return primitive, representatives
