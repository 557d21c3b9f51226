"""Features of crystals: invariant, intensive, and alone in failing."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk

from fieldflows import load_model
from fieldflows.backends.base import DescribingModel
from fieldflows.errors import UnknownElementError
from fieldflows.testing.structures import random_rotation, tetragonal_batio3


@pytest.fixture(scope="module")
def model():
    return load_model("dielectric")


def test_features_neither_turn_nor_grow_with_the_cell(model):
    atoms = tetragonal_batio3()
    rotation = random_rotation(3, improper=True)
    turned = atoms.copy()
    turned.set_cell(atoms.cell[:] @ rotation.T)
    turned.positions = atoms.positions @ rotation.T
    shuffled = atoms[[3, 0, 4, 1, 2]]
    plain, *others = model.descriptors([atoms, turned, shuffled, atoms * (2, 1, 1)])
    assert plain.shape == (64,)
    for other in others:
        np.testing.assert_allclose(other, plain, atol=1e-9)


def test_features_tell_crystals_apart(model):
    one, two, three = model.descriptors(
        [bulk("MgO", "rocksalt", a=4.21), bulk("MgO", "zincblende", a=4.6), bulk("CaO", "rocksalt", a=4.81)]
    )
    assert np.abs(one - two).max() > 1e-3
    assert np.abs(one - three).max() > 1e-3


def test_one_that_fails_leaves_the_others_alone(model):
    good, bad = model.descriptors([bulk("MgO", "rocksalt", a=4.21), bulk("Rn", "fcc", a=5.0)])
    assert np.isfinite(good).all()
    assert isinstance(bad, UnknownElementError)
    assert isinstance(model, DescribingModel)
    assert not isinstance(load_model("toy"), DescribingModel)
