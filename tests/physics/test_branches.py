"""Branches: published values, random quanta, guides, and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldflows.backends.toy import ToyModel
from fieldflows.physics.branches import (
    Branch,
    estimate_from_charges,
    follow_branch,
    nearest_branch,
    polarization_fractions,
    polarization_of,
    spontaneous_polarization,
)
from fieldflows.physics.path_integral import LinearPath, integrate_charges
from fieldflows.physics.paths import build_path
from fieldflows.structures import as_atoms
from fieldflows.testing.strategies import SEEDS
from fieldflows.testing.structures import random_rotation
from tests.physics.pairs import PAIRS

TRICLINIC = np.array([[4.0, 0.0, 0.0], [1.1, 4.3, 0.0], [-0.7, 1.6, 5.2]])


def test_point_charges_that_move_give_charge_times_shift_over_volume():
    """q moves by s along c: P_s = q s/Ω, more than half a quantum in all, whatever branch each frame is on."""
    charge, shift = 4.0, np.array([0.2, -0.1, 0.9])
    frames = [charge * k / 9 * shift / np.linalg.det(TRICLINIC) for k in range(10)]
    rng = np.random.default_rng(0)
    given = [p + polarization_of(rng.integers(-4, 5, 3), TRICLINIC) for p in frames]
    branch = follow_branch([polarization_fractions(p, TRICLINIC) for p in given])
    np.testing.assert_allclose(
        polarization_of(branch.changes[-1], TRICLINIC), charge * shift / np.linalg.det(TRICLINIC), atol=1e-12
    )
    assert np.abs(branch.changes[-1]).max() > 0.5
    assert branch.max_second_difference < 1e-12


def test_strain_and_rotation_between_the_ends_are_taken_out():
    """The same fractions in a stretched and turned cell are no polarization."""
    fractions, rotation = np.array([0.3, -0.2, 0.45]), random_rotation(3)
    other = TRICLINIC @ np.diag([1.02, 0.97, 1.05]) @ rotation
    moved = spontaneous_polarization(
        polarization_of(fractions, TRICLINIC), TRICLINIC, polarization_of(fractions, other), other
    )
    np.testing.assert_allclose(moved, 0, atol=1e-15)
    assert np.abs(polarization_of(fractions, TRICLINIC) - polarization_of(fractions, other)).max() > 1e-3


def test_a_step_of_more_than_half_a_quantum_needs_a_guide():
    truth = np.array([[0, 0, 0], [0, 0, 0.6], [0, 0, 1.2]])
    alone = follow_branch(truth % 1)
    np.testing.assert_allclose(alone.changes[-1], [0, 0, -0.8])
    assert alone.large_steps() == (0, 1)
    guided = follow_branch(truth % 1, guides=[[0, 0, 0.5], [0, 0, 0.75]])
    np.testing.assert_allclose(guided.changes, truth, atol=1e-12)
    assert guided.guided == (0, 1)


def test_a_guide_is_not_asked_where_the_branch_is_beyond_doubt():
    values = np.array([[0.0, 0, 0], [0.1, 0, 0]])
    assert follow_branch(values, guides=[[3.0, 0, 0]]).changes[-1, 0] == pytest.approx(0.1)


def test_half_a_quantum_at_the_nonpolar_end_is_no_polarization():
    branch = follow_branch([[0.5, 0, 0], [-0.4, 0, 0]])
    assert branch.offset == 0.5
    np.testing.assert_allclose(branch.changes[-1], [0.1, 0, 0])


@pytest.mark.parametrize("value", [np.zeros((1, 3)), np.zeros((4, 2)), np.zeros(3)])
def test_shapes_are_checked(value):
    with pytest.raises(ValueError, match="fractions"):
        follow_branch(value)


def test_guides_need_one_row_per_step():
    with pytest.raises(ValueError, match="guides"):
        follow_branch(np.zeros((3, 3)), guides=np.zeros((3, 3)))


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, added=st.tuples(*[st.integers(-3, 3)] * 3))
def test_the_nearest_branch_is_found_in_lattice_components(seed, added):
    rng = np.random.default_rng(seed)
    target = polarization_of(rng.uniform(-2, 2, 3), TRICLINIC)
    off = rng.uniform(-0.45, 0.45, 3)
    truth = target + polarization_of(off, TRICLINIC)
    found, quanta, margin = nearest_branch(truth - polarization_of(added, TRICLINIC), target, TRICLINIC)
    np.testing.assert_allclose(found, truth, atol=1e-12)
    np.testing.assert_array_equal(quanta, added)
    assert margin == pytest.approx(0.5 - np.abs(off).max())


def test_the_estimate_is_exact_for_charges_that_do_not_change():
    charges = np.random.default_rng(1).normal(size=(5, 3, 3))
    charges -= charges.mean(axis=0)
    differences = np.random.default_rng(2).uniform(-0.1, 0.1, (5, 3))
    expected = sum(z @ (d @ TRICLINIC) for z, d in zip(charges, differences, strict=True)) / np.linalg.det(TRICLINIC)
    np.testing.assert_allclose(estimate_from_charges([charges, charges], differences, TRICLINIC), expected)


def _derivatives(path: LinearPath, numbers: np.ndarray, model: ToyModel, step: float = 1e-4):
    def crystal(cell, fractional):
        return Atoms(numbers, scaled_positions=fractional, cell=cell, pbc=True)

    charges, dipoles, slopes = [], [], []
    for cell, fractional in zip(path.cells, path.fractional, strict=True):
        response = model.evaluate(crystal(cell, fractional), observables=("polarization", "born_effective_charges"))
        charges.append(response.born_effective_charges)
        dipoles.append(response.polarization * abs(np.linalg.det(cell)))
        moved = []
        for sign in (1, -1):
            other = cell + sign * step * path.cell_slope
            found = model.evaluate(crystal(other, fractional), observables=("polarization",)).polarization
            moved.append(found * abs(np.linalg.det(other)))
        slopes.append((moved[0] - moved[1]) / (2 * step))
    return np.array(charges), np.array(dipoles), np.array(slopes)


@pytest.mark.parametrize("name", PAIRS)
def test_the_integral_of_the_charges_is_the_change_of_the_polarization(name):
    """An identity of every model, with a strain of up to 20 % on the way (AlN); and the strain's share is needed."""
    frames = [as_atoms(frame) for frame in build_path(*PAIRS[name](), n_frames=40).frames]
    path = LinearPath(
        np.array([frame.cell[:] for frame in frames]),
        np.array([frame.get_scaled_positions(wrap=False) for frame in frames]),
    )
    model = ToyModel()
    charges, dipoles, slopes = _derivatives(path, frames[0].numbers, model)
    moved, strained = integrate_charges(path, charges, dipoles, slopes)
    ends = [model.evaluate(frame, observables=("polarization",)).polarization for frame in (frames[0], frames[-1])]
    change = polarization_fractions(ends[1], path.cells[-1]) - polarization_fractions(ends[0], path.cells[0])
    np.testing.assert_allclose(moved + strained, change, atol=5e-4 * np.abs(change).max())
    if np.abs(path.cell_slope).max() > 0.1:
        assert np.abs(moved - change).max() > 5e-3 * np.abs(change).max()


def test_a_broken_branch_shows():
    smooth = np.outer(np.linspace(0, 1.2, 10), [0, 0.2, 1])
    assert Branch(smooth, smooth).max_second_difference < 1e-12
    jump = smooth.copy()
    jump[5:, 2] += 0.4
    assert Branch(jump, jump).max_second_difference == pytest.approx(0.4)
