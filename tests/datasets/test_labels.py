"""Every convention, held against one physical truth that is written down in it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import constants

from fieldflows.datasets.extxyz import RawFrame
from fieldflows.datasets.frame import LABEL_SHAPES, LABEL_UNITS
from fieldflows.datasets.labels import ALIASES, CONVENTIONS, convert, convert_all, find_key, get_convention
from fieldflows.errors import LabelError, SettingsError
from fieldflows.observables import OBSERVABLES
from tests.datasets.synthetic import EPS0, UC_PER_CM2

CELL = np.array([[4.0, 0.3, 0.0], [-0.5, 5.0, 0.2], [0.1, 0.6, 6.0]])
VOLUME = float(CELL[0] @ np.cross(CELL[1], CELL[2]))
EPSILON = np.array([[5.0, 0.2, 0.1], [0.2, 6.0, -0.3], [0.1, -0.3, 7.0]])
ALPHA = (EPSILON - np.eye(3)) * EPS0
P = np.array([0.01, -0.02, 0.03])  # e/Å²
CHARGES = np.arange(18.0).reshape(2, 3, 3)
STRESS = np.array([[0.1, 0.02, 0.03], [0.02, -0.2, 0.04], [0.03, 0.04, 0.3]])  # eV/Å³, ASE sign
GPA = constants.e / constants.angstrom**3 / 1e9
PIEZO = np.arange(18.0).reshape(3, 6)  # xx yy zz yz xz xy

# What a file would hold in each convention for the crystal above.
WRITTEN = {
    ("energy", "eV"): (-9.0, -9.0),
    ("energy", "eV_per_atom"): (-4.5, -9.0),
    ("forces", "eV_per_angstrom"): (np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(2, 3)),
    ("stress", "eV_per_angstrom3"): (STRESS[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]], STRESS),
    ("stress", "GPa"): (STRESS.ravel() * GPA, STRESS),
    ("stress", "vasp_kbar"): (-10 * GPA * STRESS[[0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 0]], STRESS),
    ("polarization", "e_per_angstrom2"): (P, P),
    ("polarization", "uC_per_cm2"): (P * UC_PER_CM2, P),
    ("polarization", "C_per_m2"): (P * UC_PER_CM2 / 100, P),
    ("polarization", "dipole_e_angstrom"): (P * VOLUME, P),
    ("polarization", "lattice_e_per_angstrom2"): (
        np.linalg.solve((CELL / np.linalg.norm(CELL, axis=1)[:, None]).T, P),
        P,
    ),
    ("born_effective_charges", "polarization_displacement"): (CHARGES.reshape(2, 9), CHARGES),
    ("born_effective_charges", "displacement_polarization"): (np.swapaxes(CHARGES, 1, 2).reshape(2, 9), CHARGES),
    ("polarizability", "e_per_volt_angstrom"): (ALPHA, ALPHA),
    ("polarizability", "gaussian"): ((EPSILON - np.eye(3)) / (4 * np.pi), ALPHA),
    ("polarizability", "susceptibility"): (EPSILON - np.eye(3), ALPHA),
    ("polarizability", "permittivity"): (EPSILON, ALPHA),
    ("polarizability", "per_cell"): (ALPHA * VOLUME, ALPHA),
    ("polarizability", "volume_angstrom3"): ((EPSILON - np.eye(3)) * VOLUME / (4 * np.pi), ALPHA),
    ("epsilon_ionic", "permittivity"): (EPSILON, EPSILON),
    ("refractive_index", "sqrt_mean_epsilon"): (1.7, 1.7),
    ("piezoelectric", "voigt"): (PIEZO, PIEZO),
    ("piezoelectric", "vasp"): (PIEZO[:, [0, 1, 2, 5, 3, 4]], PIEZO),
}


def frame(key: str, value) -> RawFrame:
    array = np.asarray(value, dtype=float)
    per_atom = array.ndim and array.shape[0] == 2
    return RawFrame(
        numbers=np.array([12, 8]),
        positions=np.zeros((2, 3)),
        cell=CELL,
        pbc=np.ones(3, dtype=bool),
        info={} if per_atom else {key: array.ravel() if array.ndim else float(array)},
        arrays={key: array} if per_atom else {},
    )


def test_every_convention_is_covered():
    assert set(WRITTEN) == {(o, name) for o, names in CONVENTIONS.items() for name in names}
    assert set(CONVENTIONS) == set(ALIASES) == set(LABEL_UNITS) == set(LABEL_SHAPES)


@pytest.mark.parametrize(("observable", "name"), WRITTEN)
def test_conversion(observable, name):
    written, truth = WRITTEN[observable, name]
    found = convert(frame("key", written), "key", get_convention(observable, name))
    np.testing.assert_allclose(found, truth, rtol=1e-12, atol=1e-14)


def test_units_and_shapes_agree_with_the_glossary():
    for name in set(OBSERVABLES) & set(LABEL_UNITS):
        assert LABEL_UNITS[name] == OBSERVABLES[name].unit
        assert LABEL_SHAPES[name] == OBSERVABLES[name].shape


@pytest.mark.parametrize(
    ("observable", "key"),
    [
        ("polarization", "REF_polarisation"),
        ("polarization", "REF_polarization"),
        ("polarization", "polarization"),
        ("polarizability", "REF_polarisability"),
        ("polarizability", "polarizability"),
        ("born_effective_charges", "REF_bec"),
        ("born_effective_charges", "REF_becs"),
        ("born_effective_charges", "born_charge"),
        ("energy", "total_energy"),
    ],
)
def test_spellings(observable, key):
    assert find_key(frame(key, [1.0, 2.0, 3.0]), observable) == key
    assert find_key(frame("something_else", 1.0), observable) is None


def test_the_reference_key_comes_first():
    both = frame("REF_energy", 1.0)
    both.info["energy"] = 2.0
    assert find_key(both, "energy") == "REF_energy"


def test_spellings_may_change_within_a_file_but_kinds_never_stand_in_for_each_other():
    rules = {"polarization": ("REF_polarisation", get_convention("polarization", "e_per_angstrom2"))}
    for key, found in (("REF_polarisation", True), ("REF_polarization", True), ("polarization", False)):
        labels = convert_all(frame(key, P), rules)
        assert ("polarization" in labels) == found
    own = {"polarization": ("dipole", get_convention("polarization", "dipole_e_angstrom"))}
    assert convert_all(frame("REF_polarization", P), own) == {}


def test_wrong_size_text_and_unknown_names():
    convention = get_convention("polarizability", "gaussian")
    with pytest.raises(LabelError, match=r"shape \(4,\)"):
        convert(frame("a", [1.0, 2, 3, 4]), "a", convention)
    text = frame("a", 1.0)
    text.info["a"] = "many"
    with pytest.raises(LabelError, match="not numeric"):
        convert(text, "a", convention)
    assert convert(text, "b", convention) is None
    with pytest.raises(SettingsError, match="Did you mean 'gaussian'"):
        get_convention("polarizability", "gausian")
    with pytest.raises(SettingsError, match="no label"):
        get_convention("bandgap", "eV")
