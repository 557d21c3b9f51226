"""ε∞ and ε_ion against closed forms, relaxation under a field, and phonopy on the same forces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from fieldflows.backends.toy import ToyModel, ToyParameters
from fieldflows.errors import EvaluationError
from fieldflows.physics.dielectric import (
    electronic_permittivity,
    ionic_permittivity,
    mode_sum_permittivity,
    polarizability,
    project_translations,
    translation_free_basis,
)
from fieldflows.physics.phonons import gamma_modes
from fieldflows.testing import structures
from fieldflows.testing.strategies import crystals, rotations, symmetric_matrices
from fieldflows.units import EPSILON_VACUUM

ALL = ("forces", "polarization", "born_effective_charges", "polarizability", "hessian")


def relaxed(atoms, model, field=(0.0, 0.0, 0.0)):
    """Return the positions at which the forces under the field vanish, by Newton steps."""
    atoms = atoms.copy()
    basis = translation_free_basis(len(atoms))
    for _ in range(30):
        response = model.evaluate(atoms, fields=np.array(field), observables=("forces", "hessian"))
        gradient = basis.T @ response.forces.ravel()
        if np.abs(gradient).max() < 1e-13:
            break
        step = basis @ np.linalg.solve(basis.T @ response.hessian @ basis, gradient)
        atoms.positions += step.reshape(-1, 3)
    return atoms


def test_two_ions_on_springs():
    """Two ions of charge ±Z on an isotropic spring k: ε_ion = Z²/(k Ω ε_vac)."""
    z, k, volume = 1.9, 7.3, 18.7
    charges = np.array([z * np.eye(3), -z * np.eye(3)])
    hessian = k * np.kron([[1, -1], [-1, 1]], np.eye(3))
    expected = z**2 / (k * volume * 0.005526349)  # ε_vac as printed on the conventions page
    assert ionic_permittivity(charges, hessian, volume) == pytest.approx(expected * np.eye(3), rel=1e-6)


def test_chain_of_three_ions():
    """A − B − A on two springs k: the infrared mode moves B against both A, so ε_ion = Z_B²/(2 k Ω ε_vac)."""
    z, k, volume = 2.0, 5.0, 40.0
    charges = np.array([-0.5 * z * np.eye(3), z * np.eye(3), -0.5 * z * np.eye(3)])
    hessian = k * np.kron([[1, -1, 0], [-1, 2, -1], [0, -1, 1]], np.eye(3))
    expected = z**2 / (2 * k * volume * EPSILON_VACUUM)
    assert ionic_permittivity(charges, hessian, volume) == pytest.approx(expected * np.eye(3), rel=1e-12)


def test_one_atom_has_no_ionic_part():
    assert (ionic_permittivity(np.zeros((1, 3, 3)), np.zeros((3, 3)), 10.0) == 0).all()


def test_singular_hessian_is_refused():
    charges = np.array([np.eye(3), -np.eye(3)])
    with pytest.raises(EvaluationError, match="singular"):
        ionic_permittivity(charges, np.zeros((6, 6)), 10.0)
    free = np.kron([[1, -1], [-1, 1]], np.diag([1.0, 1.0, 0.0]))
    with pytest.raises(EvaluationError, match="singular"):
        ionic_permittivity(charges, free, 10.0)


@given(symmetric_matrices())
def test_electronic_permittivity_and_back(matrix):
    assert polarizability(electronic_permittivity(matrix)) == pytest.approx(matrix, abs=1e-12)


def test_water_like_polarizability_by_clausius_mossotti_scale():
    """ε∞ − 1 = α/ε_vac: 0.01 e/(V Å) is a susceptibility of 1.8095 (1/ε_vac = 180.95 V Å/e)."""
    assert electronic_permittivity(0.01 * np.eye(3))[2, 2] == pytest.approx(2.8095128, abs=1e-6)


@pytest.mark.parametrize("weights", [None, [1.0, 16.0, 137.3, 47.9]])
def test_basis_is_orthonormal_and_free_of_translations(weights):
    basis = translation_free_basis(4, weights)
    assert basis.shape == (12, 9)
    assert basis.T @ basis == pytest.approx(np.eye(9), abs=1e-14)
    root = np.sqrt(np.ones(4) if weights is None else weights)
    assert np.kron(root[None, :], np.eye(3)) @ basis == pytest.approx(np.zeros((3, 9)), abs=1e-13)


def test_projection_removes_translations_and_keeps_the_rest():
    matrix = np.random.default_rng(0).normal(size=(12, 12))
    projected = project_translations(matrix)
    assert projected.reshape(4, 3, 12).sum(axis=0) == pytest.approx(np.zeros((3, 12)), abs=1e-13)
    assert projected == pytest.approx(projected.T)
    assert project_translations(projected) == pytest.approx(projected)


@settings(max_examples=25, deadline=None)
@given(crystals(min_atoms=2, max_atoms=4), rotations())
def test_sum_over_modes_is_the_same_number_and_turns_with_the_crystal(atoms, turn):
    model = ToyModel()
    response = model.evaluate(atoms, observables=ALL)
    born, hessian, volume = response.born_effective_charges, response.hessian, atoms.get_volume()
    modes = gamma_modes(hessian, atoms.get_masses(), born)
    if np.abs(modes.omega_squared).min() < 1e-5:
        return  # nearly singular by chance: the two inverses lose digits differently
    epsilon = ionic_permittivity(born, hessian, volume)
    scale = 1.0 + np.abs(epsilon).max()
    by_modes = mode_sum_permittivity(modes.mode_effective_charges, modes.omega_squared, volume)
    assert by_modes == pytest.approx(epsilon, abs=1e-7 * scale)
    other_masses = gamma_modes(hessian, np.linspace(1, 9, len(atoms)), born)
    again = mode_sum_permittivity(other_masses.mode_effective_charges, other_masses.omega_squared, volume)
    assert again == pytest.approx(epsilon, abs=1e-6 * scale)
    block = np.kron(np.eye(len(atoms)), turn)
    turned = ionic_permittivity(turn @ born @ turn.T, block @ hessian @ block.T, volume)
    assert turned == pytest.approx(turn @ epsilon @ turn.T, abs=1e-7 * scale)


@pytest.mark.parametrize("name", ["rocksalt_mgo", "perovskite_srtio3", "wurtzite_zno"])
def test_ions_relaxed_under_a_field_give_the_total_permittivity(name):
    """(P(𝓔, ions relaxed) − P(−𝓔))/(2𝓔 ε_vac) = ε_tot − 1: no Hessian and no Z* enter on the left."""
    model = ToyModel(ToyParameters(anisotropy=0.5))
    atoms = relaxed(structures.named_structures()[name], model)
    response = model.evaluate(atoms, observables=ALL)
    assert np.abs(response.forces).max() < 1e-10
    total = electronic_permittivity(response.polarizability) + ionic_permittivity(
        response.born_effective_charges, response.hessian, atoms.get_volume()
    )
    step = 1e-5
    columns = []
    for direction in np.eye(3):
        plus, minus = (
            model.evaluate(relaxed(atoms, model, s * step * direction), fields=s * step * direction).polarization
            for s in (1, -1)
        )
        columns.append((plus - minus) / (2 * step * EPSILON_VACUUM))
    assert np.transpose(columns) + np.eye(3) == pytest.approx(total, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", ["rocksalt_mgo", "perovskite_srtio3", "wurtzite_zno", "tetragonal_batio3"])
def test_phonopy_gives_the_same_modes_and_permittivity(name):
    """phonopy gets forces of displaced 2 x 2 x 2 supercells only; its Γ modes must give our ε_ion."""
    phonopy = pytest.importorskip("phonopy")
    from ase import Atoms
    from phonopy.structure.atoms import PhonopyAtoms

    model = ToyModel(ToyParameters(cutoff=5.0))
    atoms = structures.named_structures()[name]
    cell = PhonopyAtoms(numbers=atoms.numbers, cell=atoms.cell[:], scaled_positions=atoms.get_scaled_positions())
    phonon = phonopy.Phonopy(cell, supercell_matrix=2 * np.eye(3), primitive_matrix=np.eye(3), log_level=0)
    phonon.generate_displacements(distance=0.002, is_plusminus=True)
    phonon.forces = [
        model.evaluate(
            Atoms(numbers=s.numbers, positions=s.positions, cell=s.cell, pbc=True), observables=("forces",)
        ).forces
        for s in phonon.supercells_with_displacements
    ]
    phonon.produce_force_constants()
    phonon.symmetrize_force_constants()
    phonon.run_qpoints([[0, 0, 0]], with_eigenvectors=True)
    result = phonon.get_qpoints_dict()
    thz, vectors = result["frequencies"][0], result["eigenvectors"][0].T
    response = model.evaluate(atoms, observables=ALL)
    optical = optical_modes(thz)
    modes = gamma_modes(response.hessian, phonon.primitive.masses, response.born_effective_charges)
    assert modes.frequencies_thz == pytest.approx(thz[optical], abs=2e-3)
    ours = ionic_permittivity(response.born_effective_charges, response.hessian, atoms.get_volume())
    expected = permittivity_of_modes(thz, vectors, phonon.primitive.masses, response.born_effective_charges, atoms)
    assert ours == pytest.approx(expected, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("name", ["rocksalt_mgo", "perovskite_srtio3", "wurtzite_zno", "tetragonal_batio3"])
def test_phonopy_on_the_same_force_constants_gives_the_same_permittivity(name):
    """Only phonopy's rounded unit factors are between the two (a few 1e-6)."""
    phonopy = pytest.importorskip("phonopy")
    from phonopy.structure.atoms import PhonopyAtoms

    model = ToyModel(ToyParameters(cutoff=5.0))
    atoms = structures.named_structures()[name]
    response = model.evaluate(atoms, observables=ALL)
    cell = PhonopyAtoms(numbers=atoms.numbers, cell=atoms.cell[:], scaled_positions=atoms.get_scaled_positions())
    phonon = phonopy.Phonopy(cell, supercell_matrix=np.eye(3), primitive_matrix=np.eye(3), log_level=0)
    n = len(atoms)
    phonon.force_constants = response.hessian.reshape(n, 3, n, 3).transpose(0, 2, 1, 3)
    phonon.run_qpoints([[0, 0, 0]], with_eigenvectors=True)
    result = phonon.get_qpoints_dict()
    thz, vectors = result["frequencies"][0], result["eigenvectors"][0].T
    modes = gamma_modes(response.hessian, phonon.primitive.masses, response.born_effective_charges)
    assert modes.frequencies_thz == pytest.approx(thz[optical_modes(thz)], rel=1e-5)
    ours = ionic_permittivity(response.born_effective_charges, response.hessian, atoms.get_volume())
    expected = permittivity_of_modes(thz, vectors, phonon.primitive.masses, response.born_effective_charges, atoms)
    assert ours == pytest.approx(expected, rel=1e-5, abs=1e-6)


def optical_modes(thz):
    """Return the modes but for the three nearest to zero, by frequency."""
    optical = np.argsort(np.abs(thz))[3:]
    return optical[np.argsort(thz[optical])]


def permittivity_of_modes(thz, vectors, masses, charges, atoms):
    """Return Σ Z̃Z̃ᵀ/ω² in SI, written out from frequencies and eigenvectors (arXiv:2508.17870, Eq. 26)."""
    from scipy import constants

    root = np.sqrt(np.repeat(masses, 3) * constants.atomic_mass)
    born = charges.transpose(1, 0, 2).reshape(3, -1) * constants.e
    total = np.zeros((3, 3))
    for m in optical_modes(thz):
        charge = born @ (vectors[m].real / root)
        assert np.abs(vectors[m].imag).max() < 1e-6
        total += np.outer(charge, charge) * np.sign(thz[m]) / (2 * np.pi * thz[m] * 1e12) ** 2
    return total / (atoms.get_volume() * 1e-30 * constants.epsilon_0)
