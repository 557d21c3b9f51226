"""Test crystals are what they claim to be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from fieldflows.structures import check_structure, closest_pair
from fieldflows.testing import structures
from fieldflows.testing.strategies import cells, crystals, fields, rotations

# Shortest bond in Å: half the cell, √3/4 of it and so on; 1.60 to 1.61 Å in every quartz.
BONDS = {
    "rocksalt_mgo": 4.2112 / 2,
    "cesium_chloride": 4.123 * np.sqrt(3) / 2,
    "zincblende_gaas": 5.6533 * np.sqrt(3) / 4,
    "wurtzite_zno": 1.974,
    "perovskite_srtio3": 3.905 / 2,
    "tetragonal_batio3": (0.977 - 0.514) * 4.036,
    "alpha_quartz": 1.604,
}


@pytest.mark.parametrize("name", list(structures.named_structures()))
def test_named_crystals_can_be_computed_and_have_their_bond_length(name):
    atoms = structures.named_structures()[name]
    check_structure(atoms)
    shortest = (atoms.get_all_distances(mic=True) + 99 * np.eye(len(atoms))).min()
    assert shortest == pytest.approx(BONDS[name], abs=0.01)


@settings(max_examples=30, deadline=None)
@given(crystals())
def test_random_crystals_keep_their_distance_and_have_no_symmetry(atoms):
    check_structure(atoms)
    distance, _ = closest_pair(atoms)
    assert distance >= 1.5
    assert 1 <= len(atoms) <= 5
    assert 14.0 - 1e-9 <= atoms.get_volume() / len(atoms) <= 30.0 + 1e-9


def test_seed_decides():
    assert structures.random_crystal(4) == structures.random_crystal(4)
    assert structures.random_crystal(4) != structures.random_crystal(5)


def test_too_dense_is_an_error():
    with pytest.raises(ValueError, match="more volume"):
        structures.random_crystal(0, ("Mg", "O"), minimum_distance=5.0)


@given(rotations())
def test_rotations_are_orthogonal(turn):
    assert turn @ turn.T == pytest.approx(np.eye(3), abs=1e-12)
    assert abs(np.linalg.det(turn)) == pytest.approx(1.0)


def test_improper_means_determinant_minus_one():
    assert np.linalg.det(structures.random_rotation(0, improper=True)) == pytest.approx(-1.0)
    assert np.linalg.det(structures.random_rotation(0)) == pytest.approx(1.0)


@settings(max_examples=20)
@given(cells(), fields(0.2))
def test_cells_have_volume_and_fields_are_bounded(cell, field):
    assert abs(np.linalg.det(cell)) == pytest.approx(60.0)
    assert np.abs(field).max() <= 0.2
