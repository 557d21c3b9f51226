"""A crystal brought to its symmetry: exact afterwards, in its own frame, and the primitive cell of the same crystal."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldflows.demo.crystals import load_crystals
from fieldflows.errors import EvaluationError
from fieldflows.physics import crystal as crystal_module
from fieldflows.physics.crystal import (
    SymmetricCrystal,
    compact_cell,
    primitive_crystal,
    reduced_basis,
    symmetrize_crystal,
)
from fieldflows.physics.symmetry import atom_permutations, search_symmetry, space_group
from fieldflows.structures import as_atoms
from fieldflows.testing.strategies import SEEDS
from fieldflows.testing.structures import named_structures, random_crystal
from tests.physics.lattices import GROUPS, Writing, crystal_of, unimodular, write_down

SYMPREC = 1e-3
EXACT = 1e-11

WRITINGS = st.builds(
    Writing,
    seed=SEEDS,
    shears=st.integers(0, 4),
    repeat=st.sampled_from([(1, 1, 1), (1, 1, 1), (2, 1, 1), (1, 1, 3), (2, 2, 2)]),
    left_handed=st.booleans(),
    scattered=st.booleans(),
)


def symmetrized(atoms: Atoms, symprec: float = SYMPREC) -> SymmetricCrystal:
    return symmetrize_crystal(atoms.cell[:], atoms.positions, atoms.numbers, symprec)


def distance(vectors: np.ndarray, cell: np.ndarray) -> float:
    """Return the largest distance in Å of vectors from lattice points."""
    compact = compact_cell(cell)[0]
    fractions = vectors @ np.linalg.inv(compact)
    return float(np.abs((fractions - np.round(fractions)) @ compact).max(initial=0.0))


def assert_exact(crystal: SymmetricCrystal) -> None:
    """Assert that every operation maps lattice and atoms on themselves, to rounding."""
    size = max(1.0, np.abs(crystal.positions).max() / 10.0)
    identity = crystal.rotations @ crystal.rotations.transpose(0, 2, 1)
    np.testing.assert_allclose(identity, np.broadcast_to(np.eye(3), identity.shape), rtol=0, atol=EXACT)
    assert distance(compact_cell(crystal.cell)[0] @ crystal.rotations.transpose(0, 2, 1), crystal.cell) < EXACT
    for rotation, permutation in zip(crystal.rotations, crystal.permutations, strict=True):
        assert (np.sort(permutation) == np.arange(len(crystal.numbers))).all()
        assert (crystal.numbers[permutation] == crystal.numbers).all()
        images = (crystal.positions - crystal.positions[0]) @ rotation.T
        found = crystal.positions[permutation] - crystal.positions[permutation[0]]
        assert distance(images - found, crystal.cell) < EXACT * size


def assert_reported(crystal: SymmetricCrystal, atoms: Atoms) -> None:
    """Assert that the crystal is the given one but for a stretch and shifts, of the sizes that are reported."""
    stretch = np.linalg.inv(atoms.cell[:]) @ crystal.cell
    assert np.abs(stretch - stretch.T).max() < 1e-10, "the crystal was turned"
    assert np.linalg.eigvalsh(stretch)[0] > 0.5
    shifts = crystal.positions - atoms.positions @ stretch
    size = max(1.0, np.abs(atoms.positions).max() / 10.0)
    assert crystal.max_shift == pytest.approx(np.linalg.norm(shifts, axis=1).max(), abs=1e-10 * size)
    assert crystal.strain == pytest.approx(np.abs(stretch - np.eye(3)).max(), abs=1e-10)
    assert (crystal.numbers == atoms.numbers).all()


def assert_primitive(crystal: SymmetricCrystal, primitive: SymmetricCrystal) -> None:
    """Assert that the primitive cell is the same crystal in the same frame, and that nothing smaller exists."""
    import spglib

    ratio = abs(np.linalg.det(compact_cell(crystal.cell)[0]) / np.linalg.det(compact_cell(primitive.cell)[0]))
    assert ratio == pytest.approx(primitive.multiplicity, rel=1e-10)
    assert len(primitive.numbers) * primitive.multiplicity == len(crystal.numbers)
    np.testing.assert_array_equal(primitive.positions, crystal.positions[primitive.representatives])
    np.testing.assert_array_equal(primitive.mapping[primitive.representatives], np.arange(len(primitive.numbers)))
    np.testing.assert_array_equal(primitive.numbers[primitive.mapping], crystal.numbers)
    size = max(1.0, np.abs(crystal.positions).max() / 10.0)
    assert distance(crystal.cell, primitive.cell) < 1e-10 * size
    assert distance(crystal.positions - primitive.positions[primitive.mapping], primitive.cell) < 1e-10 * size
    compact = compact_cell(primitive.cell)[0]
    fractions = primitive.positions @ np.linalg.inv(compact)
    smallest = spglib.find_primitive((compact, fractions, primitive.numbers), symprec=1e-5)
    assert len(smallest[2]) == len(primitive.numbers)
    assert (crystal.space_group, crystal.max_shift, crystal.strain) == (
        primitive.space_group,
        primitive.max_shift,
        primitive.strain,
    )


def assert_complete(primitive: SymmetricCrystal) -> None:
    """Assert that the primitive cell has the operations of its space group, and obeys them far below the tolerance."""
    compact = compact_cell(primitive.cell)[0]
    group = space_group(compact, primitive.positions, primitive.numbers, 1e-6)
    assert group.number == primitive.space_group
    assert primitive.n_operations == point_group_order(primitive.space_group)


@cache
def point_group_order(number: int) -> int:
    """Return the order of the point group of a space group, from the tables of spglib."""
    import spglib

    halls = (entry for entry in range(1, 531) if spglib.get_spacegroup_type(entry).number == number)
    rotations = spglib.get_symmetry_from_database(next(halls))["rotations"]
    return len(np.unique(rotations.reshape(-1, 9), axis=0))


@settings(max_examples=40, deadline=None)
@given(number=st.sampled_from(GROUPS), seed=st.integers(0, 3), writing=WRITINGS)
def test_any_crystal_however_it_is_written_down(number, seed, writing):
    atoms = write_down(crystal_of(number, seed), writing)
    crystal = symmetrized(atoms)
    assert crystal.space_group == space_group(*_arrays(crystal_of(number, seed)), SYMPREC).number
    assert_exact(crystal)
    assert_reported(crystal, atoms)
    assert crystal.max_shift < 5 * writing.noise
    assert crystal.strain < 3 * writing.strain
    primitive = crystal.primitive()
    assert_exact(primitive)
    assert_primitive(crystal, primitive)
    complete = primitive_crystal(*_arrays(atoms), SYMPREC)
    assert_exact(complete)
    assert_complete(complete)
    assert complete.max_shift < 5 * writing.noise
    np.testing.assert_array_equal(complete.mapping, primitive.mapping)
    np.testing.assert_array_equal(complete.representatives, primitive.representatives)


@pytest.mark.parametrize("number", GROUPS)
def test_every_operation_of_a_group_is_kept(number):
    """Of conventional cells, whose lattice has the full symmetry."""
    crystal = symmetrized(write_down(crystal_of(number), Writing(seed=number)))
    assert crystal.space_group == number
    primitive = crystal.primitive()
    assert primitive.n_operations == primitive.point_group_order == point_group_order(number)
    assert primitive.n_operations * primitive.multiplicity == crystal.n_operations


def test_operations_that_a_supercell_hides_are_found_in_its_primitive_cell():
    """Two cubic cells side by side have a fourfold axis only."""
    atoms = write_down(named_structures()["perovskite_srtio3"], Writing(repeat=(2, 1, 1)))
    direct = symmetrized(atoms)
    assert (direct.space_group, direct.n_operations, direct.primitive().n_operations) == (221, 32, 16)
    complete = primitive_crystal(*_arrays(atoms), SYMPREC)
    assert (complete.space_group, complete.n_operations, complete.multiplicity) == (221, 48, 2)
    assert_exact(complete)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 231))
@pytest.mark.parametrize(
    "writing",
    [Writing(), Writing(shears=6, left_handed=True, scattered=True), Writing(shears=3, repeat=(1, 2, 2))],
    ids=["conventional", "skewed", "supercell"],
)
def test_all_space_groups(number, writing):
    atoms = write_down(crystal_of(number, 1), writing)
    crystal = symmetrized(atoms)
    assert crystal.space_group == number
    primitive = crystal.primitive()
    assert_exact(primitive)
    assert_reported(crystal, atoms)
    assert_primitive(crystal, primitive)
    complete = primitive_crystal(*_arrays(atoms), SYMPREC)
    assert_exact(complete)
    assert_complete(complete)


def real_crystals() -> dict[str, Atoms]:
    return named_structures() | {item.name: as_atoms(item.primitive()) for item in load_crystals()}


@pytest.mark.parametrize("name", list(real_crystals()))
def test_real_crystals_as_published(name):
    """Coordinates with four digits: what moves is at most the last of them, and the frame stays."""
    atoms = real_crystals()[name]
    large = write_down(atoms, Writing(seed=1, shears=2, repeat=(1, 2, 1), scattered=True, noise=0.0, strain=0.0))
    crystal = symmetrized(large)
    assert crystal.max_shift < 1e-3
    assert crystal.strain < 1e-9
    primitive = crystal.primitive()
    assert len(primitive.numbers) == len(atoms)
    assert primitive.multiplicity == 2
    assert_exact(primitive)
    assert_reported(crystal, large)
    assert_primitive(crystal, primitive)


@pytest.mark.parametrize(
    "atoms",
    [
        bulk("Na", "sc", a=3.0),
        bulk("Fe", "bcc", a=2.87),
        bulk("Cu", "fcc", a=3.61, cubic=True),
        bulk("Hg", "rhombohedral", a=3.0, alpha=70.5),
        random_crystal(1, ("O",), volume_per_atom=20.0),
    ],
    ids=["simple cubic", "body-centered", "face-centered, conventional", "rhombohedral", "triclinic"],
)
def test_one_atom_in_the_primitive_cell(atoms):
    crystal = symmetrized(write_down(atoms, Writing(seed=3, scattered=True, shears=1)))
    primitive = crystal.primitive()
    assert len(primitive.numbers) == 1
    assert (primitive.mapping == 0).all()
    assert primitive.n_operations in (2, 12, 48)
    assert_exact(primitive)


def test_a_crystal_that_has_its_symmetry_stays_where_it_is():
    atoms = write_down(crystal_of(230), Writing(seed=2, noise=0.0, strain=0.0))
    crystal = symmetrized(atoms)
    assert crystal.max_shift < 1e-12
    assert crystal.strain < 1e-12
    again = symmetrized(Atoms(numbers=crystal.numbers, positions=crystal.positions, cell=crystal.cell, pbc=True))
    assert np.abs(again.positions - crystal.positions).max() < 1e-12


def test_a_crystal_without_symmetry_is_returned_to_the_bit_or_nearly():
    atoms = random_crystal(5)
    crystal = symmetrized(atoms)
    assert (crystal.space_group, crystal.n_operations, crystal.multiplicity) == (1, 1, 1)
    np.testing.assert_allclose(crystal.positions, atoms.positions, rtol=0, atol=1e-13)
    np.testing.assert_allclose(crystal.cell, atoms.cell[:], rtol=0, atol=1e-13)
    assert crystal.primitive() is crystal


def test_a_supercell_without_rotations_is_still_reduced():
    atoms = write_down(random_crystal(6), Writing(seed=4, repeat=(3, 1, 2), shears=2, scattered=True))
    crystal = symmetrized(atoms)
    assert (crystal.space_group, crystal.n_operations) == (1, 6)
    assert_exact(crystal)
    assert_primitive(crystal, crystal.primitive())


@pytest.mark.parametrize("repeat", [(3, 3, 3), (2, 3, 4)])
def test_a_large_supercell_costs_little(repeat):
    """Operations times atoms grow with the square of the volume: of large cells only the translations are used."""
    unit = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms = write_down(unit, Writing(seed=8, repeat=repeat, noise=1e-4))
    count = 8 * int(np.prod(repeat))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crystal_module, "MOST_IMAGES", 100_000)
        direct = symmetrized(atoms)
        primitive = primitive_crystal(*_arrays(atoms), SYMPREC)
    assert (direct.n_operations, direct.space_group) == (count // 2, 225)
    assert_exact(direct)
    assert_reported(direct, atoms)
    assert (primitive.n_operations, primitive.multiplicity) == (48, count // 2)
    assert_exact(primitive)
    reference = primitive_crystal(*_arrays(atoms), SYMPREC)
    np.testing.assert_array_equal(primitive.mapping, reference.mapping)
    np.testing.assert_allclose(primitive.positions, reference.positions, rtol=0, atol=3e-4)


def test_a_supercell_beyond_all_bounds_is_refused(monkeypatch):
    monkeypatch.setattr(crystal_module, "MOST_IMAGES", 10)
    with pytest.raises(EvaluationError, match="64 atoms with 32 translations"):
        symmetrized(bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(2))


def test_the_distortion_decides_which_group_is_found():
    """A tetragonal crystal 0.03 Å off the cubic one: its own group at a fine tolerance, the cubic one at a coarse."""
    atoms = named_structures()["perovskite_srtio3"]
    atoms.positions[1, 2] += 0.03
    fine, coarse = symmetrized(atoms), symmetrized(atoms, 0.1)
    assert (fine.space_group, coarse.space_group) == (99, 221)
    assert fine.max_shift < 1e-12
    assert 0.01 < coarse.max_shift < 0.06
    assert_exact(coarse)


@pytest.mark.parametrize("symprec", [5.0, 1e3])
def test_no_group_is_an_error_with_advice(symprec):
    with pytest.raises(EvaluationError, match="symprec"):
        symmetrized(named_structures()["alpha_quartz"], symprec)


def test_a_cell_skewed_beyond_all_digits_is_refused_and_does_not_end_the_process():
    """spglib reads memory that is not its own for such cells."""
    cell = np.array([[4.0, 0.0, 0.0], [4e7, 4.0, 0.0], [1.6e14, 3e7, 4.0]])
    with pytest.raises(EvaluationError, match="skewed"):
        search_symmetry(cell, np.zeros((1, 3)), [11])


@pytest.mark.parametrize("last", [[4.0, 4.0, 0.0], [4.0, 4.0, 1e-9], [np.nan, 0.0, 0.0], [0.0, 0.0, 0.0]])
def test_flat_and_infinite_cells_are_refused(last):
    with pytest.raises(EvaluationError, match=r"reduced|skewed"):
        symmetrize_crystal([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], last], np.zeros((1, 3)), [11], SYMPREC)


def test_permutations_refuse_operations_that_are_none():
    atoms = named_structures()["wurtzite_zno"]
    fractional = atoms.get_scaled_positions()
    for matrix, shift in ((-np.eye(3), np.zeros(3)), (np.eye(3), np.array([0.1, 0.2, 0.3]))):
        with pytest.raises(EvaluationError, match="none of its kind"):
            atom_permutations(fractional, atoms.numbers, [matrix], [shift], atoms.cell[:], 0.01)
    swapped = bulk("MgO", "rocksalt", a=4.2)
    with pytest.raises(EvaluationError, match="none of its kind"):  # positions fit, elements do not
        atom_permutations(
            swapped.get_scaled_positions(), swapped.numbers, [np.eye(3)], [np.full(3, 0.5)], swapped.cell[:], 0.01
        )


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, shears=st.integers(0, 6))
def test_the_compact_cell_is_another_basis_of_the_same_lattice(seed, shears):
    rng = np.random.default_rng(seed)
    short = random_crystal(seed, ("Si",), volume_per_atom=60.0).cell[:]
    cell = unimodular(rng, shears) @ short
    compact, transform = compact_cell(cell)
    np.testing.assert_array_equal(transform, np.round(transform))
    assert abs(round(np.linalg.det(transform))) == 1
    np.testing.assert_allclose(transform @ cell, compact, rtol=0, atol=1e-12)
    assert distance(short, compact) < 1e-9
    assert np.linalg.norm(compact, axis=1).max() <= np.linalg.norm(short, axis=1).max() + 1e-9


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, count=st.sampled_from([2, 3, 4, 6]))
def test_a_primitive_lattice_is_found_among_translations(seed, count):
    """Sublattices of a known lattice, with the translations between them given."""
    rng = np.random.default_rng(seed)
    primitive = random_crystal(seed, ("Si",), volume_per_atom=60.0).cell[:]
    large = compact_cell(np.diag([1, 1, count]) @ unimodular(rng, 2) @ primitive)[0]
    corners = np.indices((7, 7, 7)).reshape(3, -1).T - 3
    points = corners @ primitive
    fractions = points @ np.linalg.inv(large)
    _, first = np.unique(np.round((fractions - np.floor(fractions + 1e-9)), 6), axis=0, return_index=True)
    assert len(first) == count
    inside = fractions[first] - np.round(fractions[first])
    basis = reduced_basis([*(inside @ large), *large], abs(np.linalg.det(primitive)))
    assert np.linalg.det(basis) == pytest.approx(abs(np.linalg.det(primitive)), rel=1e-9)
    assert distance(basis, primitive) < 1e-9
    assert distance(large, basis) < 1e-9


def test_translations_that_do_not_fit_the_volume_are_refused():
    with pytest.raises(EvaluationError, match="primitive lattice"):
        reduced_basis([[0.0, 0.0, 0.0], *(4.0 * np.eye(3))], 7.0)


def _arrays(atoms: Atoms):
    return atoms.cell[:], atoms.positions, atoms.numbers
