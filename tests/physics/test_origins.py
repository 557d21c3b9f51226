"""Shifts at which the operations of one crystal hold for another: by hand, and for crystals that were shifted apart."""

from __future__ import annotations

import numpy as np
import pytest

from fieldflows.physics.bare import BareCrystal
from fieldflows.physics.origins import symmetric_shifts
from fieldflows.physics.symmetry import search_symmetry
from tests.physics.pairs import PAIRS, cubic


def bare(atoms) -> BareCrystal:
    return BareCrystal.of(atoms.cell[:], atoms.positions, atoms.numbers)


def operations(crystal: BareCrystal) -> tuple[np.ndarray, np.ndarray]:
    dataset = search_symmetry(crystal.cell, crystal.positions, crystal.numbers)[2]
    return dataset.rotations.astype(float), dataset.translations


def test_a_fourfold_axis_of_a_cubic_perovskite():
    """P4mm has its axes at (0, 0) and (1/2, 1/2): so has the perovskite, whatever its height along the axis."""
    nonpolar, polar = bare(cubic("PbTiO3", 3.96)), bare(PAIRS["PbTiO3"]()[1])
    starts = np.array([[0.13, 0.21, 0.4], [0.3, 0.3, 0.4], [0.0, 0.0, 0.7]])
    found = symmetric_shifts(nonpolar, np.eye(3), *operations(polar), starts)
    found = sorted(tuple(np.round(item % 1 % 1, 6)) for item in found)
    assert found == [(0.0, 0.0, 0.4), (0.0, 0.0, 0.7), (0.5, 0.5, 0.4), (0.5, 0.5, 0.7)]


def test_a_crystal_that_lies_shifted_is_laid_on_itself():
    """Of a crystal that lies shifted, all operations hold again where it is laid on itself."""
    crystal = bare(PAIRS["LiNbO3"]()[1])
    moved = BareCrystal(crystal.cell, crystal.fractional + np.array([0.17, -0.08, 0.31]), crystal.numbers)
    found = symmetric_shifts(moved, np.eye(3), *operations(crystal), np.array([[-0.17, 0.08, -0.31]]))
    gaps = found - [-0.17, 0.08, -0.31]
    assert np.abs(gaps - np.round(gaps)).max(axis=1).min() < 1e-6


def test_no_shift_where_the_reference_lacks_an_operation():
    stretched = cubic("PbTiO3", 3.96)
    stretched.set_cell([3.96, 3.96, 3.96])
    stretched.positions[1, 0] += 0.4  # no fourfold axis is left
    found = symmetric_shifts(bare(stretched), np.eye(3), *operations(bare(PAIRS["PbTiO3"]()[1])), np.zeros((1, 3)))
    assert found.shape == (0, 3)
    identity = np.eye(3)[None], np.zeros((1, 3))
    assert symmetric_shifts(bare(stretched), np.eye(3), *identity, np.zeros((1, 3))).shape == (0, 3)


@pytest.mark.parametrize("name", ["BaTiO3", "PbTiO3", "AlN"])
def test_every_shift_keeps_every_operation(name):
    """Of a pair of one cell each: image and atom coincide for all operations of the polar end, at all shifts."""
    nonpolar, polar = map(bare, PAIRS[name]())
    rotations, translations = operations(polar)
    shifts = symmetric_shifts(nonpolar, np.eye(3), rotations, translations, np.random.default_rng(0).random((2, 3)))
    assert len(shifts) >= 2
    for shift in shifts:
        sites = nonpolar.fractional + shift
        for rotation, translation in zip(rotations, translations, strict=True):
            image = sites @ rotation.T + translation
            gaps = image[:, None, :] - sites
            distance = np.abs(gaps - np.round(gaps)).max(axis=2)
            distance[nonpolar.numbers[:, None] != nonpolar.numbers] = 1.0
            assert distance.min(axis=1).max() < 1e-6
