"""Every observable is the derivative that the conventions say it is: against finite differences.

The crystal is triclinic and without symmetry, so that no component vanishes and no index order can be swapped unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from fieldflows.backends.base import Response
from tests.backends.mace_field.models import ALL, FIELD, HIDDEN, small_model, small_network, triclinic

MODELS = {
    "L1": {},
    "L2": {"hidden_irreps": HIDDEN["L2"]},
    "L1-element-polarizability": {"element_polarizability": True},
    "L2-element-polarizability": {"hidden_irreps": HIDDEN["L2"], "element_polarizability": True},
}
STEP = 1e-3
TOLERANCE = 1e-8


@pytest.fixture(params=MODELS, scope="module")
def model(request):
    return small_model(batch_bytes=2e8, **MODELS[request.param])


@pytest.fixture(params=["no field", "field"], scope="module")
def field(request):
    return np.zeros(3) if request.param == "no field" else FIELD


@pytest.fixture(scope="module")
def response(model, field):
    return model.evaluate(triclinic(), field, ALL)


def derivative(evaluate: Callable[[list[float]], Sequence[np.ndarray]], step: float = STEP) -> np.ndarray:
    """Derivative at zero from four values, with an error of the fourth order in the step."""
    low2, low, high, high2 = (np.asarray(value) for value in evaluate([-2 * step, -step, step, 2 * step]))
    return (low2 - 8 * low + 8 * high - high2) / (12 * step)


def by_field(model, field: np.ndarray, observable: str) -> np.ndarray:
    """∂(observable)/∂𝓔, the field index first."""

    def along(axis: np.ndarray) -> np.ndarray:
        def evaluate(steps: list[float]) -> list[np.ndarray]:
            fields = np.array([field + step * axis for step in steps])
            responses: list[Response] = model.evaluate([triclinic()] * len(steps), fields, [observable])
            return [item.get(observable) for item in responses]

        return derivative(evaluate)

    return np.stack([along(axis) for axis in np.eye(3)])


def by_displacement(model, field: np.ndarray, observable: str) -> np.ndarray:
    """∂(observable)/∂u, atom and direction first."""

    def along(atom: int, axis: int) -> np.ndarray:
        def evaluate(steps: list[float]) -> list[np.ndarray]:
            displaced = []
            for step in steps:
                atoms = triclinic()
                atoms.positions[atom, axis] += step
                displaced.append(atoms)
            return [item.get(observable) for item in model.evaluate(displaced, field, [observable])]

        return derivative(evaluate)

    return np.stack([[along(atom, axis) for axis in range(3)] for atom in range(len(triclinic()))])


def by_strain(model, field: np.ndarray) -> np.ndarray:
    """∂F/∂ε for symmetric strains at a fixed Cartesian field, (3, 3)."""
    result = np.zeros((3, 3))
    for i in range(3):
        for j in range(i + 1):
            direction = np.zeros((3, 3))
            direction[i, j] += 0.5
            direction[j, i] += 0.5

            def evaluate(steps: list[float], direction: np.ndarray = direction) -> list[np.ndarray]:
                strained = []
                for step in steps:
                    atoms = triclinic()
                    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + step * direction), scale_atoms=True)
                    strained.append(atoms)
                return [item.energy for item in model.evaluate(strained, field, ["energy"])]

            result[i, j] = result[j, i] = derivative(evaluate)
    return result


def test_polarization_is_minus_the_slope_by_the_field(model, field, response):
    expected = -by_field(model, field, "energy") / triclinic().get_volume()
    np.testing.assert_allclose(response.polarization, expected, rtol=0, atol=TOLERANCE)


def test_forces_are_minus_the_slope_by_displacements(model, field, response):
    expected = -by_displacement(model, field, "energy")
    np.testing.assert_allclose(response.forces, expected, rtol=0, atol=TOLERANCE)


def test_stress_is_the_slope_by_strain_at_fixed_cartesian_field(model, field, response):
    expected = by_strain(model, field) / triclinic().get_volume()
    np.testing.assert_allclose(response.stress, expected, rtol=0, atol=TOLERANCE)


def test_born_charges_are_the_slope_of_forces_by_the_field(model, field, response):
    expected = by_field(model, field, "forces").transpose(1, 0, 2)
    np.testing.assert_allclose(response.born_effective_charges, expected, rtol=0, atol=TOLERANCE)


def test_born_charges_are_the_slope_of_polarization_by_displacements(model, field, response):
    slope = by_displacement(model, field, "polarization")  # [atom, displacement, polarization]
    expected = triclinic().get_volume() * slope.transpose(0, 2, 1)
    np.testing.assert_allclose(response.born_effective_charges, expected, rtol=0, atol=TOLERANCE)
    asymmetry = response.born_effective_charges - response.born_effective_charges.transpose(0, 2, 1)
    assert np.abs(asymmetry).max() > 0.1, "the index order would not show"


def test_polarizability_is_the_slope_of_polarization_by_the_field(model, field, response):
    expected = by_field(model, field, "polarization").T
    np.testing.assert_allclose(response.polarizability, expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(response.polarizability, response.polarizability.T, rtol=0, atol=1e-14)
    assert np.abs(response.polarizability).max() > 1e-4


def test_sum_rules(response):
    size = np.abs(response.born_effective_charges).max()
    assert size > 0.1
    np.testing.assert_allclose(response.born_effective_charges.sum(0), 0, rtol=0, atol=1e-13 * size)
    np.testing.assert_allclose(response.forces.sum(0), 0, rtol=0, atol=1e-13)


def test_hessian_is_minus_the_slope_of_forces(model, field, response):
    n = len(triclinic())
    expected = -by_displacement(model, field, "forces").reshape(3 * n, 3 * n)
    np.testing.assert_allclose(response.hessian, expected, rtol=0, atol=TOLERANCE)
    rigid = np.tile(np.eye(3), (n, 1))
    np.testing.assert_allclose(response.hessian @ rigid, 0, rtol=0, atol=1e-12)


def test_forces_follow_the_born_charges_to_first_order(model):
    atoms = triclinic()
    at_rest = model.evaluate(atoms, None, ["forces", "born_effective_charges"])

    def remainder(scale: float) -> float:
        forces = model.evaluate(atoms, scale * FIELD, ["forces"]).forces
        linear = np.einsum("i,kij->kj", scale * FIELD, at_rest.born_effective_charges)
        return float(np.abs(forces - at_rest.forces - linear).max())

    small, half, quarter = remainder(0.2), remainder(0.1), remainder(0.05)
    assert small > 1e-9
    assert small / half == pytest.approx(4, rel=0.1)
    assert half / quarter == pytest.approx(4, rel=0.05)


def test_element_polarizability_adds_a_known_isotropic_part():
    atoms = triclinic()
    plain, extended = (small_model(**MODELS[name]) for name in ("L1", "L1-element-polarizability"))
    a, b = (model.evaluate(atoms, FIELD, ALL) for model in (plain, extended))
    table = dict(zip(extended.network.config.atomic_numbers, np.linspace(0.3, 1.1, 3), strict=True))
    total = sum(table[z] for z in atoms.numbers)
    volume = atoms.get_volume()
    np.testing.assert_allclose(b.polarizability - a.polarizability, np.eye(3) * total / volume, rtol=0, atol=1e-14)
    np.testing.assert_allclose(b.polarization - a.polarization, total * FIELD / volume, rtol=0, atol=1e-14)
    assert b.energy - a.energy == pytest.approx(-0.5 * total * FIELD @ FIELD, abs=1e-12)
    for name in ("forces", "born_effective_charges", "hessian"):
        np.testing.assert_array_equal(b.get(name), a.get(name), err_msg=name)


def test_without_the_coupling_nothing_responds():
    network = small_network(field_coupling=False)
    assert not any("field" in name for name in network.state_dict())
    model = small_model(field_coupling=False)
    atoms = triclinic()
    response = model.evaluate(atoms, FIELD, ALL)
    for name in ("polarization", "born_effective_charges", "polarizability"):
        assert not response.get(name).any(), name
    assert response.energy == model.evaluate(atoms, None, ["energy"]).energy


def test_the_energy_at_zero_field_is_that_of_no_field():
    model = small_model()
    atoms = triclinic()
    coupled = model.evaluate(atoms, np.zeros(3), ALL)
    skipped = model.evaluate(atoms, None, ["energy", "forces", "stress", "hessian"])
    for name in ("energy", "forces", "stress", "hessian"):
        np.testing.assert_allclose(skipped.get(name), coupled.get(name), rtol=0, atol=1e-14, err_msg=name)
