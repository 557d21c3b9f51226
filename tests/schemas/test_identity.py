"""Keys: equal for equal questions, different for different ones."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldflows.schemas.identity import document_key, settings_hash, structure_hash
from fieldflows.structures import as_structure
from fieldflows.testing.strategies import crystals
from fieldflows.testing.structures import random_rotation, rocksalt_mgo


@settings(max_examples=30, deadline=None)
@given(crystals(), st.lists(st.integers(-3, 3), min_size=3, max_size=3))
def test_lattice_translations_of_atoms_and_representation_do_not_matter(atoms, shift):
    expected = structure_hash(atoms)
    moved = atoms.copy()
    moved.positions[0] += np.array(shift) @ atoms.cell[:]
    wrapped = atoms.copy()
    wrapped.wrap()
    assert structure_hash(moved) == expected
    assert structure_hash(wrapped) == expected
    assert structure_hash(as_structure(atoms)) == expected


@settings(max_examples=20, deadline=None)
@given(crystals(min_atoms=2))
def test_what_changes_the_numbers_changes_the_hash(atoms):
    expected = structure_hash(atoms)
    moved, strained, other = atoms.copy(), atoms.copy(), atoms.copy()
    moved.positions[1, 0] += 1e-5
    strained.set_cell(atoms.cell[:] * (1 + 1e-6), scale_atoms=True)
    other.numbers[0] = 57
    turned = atoms.copy()
    turned.set_cell(atoms.cell[:] @ random_rotation(1).T, scale_atoms=True)
    hashes = {structure_hash(a) for a in (moved, strained, other, turned)}
    assert len(hashes) == 4
    assert expected not in hashes


def test_coordinates_at_the_border_of_the_cell():
    """0, 1 − 1e-12 and −1e-12 are the same place."""
    atoms = rocksalt_mgo()
    hashes = set()
    for shift in (0.0, 1e-12, -1e-12, 1.0):
        copy = atoms.copy()
        copy.positions[0] = shift * atoms.cell[0]
        hashes.add(structure_hash(copy))
    assert len(hashes) == 1


def test_settings_hash_ignores_order_and_sees_values():
    assert settings_hash({"a": 1, "b": [1, 2]}) == settings_hash({"b": [1, 2], "a": 1})
    assert settings_hash({"a": 1}) != settings_hash({"a": 2})
    with pytest.raises(ValueError):
        settings_hash({"a": float("nan")})
    with pytest.raises(TypeError):
        settings_hash({"a": {1, 2}})


def test_keys_depend_on_every_part():
    base = ("dielectric", "s", "m", "t", 1)
    keys = {document_key(*base)}
    for position, value in enumerate(("other", "s2", "m2", "t2", 2)):
        parts = list(base)
        parts[position] = value
        keys.add(document_key(*parts))
    assert len(keys) == 6
    assert all(uuid.UUID(key).version == 5 for key in keys)
    assert document_key(*base) == document_key(*base)
