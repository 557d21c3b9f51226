"""Few directions: as few as possible, and every tensor that obeys the symmetry comes back from its products."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldflows.demo.crystals import load_crystals
from fieldflows.physics import directions
from fieldflows.physics.crystal import SymmetricCrystal, primitive_crystal, symmetrize_crystal
from fieldflows.structures import as_atoms
from fieldflows.testing.strategies import SEEDS
from fieldflows.testing.structures import alpha_quartz, named_structures, perovskite_srtio3, random_crystal
from tests.physics.lattices import SYSTEMS, Writing, crystal_of, write_down

FIELD_DIRECTIONS = {"triclinic": 3, "monoclinic": 2}
"""One for all other systems."""

SMALL = (1, 2, 5, 8, 12, 15, 22, 38, 44, 79, 82, 97, 111, 119, 143, 146, 147, 155, 160, 166, 174, 187, 191, 215, 216)
"""Space groups whose crystals here have few atoms."""


@cache
def primitive(number: int, seed: int = 0) -> SymmetricCrystal:
    atoms = write_down(crystal_of(number, seed), Writing(seed=number + seed))
    return primitive_crystal(atoms.cell[:], atoms.positions, atoms.numbers, 1e-3)


def of_atoms(atoms) -> SymmetricCrystal:
    return primitive_crystal(atoms.cell[:], atoms.positions, atoms.numbers, 1e-3)


def matrices(rotations: np.ndarray, permutations: np.ndarray) -> np.ndarray:
    """Return D_s as (s, 3n, 3n): the displacement of atom κ turns and lands on atom p(κ)."""
    operations, n = permutations.shape
    result = np.zeros((operations, n, 3, n, 3))
    for s in range(operations):
        for atom in range(n):
            result[s, permutations[s, atom], :, atom, :] = rotations[s]
    return result.reshape(operations, 3 * n, 3 * n)


def random_polarizability(rotations, rng) -> np.ndarray:
    tensor = rng.normal(size=(3, 3))
    return np.mean(rotations @ (tensor + tensor.T) @ rotations.transpose(0, 2, 1), axis=0)


def random_charges(rotations, permutations, rng) -> np.ndarray:
    charges = rng.normal(size=(permutations.shape[1], 3, 3))
    result = np.zeros_like(charges)
    for rotation, permutation in zip(rotations, permutations, strict=True):
        result[permutation] += rotation @ charges @ rotation.T
    return result / len(rotations)


def random_hessian(rotations, permutations, rng) -> np.ndarray:
    n = permutations.shape[1]
    tensor = rng.normal(size=(3 * n, 3 * n))
    moved = matrices(rotations, permutations)
    tensor = np.mean(moved @ (tensor + tensor.T) @ moved.transpose(0, 2, 1), axis=0)
    relative = np.eye(3 * n) - np.kron(np.full((n, n), 1.0 / n), np.eye(3))
    return relative @ tensor @ relative


def assert_all_come_back(rotations, permutations, seed: int) -> None:
    """Assert that α, Z* and H of random numbers come back from products with the directions."""
    rng = np.random.default_rng(seed)
    field = directions.field_directions(rotations)
    alpha = random_polarizability(rotations, rng)
    found = directions.complete_polarizability(field @ alpha.T, field, rotations)
    np.testing.assert_allclose(found, alpha, rtol=0, atol=1e-11)
    charges = random_charges(rotations, permutations, rng)
    products = np.einsum("ki,nij->nkj", field, charges)
    found = directions.complete_born_charges(products, field, rotations, permutations)
    np.testing.assert_allclose(found, charges, rtol=0, atol=1e-11)
    displaced = directions.displacement_directions(rotations, permutations)
    hessian = random_hessian(rotations, permutations, rng)
    n = permutations.shape[1]
    products = (displaced.vectors.reshape(-1, 3 * n) @ hessian).reshape(-1, n, 3)
    found = directions.complete_hessian(products, displaced, rotations, permutations)
    np.testing.assert_allclose(found, hessian, rtol=0, atol=1e-11 * max(1.0, np.abs(hessian).max(initial=0)))


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_number_of_field_directions(system):
    for number in SYSTEMS[system]:
        field = directions.field_directions(primitive(number).rotations)
        assert field.shape == (FIELD_DIRECTIONS.get(system, 1), 3), number


@pytest.mark.parametrize(
    ("atoms", "count"),
    [(perovskite_srtio3(), 1), (alpha_quartz(), 4), (random_crystal(2), 9), (named_structures()["rocksalt_mgo"], 1)],
    ids=["cubic perovskite", "quartz", "triclinic", "rock salt"],
)
def test_number_of_displacements(atoms, count):
    """As in group theory: the largest ⌈multiplicity/dimension⌉ of the optical modes.

    Perovskite: 3 T1u + T2u; quartz: 4 A1 + 4 A2 + 8 E.
    """
    crystal = of_atoms(atoms)
    assert len(directions.displacement_directions(crystal.rotations, crystal.permutations).vectors) == count


@pytest.mark.parametrize("number", SMALL)
def test_as_few_displacements_as_possible(number):
    """With one less, no other draw of random numbers spans the space either."""
    crystal = primitive(number)
    displaced = directions.displacement_directions(crystal.rotations, crystal.permutations)
    count, n = len(displaced.vectors), len(crystal.numbers)
    orbits = len(np.unique(crystal.permutations.min(axis=0)))
    assert count <= min(3 * orbits, 3 * (n - 1))
    if count > 1:
        fewer = np.random.default_rng(7).normal(size=(count - 1, n, 3))
        fewer = (fewer - fewer.mean(axis=1, keepdims=True)).reshape(-1, 3 * n)
        images = np.einsum("sij,kj->ski", matrices(crystal.rotations, crystal.permutations), fewer)
        assert np.linalg.matrix_rank(images.reshape(-1, 3 * n), tol=1e-6) < 3 * (n - 1)


@settings(max_examples=40, deadline=None)
@given(number=st.sampled_from(SMALL), seed=SEEDS)
def test_symmetric_tensors_come_back(number, seed):
    crystal = primitive(number, seed % 2)
    assert_all_come_back(crystal.rotations, crystal.permutations, seed)


@pytest.mark.parametrize("name", [*named_structures(), *(item.name for item in load_crystals())])
def test_tensors_of_real_crystals_come_back(name):
    known = named_structures() | {item.name: as_atoms(item.primitive()) for item in load_crystals()}
    crystal = of_atoms(write_down(known[name], Writing(seed=5, shears=2)))
    assert_all_come_back(crystal.rotations, crystal.permutations, 1)


@pytest.mark.parametrize("name", ["rocksalt_mgo", "zincblende_gaas", "tetragonal_batio3"])
def test_conventional_cells_and_supercells(name):
    """With pure translations among the operations."""
    atoms = write_down(named_structures()[name], Writing(seed=5, repeat=(2, 1, 2)))
    crystal = symmetrize_crystal(atoms.cell[:], atoms.positions, atoms.numbers, 1e-3)
    assert crystal.n_operations > len(np.unique(crystal.rotations.round(3), axis=0))
    assert_all_come_back(crystal.rotations, crystal.permutations, 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 231))
def test_all_space_groups(number):
    crystal = primitive(number, 1)
    assert_all_come_back(crystal.rotations, crystal.permutations, number)


@pytest.mark.parametrize("number", SMALL)
def test_directions_are_as_well_conditioned_as_axes(number):
    """G = 1 on everything but translations, from explicit matrices; noise of products is not amplified."""
    crystal = primitive(number)
    group, permutations, n = crystal.rotations, crystal.permutations, len(crystal.numbers)
    field = directions.field_directions(group)
    images = np.einsum("sij,kj->ski", group, field).reshape(-1, 3)
    np.testing.assert_allclose(images.T @ images / len(group), np.eye(3), rtol=0, atol=1e-12)
    displaced = directions.displacement_directions(group, permutations)
    vectors = displaced.vectors.reshape(-1, 3 * n)
    if len(vectors) == 3 * (n - 1):
        images, operations = vectors, 1
    else:
        images = np.einsum("sij,kj->ski", matrices(group, permutations), vectors).reshape(-1, 3 * n)
        operations = len(group)
    relative = np.eye(3 * n) - np.kron(np.full((n, n), 1.0 / n), np.eye(3))
    np.testing.assert_allclose(images.T @ images / operations, relative, rtol=0, atol=1e-11)
    np.testing.assert_allclose(displaced.gram, relative, rtol=0, atol=1e-11)

    rng = np.random.default_rng(number)
    noise = rng.normal(size=displaced.vectors.shape)
    error = directions.complete_hessian(noise, displaced, group, permutations)
    assert np.linalg.norm(error) <= np.linalg.norm(noise) * (1 + 1e-9)


def test_the_same_crystal_gets_the_same_directions():
    crystal = primitive(166)
    first, second = (directions.displacement_directions(crystal.rotations, crystal.permutations) for _ in range(2))
    np.testing.assert_array_equal(first.vectors, second.vectors)
    field = directions.field_directions(crystal.rotations)
    np.testing.assert_array_equal(field, directions.field_directions(crystal.rotations))


def test_one_atom_has_no_optical_displacement():
    rotations, permutations = np.array([np.eye(3), -np.eye(3)]), np.zeros((2, 1), dtype=int)
    displaced = directions.displacement_directions(rotations, permutations)
    assert displaced.vectors.shape == (0, 1, 3)
    found = directions.complete_hessian(np.zeros((0, 1, 3)), displaced, rotations, permutations)
    np.testing.assert_array_equal(found, np.zeros((3, 3)))


@pytest.mark.parametrize("n", [2, 3, 7])
def test_without_symmetry_all_relative_displacements_are_taken(n):
    identity = np.eye(3)[None], np.arange(n)[None]
    displaced = directions.displacement_directions(*identity)
    vectors = displaced.vectors.reshape(-1, 3 * n)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(3 * (n - 1)), rtol=0, atol=1e-12)
    np.testing.assert_allclose(displaced.vectors.sum(axis=1), 0.0, rtol=0, atol=1e-12)
    assert_all_come_back(*identity, seed=n)


@pytest.mark.parametrize(
    ("field", "kept"),
    [
        ([0, 0, 0], 48),
        ([0, 0, 0.05], 8),
        ([0, 0, -1e-9], 8),
        ([0.02, 0.02, 0.02], 6),
        ([0.03, 0.03, 0], 4),
        ([0.03, 0.02, 0.0], 2),
        ([0.03, 0.02, 0.01], 1),
        ([0.05, 1e-7, 0], 2),
    ],
)
def test_a_field_leaves_the_operations_that_leave_it(field, kept):
    """The subgroups of m-3m that fix a vector: 4mm, 3m, mm2, m and 1, in a tilted frame too."""
    crystal = of_atoms(perovskite_srtio3())
    assert int(directions.invariant_operations(crystal.rotations, field).sum()) == kept
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    assert int(directions.invariant_operations(turn @ crystal.rotations @ turn.T, turn @ field).sum()) == kept


@pytest.mark.parametrize("field", [[0, 0, 0.05], [0.02, 0.02, 0.02], [0.03, 0.03, 0], [0.03, 0.02, 0.01]])
@pytest.mark.parametrize("name", ["perovskite_srtio3", "alpha_quartz", "wurtzite_zno"])
def test_tensors_at_a_field_come_back(name, field):
    """They obey only the operations that leave the field; those of the polar crystal leave a field along its axis."""
    crystal = of_atoms(named_structures()[name])
    kept = directions.invariant_operations(crystal.rotations, field)
    assert 0 < kept.sum() < crystal.n_operations or (name, field[0]) == ("wurtzite_zno", 0)
    assert_all_come_back(crystal.rotations[kept], crystal.permutations[kept], 4)
