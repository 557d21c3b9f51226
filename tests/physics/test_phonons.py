"""Modes: frequencies of a diatomic crystal, units, imaginary modes, infrared activity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from scipy import constants

from fieldflows.backends.toy import ToyModel
from fieldflows.physics.phonons import gamma_modes
from fieldflows.testing import structures
from fieldflows.testing.strategies import crystals

SPRING = np.kron([[1.0, -1.0], [-1.0, 1.0]], np.eye(3))


def test_diatomic_frequency_in_si():
    """ω = √(k/µ) of two masses on a spring, in SI."""
    k, masses = 6.1, (24.305, 15.999)
    reduced = masses[0] * masses[1] / sum(masses) * constants.atomic_mass
    omega = np.sqrt(k * constants.e / constants.angstrom**2 / reduced)
    modes = gamma_modes(k * SPRING, masses)
    assert modes.omega_squared.shape == (3,)
    assert modes.frequencies_thz == pytest.approx(np.full(3, omega / (2 * np.pi) * 1e-12), rel=1e-9)
    assert modes.frequencies_inverse_cm == pytest.approx(omega / (2 * np.pi * constants.c) / 100, rel=1e-9)


def test_imaginary_frequencies_are_negative_numbers():
    stable, unstable = gamma_modes(SPRING, (1.0, 1.0)), gamma_modes(-SPRING, (1.0, 1.0))
    assert unstable.frequencies_thz == pytest.approx(-stable.frequencies_thz)
    assert (unstable.omega_squared < 0).all()


def test_strength_of_a_diatomic_and_its_units():
    """|Z̃|² = Z²/µ per direction; 1 e = 4.80320 D/Å."""
    z, masses = 1.5, (20.0, 5.0)
    modes = gamma_modes(SPRING, masses, np.array([z * np.eye(3), -z * np.eye(3)]))
    assert modes.oscillator_strengths == pytest.approx(np.full(3, z**2 / 4.0))
    assert modes.oscillator_strengths_debye == pytest.approx(np.full(3, z**2 / 4.0 * 4.803205**2), rel=1e-5)
    assert modes.ir_active().all()


@settings(max_examples=20, deadline=None)
@given(crystals(min_atoms=2, max_atoms=4))
def test_eigenvectors_are_orthonormal_and_keep_the_center_of_mass(atoms):
    response = ToyModel().evaluate(atoms, observables=("hessian", "born_effective_charges"))
    masses = atoms.get_masses()
    modes = gamma_modes(response.hessian, masses, response.born_effective_charges)
    count = 3 * len(atoms) - 3
    flat = modes.eigenvectors.reshape(count, -1)
    assert flat @ flat.T == pytest.approx(np.eye(count), abs=1e-10)
    assert np.einsum("k,mki->mi", np.sqrt(masses), modes.eigenvectors) == pytest.approx(0.0, abs=1e-8)
    root = np.repeat(np.sqrt(masses), 3)
    dynamical = response.hessian / np.outer(root, root)
    assert flat @ dynamical @ flat.T == pytest.approx(np.diag(modes.omega_squared), abs=1e-9)
    assert (np.diff(modes.omega_squared) >= 0).all()


def test_transposed_charges_would_be_noticed():
    """The first index of Z* is the polarization: a charge with one off-diagonal element tells."""
    born = np.zeros((2, 3, 3))
    born[0, 0, 2], born[1, 0, 2] = 1.0, -1.0  # displacement along z polarizes along x
    modes = gamma_modes(SPRING, (2.0, 2.0), born)
    strengths = (modes.mode_effective_charges**2).sum(axis=0)
    assert strengths == pytest.approx([1.0, 0.0, 0.0])


def test_infrared_activity_follows_the_selection_rules():
    """α-quartz: Γ_opt = 4 A1 + 4 A2 + 8 E; A1 is silent, A2 (z) and E (x, y) are infrared active."""
    atoms = structures.alpha_quartz()
    response = ToyModel().evaluate(atoms, observables=("hessian", "born_effective_charges"))
    modes = gamma_modes(response.hessian, atoms.get_masses(), response.born_effective_charges)
    active = modes.ir_active(frequency_tolerance_thz=1e-6)
    assert len(active) == 24
    assert int((~active).sum()) == 4
    along_z = (modes.mode_effective_charges[:, 2] ** 2 > 1e-7).sum()
    assert along_z == 4


def test_centrosymmetric_elemental_crystal_is_silent():
    from ase.build import bulk

    atoms = bulk("Si", "diamond", 5.431)
    response = ToyModel().evaluate(atoms, observables=("hessian", "born_effective_charges"))
    modes = gamma_modes(response.hessian, atoms.get_masses(), response.born_effective_charges)
    assert not modes.ir_active().any()


def test_one_atom_has_no_optical_modes():
    modes = gamma_modes(np.zeros((3, 3)), [28.0], np.zeros((1, 3, 3)))
    assert modes.omega_squared.shape == (0,)
    assert modes.ir_active().shape == (0,)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(6, 6\)"):
        gamma_modes(np.eye(3), [1.0, 1.0])
    with pytest.raises(ValueError, match="positive"):
        gamma_modes(SPRING, [1.0, 0.0])
    with pytest.raises(ValueError, match="Born charges"):
        gamma_modes(SPRING, [1.0, 1.0], np.zeros((3, 3, 3)))
    with pytest.raises(ValueError, match="need Born charges"):
        _ = gamma_modes(SPRING, [1.0, 1.0]).oscillator_strengths
