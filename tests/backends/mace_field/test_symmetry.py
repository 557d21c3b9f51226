"""Symmetries of the electric enthalpy, for random crystals, rotations, fields and choices of the cell."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import make_supercell
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldflows.observables import OBSERVABLES
from fieldflows.testing.strategies import SEEDS, crystals, fields, rotations
from tests.backends.mace_field.models import HIDDEN, cubic, small_model

MODELS = {
    "L1": {},
    "L2": {"hidden_irreps": HIDDEN["L2"]},
    "L1-element-polarizability": {"element_polarizability": True},
    "L2-element-polarizability": {"hidden_irreps": HIDDEN["L2"], "element_polarizability": True},
}
FIRST = ("energy", "forces", "stress", "polarization", "born_effective_charges", "polarizability")
SOME = crystals(elements=("O", "Na", "Ti"), max_atoms=3)
few = settings(max_examples=4, deadline=None)

pytestmark = pytest.mark.parametrize("name", MODELS)


def assert_same(found, expected, what):
    expected = np.asarray(expected)
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=1e-11 * max(1.0, np.abs(expected).max(initial=0)), err_msg=what
    )


@few
@given(atoms=SOME, turn=rotations(), field=fields())
def test_everything_turns_with_crystal_and_field(name, atoms, turn, field):
    model = small_model(**MODELS[name])
    turned = atoms.copy()
    turned.set_cell(atoms.cell[:] @ turn.T)
    turned.positions = atoms.positions @ turn.T
    base = model.evaluate(atoms, field, FIRST)
    found = model.evaluate(turned, turn @ field, FIRST)
    assert_same(found.energy, base.energy, "energy")
    assert_same(found.forces, base.forces @ turn.T, "forces")
    assert_same(found.polarization, turn @ base.polarization, "polarization")
    for key in ("stress", "born_effective_charges", "polarizability"):
        assert_same(found.get(key), turn @ base.get(key) @ turn.T, key)


@few
@given(atoms=SOME, field=fields(), shift=st.tuples(*[st.floats(-20, 20)] * 3), seed=SEEDS)
def test_translation_wrapping_and_order_do_not_matter(name, atoms, field, shift, seed):
    model = small_model(**MODELS[name])
    rng = np.random.default_rng(seed)
    moved = atoms.copy()
    moved.positions += np.array(shift) + rng.integers(-3, 4, (len(atoms), 3)) @ atoms.cell[:]
    order = rng.permutation(len(atoms))
    base = model.evaluate(atoms, field, FIRST)
    found = model.evaluate(moved[order], field, FIRST)
    for key in FIRST:
        expected = base.get(key)
        assert_same(found.get(key), expected[order] if OBSERVABLES[key].per_atom else expected, key)


@few
@given(atoms=SOME, field=fields(), seed=SEEDS)
def test_a_supercell_has_the_properties_of_the_cell(name, atoms, field, seed):
    model = small_model(**MODELS[name])
    rng = np.random.default_rng(seed)
    matrix = np.diag(rng.permutation([1, 1, 2])) @ _unimodular(rng)
    large = make_supercell(atoms, matrix)
    assert len(large) == 2 * len(atoms)
    assert large.cell.volume == pytest.approx(2 * abs(atoms.cell.volume))
    base = model.evaluate(atoms, field, FIRST)
    found = model.evaluate(large, field, FIRST)
    assert_same(found.energy, 2 * base.energy, "energy")
    for key in ("stress", "polarization", "polarizability"):
        assert_same(found.get(key), base.get(key), key)
    for key in ("forces", "born_effective_charges"):
        pair = base.get(key)[_origin(large, atoms)]
        assert_same(found.get(key), pair, key)


@few
@given(many=st.lists(st.tuples(SOME, fields()), min_size=2, max_size=4), budget=st.sampled_from([1.0, 5e6, 1e9]))
def test_a_batch_equals_one_by_one(name, many, budget):
    model = small_model(batch_bytes=budget, **MODELS[name])
    structures = [atoms for atoms, _ in many]
    applied = np.array([field for _, field in many])
    together = model.evaluate(structures, applied, FIRST)
    for atoms, field, found in zip(structures, applied, together, strict=True):
        alone = model.evaluate(atoms, field, FIRST)
        np.testing.assert_array_equal(found.field, field)
        for key in FIRST:
            assert_same(found.get(key), alone.get(key), key)


@few
@given(field=fields())
def test_inversion_of_a_centrosymmetric_crystal(name, field):
    model = small_model(**MODELS[name])
    atoms = cubic()
    up, down = (model.evaluate(atoms, sign * field, FIRST) for sign in (1, -1))
    assert_same(up.energy, down.energy, "energy")
    assert_same(up.polarization, -down.polarization, "polarization")
    assert_same(up.polarizability, down.polarizability, "polarizability")
    assert_same(up.forces, -down.forces, "forces")
    rest = model.evaluate(atoms, None, FIRST)
    assert_same(rest.polarization, np.zeros(3), "polarization at rest")
    assert_same(rest.forces, np.zeros((2, 3)), "forces at rest")
    for tensor in [rest.polarizability, *rest.born_effective_charges]:
        assert_same(tensor, np.eye(3) * np.trace(tensor) / 3, "cubic tensor")
    assert abs(rest.born_effective_charges[0, 0, 0]) > 1e-3


def _unimodular(rng: np.random.Generator) -> np.ndarray:
    """Another basis of the same lattice."""
    matrix = np.eye(3, dtype=int)
    for _ in range(2):
        i, j = rng.permutation(3)[:2]
        shear = np.eye(3, dtype=int)
        shear[i, j] = rng.choice([-1, 1])
        matrix = matrix @ shear
    return matrix


def _origin(large, atoms) -> list[int]:
    """Index in the cell of each atom of a supercell."""
    inverse = np.linalg.inv(atoms.cell[:])
    result = []
    for position in large.positions:
        fractions = (position - atoms.positions) @ inverse
        distance = np.abs(fractions - np.round(fractions)).max(axis=1)
        assert distance.min() < 1e-8
        result.append(int(distance.argmin()))
    return result
