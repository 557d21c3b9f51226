"""The toy backend fulfills the contract, and agrees with pencil and paper."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fieldflows.backends.base import load_model
from fieldflows.backends.toy import ToyModel, ToyParameters, load
from fieldflows.errors import SettingsError, UnknownElementError
from fieldflows.physics.dielectric import electronic_permittivity, ionic_permittivity
from fieldflows.testing.contract import FieldModelContract
from fieldflows.testing.structures import cesium_chloride, random_crystal, rocksalt_mgo, zincblende_gaas
from fieldflows.units import EPSILON_VACUUM


class TestToyContract(FieldModelContract):
    def make_model(self):
        return ToyModel(ToyParameters(anisotropy=0.5))


class TestDenseToyContract(FieldModelContract):
    """Other elements in a denser crystal, so that every term of the model counts."""

    symbols = ("Na", "Cl", "Ti")
    volume_per_atom = 20.0

    def make_model(self):
        return ToyModel(ToyParameters(anisotropy=2.0, charge_reach=2.5))


def closed_forms(shells, chi, radii, p):
    """Z of the cation and k of a binary crystal with cubic sites, written out again from the formulas of the module.

    ``shells``: (number of unlike neighbors, distance) within the cut-off.
    """
    z = k = neighbors = 0.0
    origin = sum(radii)
    for count, r in shells:
        reach = min(p.charge_reach * origin, p.cutoff)
        if r < reach:
            v = (r / reach) ** 6
            w, w1 = (1 - v) ** 3, -18 * (1 - v) ** 2 * v / r
            z += count * p.charge * (chi[1] - chi[0]) * (w + r * w1 / 3)
            neighbors += count * abs(chi[0] - chi[1]) * w
        depth = p.depth + p.ionic_depth * abs(chi[0] - chi[1])

        def phi(x, depth=depth):
            e = math.exp(-p.stiffness * (x - origin))
            return depth * (e * e - 2 * e) * (1 - (x / p.cutoff) ** 2) ** 3

        h = 1e-4
        first = (phi(r + h) - phi(r - h)) / (2 * h)
        second = (phi(r + h) - 2 * phi(r) + phi(r - h)) / h**2
        k += count * (second + 2 * first / r) / 3
    return (1 + 2 * p.environment * neighbors) * z, k


# Pauling electronegativities and covalent radii (Cordero 2008) as tabulated, typed in again.
@pytest.mark.parametrize(
    ("atoms", "a", "shells", "chi", "radii", "cutoff"),
    [
        (rocksalt_mgo(), 4.2112, [(6, 1 / 4), (8, 3 / 4), (24, 5 / 4), (30, 9 / 4)], (1.31, 3.44), (1.41, 0.66), 6.5),
        (cesium_chloride(), 4.123, [(8, 3 / 4)], (0.79, 3.16), (2.44, 1.02), 6.5),
        (zincblende_gaas(), 5.6533, [(4, 3 / 16), (12, 11 / 16)], (1.81, 2.18), (1.22, 1.19), 5.5),
    ],
    ids=["rocksalt", "cesium chloride", "zincblende"],
)
def test_binary_crystals_have_closed_forms(atoms, a, shells, chi, radii, cutoff):
    """``shells``: number of unlike neighbors and squared distance in units of a²."""
    p = ToyParameters(cutoff=cutoff, anisotropy=0.3)
    within = [(count, a * math.sqrt(s)) for count, s in shells if a * math.sqrt(s) < cutoff]
    charge, spring = closed_forms(within, chi, radii, p)
    response = ToyModel(p).evaluate(atoms, observables=("born_effective_charges", "hessian", "polarization"))
    assert charge > 0.1
    assert response.born_effective_charges[0] == pytest.approx(charge * np.eye(3), abs=1e-12)
    assert response.born_effective_charges[1] == pytest.approx(-charge * np.eye(3), abs=1e-12)
    assert response.hessian[:3, :3] == pytest.approx(spring * np.eye(3), abs=1e-5)
    assert response.polarization == pytest.approx(np.zeros(3), abs=1e-14)

    epsilon = ionic_permittivity(response.born_effective_charges, response.hessian, atoms.get_volume())
    assert epsilon == pytest.approx(charge**2 / (spring * atoms.get_volume() * EPSILON_VACUUM) * np.eye(3), rel=1e-5)


def test_charges_are_not_symmetric_where_the_site_allows():
    """Else transposed Born charges would go unnoticed in everything that is tested with the toy model."""
    charges = ToyModel().evaluate(random_crystal(7)).born_effective_charges
    assert np.abs(charges - charges.transpose(0, 2, 1)).max() > 0.05


def test_isotropic_polarizability_is_that_of_conducting_spheres():
    atoms = rocksalt_mgo()
    alpha = ToyModel(ToyParameters(anisotropy=0.0)).evaluate(atoms).polarizability
    expected = 1 + 4 * math.pi * (1.41**3 + 0.66**3) / (4.2112**3 / 4)
    assert electronic_permittivity(alpha) == pytest.approx(expected * np.eye(3), rel=1e-12)


def test_loader_knows_one_name_only():
    assert load("toy", dtype="float64", device="cpu").info.name == "toy"
    assert load("dielectric", dtype="float64", device="cpu") is None
    assert load_model("toy") is load_model("toy")
    assert load_model("toy").info.has_energy_surface


def test_single_precision_is_declared_and_rounds():
    atoms = rocksalt_mgo()
    single, double = ToyModel(dtype="float32"), ToyModel()
    assert single.info.dtype == "float32"
    left = single.evaluate(atoms, observables=("hessian",)).hessian
    right = double.evaluate(atoms, observables=("hessian",)).hessian
    assert left == pytest.approx(right, rel=1e-5)
    assert (left == left.astype(np.float32)).all()


def test_hash_depends_on_parameters_only():
    assert ToyModel().info.sha256 == ToyModel(trained_labels=("polarizability",)).info.sha256
    assert ToyModel().info.sha256 != ToyModel(ToyParameters(cutoff=5.0)).info.sha256


def test_refuses_bad_settings_and_unknown_elements():
    from ase import Atoms

    with pytest.raises(SettingsError, match="float16"):
        ToyModel(dtype="float16")
    with pytest.raises(SettingsError, match="cutoff"):
        ToyParameters(cutoff=-1.0)
    with pytest.raises(SettingsError, match=r"\(1, 3\)"):
        ToyModel().evaluate([rocksalt_mgo()], fields=np.zeros((2, 3)))
    with pytest.raises(SettingsError, match="not finite"):
        ToyModel().evaluate(rocksalt_mgo(), fields=[np.nan, 0, 0])
    heavy = Atoms("Og", cell=[4, 4, 4], pbc=True)
    with pytest.raises(UnknownElementError, match="beyond Cm"):
        ToyModel().evaluate(heavy)
