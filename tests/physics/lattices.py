"""Crystals of every space group, and all the ways in which one and the same crystal can be written down."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from ase import Atoms

from fieldflows.testing.structures import random_rotation

SYSTEMS = {
    "triclinic": (1, 2),
    "monoclinic": (4, 5, 7, 8, 12, 14, 15),
    "orthorhombic": (19, 20, 22, 23, 29, 41, 43, 46, 62, 63, 70, 72),
    "tetragonal": (76, 79, 82, 88, 92, 98, 109, 122, 136, 141),
    "trigonal": (143, 144, 146, 148, 152, 155, 160, 161, 166, 167),
    "hexagonal": (169, 174, 176, 182, 186, 189, 194),
    "cubic": (195, 196, 197, 198, 199, 205, 206, 212, 216, 220, 221, 225, 227, 229, 230),
}
"""Space groups by crystal system, with every centring: P, A, C, F, I and R."""

GROUPS = tuple(number for numbers in SYSTEMS.values() for number in numbers)


def cell_parameters(number: int, rng: np.random.Generator) -> list[float]:
    """Return random parameters of the conventional cell of a space group, in Å and degrees."""
    a, b, c = rng.uniform(4.5, 7.5, 3)
    if number <= 2:
        return [a, b, c, *rng.uniform(75.0, 105.0, 3)]
    if number <= 15:
        return [a, b, c, 90.0, rng.uniform(95.0, 110.0), 90.0]
    if number <= 74:
        return [a, b, c, 90.0, 90.0, 90.0]
    if number <= 142:
        return [a, a, c, 90.0, 90.0, 90.0]
    if number <= 194:
        return [a, a, c, 90.0, 90.0, 120.0]
    return [a, a, a, 90.0, 90.0, 90.0]


@cache
def _crystal(number: int, seed: int) -> Atoms:
    from ase.spacegroup import crystal

    rng = np.random.default_rng([number, seed])
    parameters = cell_parameters(number, rng)
    general = tuple(rng.uniform(0.05, 0.45, 3))
    atoms = crystal(["Na", "O"], [(0.0, 0.0, 0.0), general], spacegroup=number, cellpar=parameters)
    return Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell[:], pbc=True)


def crystal_of(number: int, seed: int = 0) -> Atoms:
    """Return a conventional cell with an atom at the origin and one in general position, to which the group is true.

    Atoms may be close to each other: this is for geometry, not for models.
    """
    return _crystal(number, seed).copy()


@dataclass(frozen=True)
class Writing:
    """One way to write a crystal down.

    Attributes:
        seed: Of everything random below.
        shears: Elementary shears of the cell, each by two or three lattice vectors.
        repeat: Unit cells along the three vectors.
        left_handed: Whether the lattice vectors are a left-handed system.
        turned: Whether the frame is rotated at random.
        scattered: Whether atoms lie in periodic images far from the cell.
        noise: Length in Å by which each atom is moved at random.
        strain: Largest component of a random strain (symmetric, so that it contains no rotation).
    """

    seed: int = 0
    shears: int = 0
    repeat: tuple[int, int, int] = (1, 1, 1)
    left_handed: bool = False
    turned: bool = True
    scattered: bool = False
    noise: float = 1e-4
    strain: float = 1e-5


def unimodular(rng: np.random.Generator, shears: int) -> np.ndarray:
    """Return a random integer matrix of determinant 1, the more skewed the more shears it is made of."""
    matrix = np.eye(3, dtype=int)
    for _ in range(shears):
        row, column = rng.permutation(3)[:2]
        shear = np.eye(3, dtype=int)
        shear[row, column] = rng.choice([-3, -2, 2, 3])
        matrix = matrix @ shear
    return matrix


def write_down(atoms: Atoms, writing: Writing) -> Atoms:
    """Return the crystal in another cell, frame and choice of images, and off its symmetry by noise and strain."""
    rng = np.random.default_rng(writing.seed)
    turn = random_rotation(rng) if writing.turned else np.eye(3)  # first, so that it depends on the seed only
    atoms = atoms.repeat(writing.repeat)
    basis = unimodular(rng, writing.shears)
    if writing.left_handed:
        basis = basis[[1, 0, 2]]
    strain = rng.uniform(-1.0, 1.0, (3, 3)) * writing.strain
    change = turn.T @ (np.eye(3) + 0.5 * (strain + strain.T))
    cell = basis @ atoms.cell[:] @ change
    positions = atoms.positions @ change
    directions = rng.normal(size=positions.shape)
    positions = positions + writing.noise * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    if writing.scattered:
        positions = positions + rng.integers(-3, 4, (len(atoms), 3)) @ cell
    return Atoms(numbers=atoms.numbers, positions=positions, cell=cell, pbc=True)
