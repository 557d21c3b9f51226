"""Each reject and each flag of the cleaning recipe, on a crystal that breaks exactly that rule."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms

from fieldflows.datasets.filters import CleaningConfig, clean, polarization_violation
from fieldflows.datasets.frame import LabeledFrame
from fieldflows.physics.symmetry import symmetry_operations
from tests.datasets.synthetic import EPS0, UC_PER_CM2, perovskite


def frame(**changes) -> LabeledFrame:
    crystal = perovskite()
    labels = {
        "polarizability": (crystal.epsilon - np.eye(3)) * EPS0,
        "born_effective_charges": crystal.charges,
        "epsilon_ionic": np.eye(3) * 10.0,
    }
    atoms = Atoms(crystal.symbols, positions=crystal.positions, cell=crystal.cell, pbc=True)
    result = LabeledFrame(atoms, labels, "SrTiO3", "s", 0)
    return result.with_(labels={name: np.copy(value) for name, value in (labels | changes).items()})


def codes(findings):
    return [finding.code for finding in findings]


def test_a_good_frame_passes_and_keeps_its_labels():
    good = frame()
    cleaned, rejects, flags = clean(good, CleaningConfig())
    assert rejects == []
    assert flags == []
    np.testing.assert_allclose(cleaned.labels["born_effective_charges"], good.labels["born_effective_charges"])
    np.testing.assert_allclose(cleaned.extra["sum_rule_residual"], 0, atol=1e-15)


def shifted_charges(total: float) -> np.ndarray:
    charges = np.copy(perovskite().charges)
    charges[0] += np.eye(3) * total
    return charges


def asymmetric(value: float) -> np.ndarray:
    alpha = np.eye(3) * 5 * EPS0
    alpha[0, 1] = value * 5 * EPS0
    return alpha


def unequal_oxygens(by: float) -> np.ndarray:
    charges = np.copy(perovskite().charges)
    charges[2, 2, 2] += by
    charges[3, 1, 1] -= by / 2
    charges[4, 0, 0] -= by / 2
    charges[0] -= charges.sum(axis=0)
    return charges


@pytest.mark.parametrize(
    ("label", "value", "code", "found"),
    [
        ("polarizability", asymmetric(0.02), "alpha_asymmetry", 0.02),
        ("polarizability", np.diag([5, 5, 0.01]) * EPS0, "chi", 0.01),
        ("polarizability", np.diag([5, 5, -1.0]) * EPS0, "chi", -1.0),
        ("polarizability", np.full((3, 3), np.nan), "not_finite", None),
        ("polarizability", np.eye(3) * 1e300, "not_finite", None),
        ("epsilon_ionic", np.diag([1, 1, -0.1]), "epsilon_ionic", -0.1),
        ("born_effective_charges", shifted_charges(0.6), "sum_rule", 0.6),
        ("born_effective_charges", shifted_charges(-0.6), "sum_rule", 0.6),
        ("born_effective_charges", shifted_charges(0.3), "sum_rule", 0.06),
        ("born_effective_charges", unequal_oxygens(1.0), "charge_symmetry", 1.5),
    ],
)
def test_rejects(label, value, code, found):
    bad = frame(**{label: value})
    same, rejects, _ = clean(bad, CleaningConfig())
    assert codes(rejects) == [code]
    assert rejects[0].value == (None if found is None else pytest.approx(found))
    assert same is bad


@pytest.mark.parametrize(
    ("label", "value", "code", "found"),
    [
        ("born_effective_charges", shifted_charges(0.2), "sum_rule", 0.2),
        ("born_effective_charges", shifted_charges(0.08), "sum_rule", 0.016),
        ("born_effective_charges", unequal_oxygens(0.2), "charge_symmetry", 0.3),
        ("born_effective_charges", perovskite().charges * 2, "large_charge", 14.6),
        ("polarizability", np.diag([5, 5, 5.2]) * EPS0, "epsilon_symmetry", 0.2),
        ("polarizability", np.eye(3) * 48 * EPS0, "large_n", 7.0),
        ("epsilon_ionic", np.diag([1, 1, 120.0]), "large_epsilon_ionic", 120),
    ],
)
def test_flags(label, value, code, found):
    cleaned, rejects, flags = clean(frame(**{label: value}), CleaningConfig())
    assert rejects == []
    assert codes(flags) == [code]
    assert flags[0].value == pytest.approx(found)
    assert flags[0].value > flags[0].threshold
    assert cleaned.flags == (code,)


def test_large_permittivities_may_be_off_their_point_group_by_two_percent():
    _, _, flags = clean(frame(polarizability=np.diag([20, 20, 20.3]) * EPS0), CleaningConfig())
    assert flags == []
    _, _, flags = clean(frame(polarizability=np.diag([20, 20, 20.5]) * EPS0), CleaningConfig())
    assert codes(flags) == ["epsilon_symmetry"]
    assert flags[0].threshold == pytest.approx(0.02 * 21.5)


def test_the_sum_rule_is_enforced_and_the_residual_kept():
    raw = shifted_charges(0.2)
    cleaned, _, _ = clean(frame(born_effective_charges=raw), CleaningConfig())
    charges = cleaned.labels["born_effective_charges"]
    np.testing.assert_allclose(charges.sum(axis=0), 0, atol=1e-14)
    np.testing.assert_allclose(cleaned.extra["sum_rule_residual"], np.eye(3) * 0.04, atol=1e-14)
    np.testing.assert_allclose(charges + cleaned.extra["sum_rule_residual"], raw)
    untouched, _, _ = clean(frame(born_effective_charges=raw), CleaningConfig(enforce_sum_rule=False))
    np.testing.assert_array_equal(untouched.labels["born_effective_charges"], raw)


def test_alpha_is_symmetrized():
    cleaned, rejects, _ = clean(frame(polarizability=asymmetric(0.005)), CleaningConfig())
    alpha = cleaned.labels["polarizability"]
    assert rejects == []
    np.testing.assert_array_equal(alpha, alpha.T)
    assert alpha[0, 1] == pytest.approx(0.0025 * 5 * EPS0)


def test_broken_geometry_is_rejected():
    good = frame()
    atoms = good.atoms.copy()
    atoms.positions[1] = atoms.positions[0] + [0.3, 0, 0]
    assert codes(clean(good.with_(atoms=atoms), CleaningConfig())[1]) == ["distance"]
    atoms = good.atoms.copy()
    atoms.positions[1] = np.inf
    assert codes(clean(good.with_(atoms=atoms), CleaningConfig())[1]) == ["not_finite"]
    atoms = good.atoms.copy()
    atoms.set_cell(np.zeros((3, 3)))
    assert codes(clean(good.with_(atoms=atoms), CleaningConfig())[1]) == ["volume"]


def test_thresholds_are_settings():
    bad = frame(born_effective_charges=shifted_charges(0.6))
    loose = CleaningConfig(reject_sum_rule=1.0, reject_sum_rule_per_atom=1.0)
    cleaned, rejects, flags = clean(bad, loose)
    assert rejects == []
    assert codes(flags) == ["sum_rule"]
    assert cleaned is not bad


def test_lattice_components_of_p_break_the_site_symmetry():
    # A polar crystal in a rhombohedral cell: P along the three-fold axis [111].
    cell = 4.0 * np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]])
    scaled = np.array([[0, 0, 0], [0.55, 0.55, 0.55]])
    rotation = np.linalg.qr(np.array([[1.0, 0.2, 0.1], [0.3, 1, 0.5], [0.2, 0.4, 1]]))[0]
    cell = cell @ rotation.T
    operations = symmetry_operations(cell, scaled @ cell, np.array([30, 8]), 0.01)
    axis = cell.sum(axis=0) / np.linalg.norm(cell.sum(axis=0))
    cartesian = 5.0 / UC_PER_CM2 * axis
    assert polarization_violation(cartesian, cell, operations) < 1e-6
    lattice = np.linalg.solve((cell / np.linalg.norm(cell, axis=1)[:, None]).T, cartesian)
    assert polarization_violation(lattice, cell, operations) > 1.0
    volume = abs(np.linalg.det(cell))
    assert polarization_violation(cartesian + cell[1] / volume, cell, operations) < 1e-6  # another branch


@pytest.mark.parametrize(
    ("label", "value", "code"), [("stress", 10.0, "large_stress"), ("forces", 2000.0, "large_force")]
)
def test_one_frame_in_another_unit_is_flagged(label, value, code):
    """10 GPa or 2 eV/Å, written as if they were eV/Å³ or meV/Å."""
    shape = {"stress": (3, 3), "forces": (5, 3)}[label]
    _, rejects, flags = clean(frame(**{label: np.full(shape, value)}), CleaningConfig())
    assert rejects == []
    assert codes(flags) == [code]
    assert flags[0].value == value
    assert "declared unit" in flags[0].message
    assert clean(frame(**{label: np.full(shape, 0.01)}), CleaningConfig())[2] == []
