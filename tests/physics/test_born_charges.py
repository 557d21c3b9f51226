"""Sum rule and site symmetry of Born charges."""

from __future__ import annotations

import numpy as np
import pytest

from fieldflows.backends.toy import ToyModel
from fieldflows.physics import born_charges as bc
from fieldflows.physics.symmetry import symmetry_operations
from fieldflows.testing import structures


def operations(atoms, symprec=1e-3):
    return symmetry_operations(atoms.cell[:], atoms.positions, atoms.numbers, symprec)


def test_sum_rule_residual_and_correction():
    charges = np.array([2.1 * np.eye(3), -1.9 * np.eye(3)])
    charges[0, 0, 1] = -0.3
    assert bc.acoustic_sum(charges)[1, 1] == pytest.approx(0.2)
    assert bc.acoustic_sum_residual(charges) == pytest.approx(0.3)
    corrected = bc.enforce_acoustic_sum(charges)
    assert bc.acoustic_sum_residual(corrected) == pytest.approx(0.0, abs=1e-15)
    assert corrected[0] - corrected[1] == pytest.approx(charges[0] - charges[1])
    assert bc.isotropic_charges(corrected) == pytest.approx([2.0, -2.0])


@pytest.mark.parametrize("name", list(structures.named_structures()))
def test_exact_charges_obey_the_site_symmetry(name):
    atoms = structures.named_structures()[name]
    charges = ToyModel().evaluate(atoms).born_effective_charges
    assert bc.site_symmetry_violation(charges, operations(atoms)) < 1e-3  # published coordinates are rounded
    assert np.abs(charges).max() > 0.1


def test_rotated_and_reordered_charges_are_caught_and_transposed_ones_are_not():
    """α-quartz has oxygen charges without symmetry, so that a rotated label breaks the symmetry of the crystal."""
    atoms = structures.alpha_quartz()
    charges = ToyModel().evaluate(atoms).born_effective_charges
    space = operations(atoms)
    turn = structures.random_rotation(0)
    assert bc.site_symmetry_violation(turn @ charges @ turn.T, space) > 0.05
    order = np.array([0, 1, 2, 4, 3, 5, 6, 7, 8])
    assert bc.site_symmetry_violation(charges[order], space) > 0.01
    noise = np.random.default_rng(0).normal(size=charges.shape)
    skew = charges + bc.symmetrize_born_charges(noise, space)
    transposed = skew.transpose(0, 2, 1)
    assert np.abs(transposed - skew).max() > 0.1
    assert bc.site_symmetry_violation(transposed, space) == pytest.approx(bc.site_symmetry_violation(skew, space))
    assert bc.site_symmetry_violation(transposed, space) < 1e-3


def test_symmetrization_restores_and_leaves_exact_charges_alone():
    atoms = structures.alpha_quartz()
    space = operations(atoms)
    exact = bc.symmetrize_born_charges(ToyModel().evaluate(atoms).born_effective_charges, space)
    assert bc.site_symmetry_violation(exact, space) < 1e-12
    noisy = exact + 0.1 * np.random.default_rng(0).normal(size=exact.shape)
    assert bc.site_symmetry_violation(noisy, space) > 0.1
    restored = bc.symmetrize_born_charges(noisy, space)
    assert bc.site_symmetry_violation(restored, space) < 1e-12
    assert bc.symmetrize_born_charges(exact, space) == pytest.approx(exact, abs=1e-12)
