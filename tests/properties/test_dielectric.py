"""The dielectric property: numbers, statuses and flags."""

from __future__ import annotations

import numpy as np
import pytest

from fieldflows.backends.base import ModelInfo, Response
from fieldflows.backends.toy import ToyModel, ToyParameters
from fieldflows.errors import CapabilityError, SettingsError, StructureError
from fieldflows.physics.dielectric import ionic_permittivity
from fieldflows.properties.base import PropertyInput, result_key
from fieldflows.properties.dielectric import DielectricProperty, DielectricSettings
from fieldflows.properties.run import run_property
from fieldflows.schemas.dielectric import DielectricDocument
from fieldflows.structures import as_structure
from fieldflows.testing import structures
from fieldflows.units import EPSILON_VACUUM

ELECTRONIC_LABELS = ("polarization", "born_effective_charges", "polarizability")


class Altered:
    """The toy model with some observables replaced, to bring about what a real model might do."""

    def __init__(self, replacements=None, labels=None, dtype="float64"):
        self.toy = ToyModel(trained_labels=labels, dtype=dtype)
        self.replacements = replacements or {}
        self.calls = []

    @property
    def info(self) -> ModelInfo:
        return self.toy.info

    def evaluate(self, crystals, fields=None, observables=ELECTRONIC_LABELS):
        self.calls.append((len(crystals), tuple(observables)))
        answers = []
        for response in self.toy.evaluate(crystals, fields, observables):
            values = {name: getattr(response, name) for name in observables}
            for name, change in self.replacements.items():
                if name in values:
                    values[name] = change(values[name])
            answers.append(Response(field=response.field, **values))
        return answers


def compute(atoms, model=None, hessian_model=None, subject=None, **settings) -> DielectricDocument:
    prop = DielectricProperty(DielectricSettings(**settings))
    document = run_property(prop, [subject or atoms], model or Altered(), hessian_model)[0]
    assert isinstance(document, DielectricDocument), document
    return document


def codes(document):
    return {flag.code for flag in document.flags}


# Numbers


def test_document_of_a_cubic_crystal_against_closed_forms():
    """CsCl: ε_ion = Z²/(k Ω ε_vac), and everything else follows."""
    atoms = structures.cesium_chloride()
    response = ToyModel().evaluate(atoms, observables=("born_effective_charges", "hessian", "polarizability"))
    z, k = response.born_effective_charges[0, 0, 0], response.hessian[0, 0]
    ionic = z**2 / (k * 4.123**3 * EPSILON_VACUUM)
    electronic = 1 + response.polarizability[0, 0] / EPSILON_VACUUM
    doc = compute(atoms)
    assert doc.e_ionic == pytest.approx(ionic, rel=1e-10)
    assert doc.e_electronic == pytest.approx(electronic, rel=1e-12)
    assert doc.e_total == pytest.approx(electronic + ionic, rel=1e-10)
    assert doc.n == pytest.approx(np.sqrt(electronic), rel=1e-12)
    assert np.array(doc.total) == pytest.approx((electronic + ionic) * np.eye(3), abs=1e-9)
    assert (doc.status_electronic, doc.status_ionic, doc.flags) == ("ok", "ok", ())
    assert doc.refractive_index_principal == pytest.approx([doc.n] * 3)
    assert (doc.born_charge_min, doc.born_charge_max) == (pytest.approx(-z), pytest.approx(z))
    assert doc.modes.ir_active == (True, True, True)
    reduced = 132.90545 * 35.45 / (132.90545 + 35.45)
    assert doc.modes.oscillator_strengths[0] == pytest.approx(z**2 / reduced, rel=1e-4)
    assert (doc.formula_pretty, doc.chemsys, doc.nelements, doc.nsites) == ("CsCl", "Cl-Cs", 2, 2)
    assert (doc.spacegroup_symbol, doc.spacegroup_number, doc.crystal_system) == ("Pm-3m", 221, "cubic")
    assert doc.volume == pytest.approx(4.123**3)


@pytest.mark.parametrize("name", ["wurtzite_zno", "cesium_chloride", "zincblende_gaas"])
def test_raw_frame_and_ieee_orientation_of_a_rotated_crystal(name):
    atoms = structures.named_structures()[name]
    turn = structures.random_rotation(11)
    turned = atoms.copy()
    turned.set_cell(atoms.cell[:] @ turn.T, scale_atoms=True)
    left, right = compute(atoms), compute(turned)
    assert np.array(right.epsilon_total) == pytest.approx(turn @ np.array(left.epsilon_total) @ turn.T, abs=1e-8)
    assert np.array(right.total) == pytest.approx(np.array(left.total), abs=1e-6)
    assert right.n == pytest.approx(left.n)
    assert right.key != left.key
    assert np.array(right.structure.lattice.matrix) == pytest.approx(turned.cell[:])


def test_separate_hessian_model_gives_hessian_and_forces():
    """The field model may have no energy surface; Z* then meets the Hessian of the other model."""
    field = Altered(labels=ELECTRONIC_LABELS)
    stiff = ToyModel(ToyParameters(depth=1.0))
    atoms = structures.wurtzite_zno()
    doc = compute(atoms, field, stiff)
    charges = field.toy.evaluate(atoms).born_effective_charges
    mechanical = stiff.evaluate(atoms, observables=("forces", "hessian"))
    expected = ionic_permittivity(charges, mechanical.hessian, atoms.get_volume())
    assert np.array(doc.epsilon_ionic) == pytest.approx(expected, rel=1e-10)
    assert doc.max_force == pytest.approx(np.linalg.norm(mechanical.forces, axis=1).max())
    assert doc.provenance.hessian_model.sha256 == stiff.info.sha256
    assert doc.provenance.model.sha256 == field.info.sha256
    assert all(not {"forces", "hessian", "energy"} & set(names) for _, names in field.calls)
    assert doc.key != compute(atoms, Altered()).key


def test_sum_rule_is_enforced_before_the_ionic_part():
    """A model that adds a constant to all Z* gives the same ε_ion, and a flag."""

    def shifted(charges):
        return charges + 0.05 * np.eye(3)

    atoms = structures.rocksalt_mgo()
    exact, doc = compute(atoms), compute(atoms, Altered({"born_effective_charges": shifted}))
    assert doc.born_charge_sum_max == pytest.approx(0.1)
    assert np.array(doc.epsilon_ionic) == pytest.approx(np.array(exact.epsilon_ionic))
    assert doc.born_effective_charges[0][0][0] == pytest.approx(exact.born_effective_charges[0][0][0] + 0.05)
    assert doc.born_charge_max == pytest.approx(exact.born_charge_max)
    assert codes(doc) == {"sum_rule"}
    flag = doc.flags[0]
    assert (flag.value, flag.threshold) == (pytest.approx(0.1), 0.01)


# What is asked of which model


def test_auto_leaves_out_what_the_model_cannot_give():
    doc = compute(structures.rocksalt_mgo(), Altered(labels=ELECTRONIC_LABELS))
    assert doc.status_ionic == "no_energy_surface"
    assert (doc.ionic, doc.total, doc.e_total, doc.epsilon_ionic, doc.modes, doc.max_force) == (None,) * 6
    assert doc.n is not None
    assert doc.provenance.settings["ionic"] is False


def test_not_requested():
    model = Altered()
    doc = compute(structures.rocksalt_mgo(), model, ionic=False)
    assert doc.status_ionic == "not_requested"
    assert doc.modes is None
    assert doc.max_force is not None
    assert all("hessian" not in names for _, names in model.calls)


def test_refuses_the_ionic_part_without_energy_surface():
    prop = DielectricProperty(DielectricSettings(ionic=True))
    field_only = Altered(labels=ELECTRONIC_LABELS)
    with pytest.raises(CapabilityError, match=r"trained on polarization.*hessian_model"):
        run_property(prop, [structures.rocksalt_mgo()], field_only)
    with pytest.raises(CapabilityError, match="as hessian_model"):
        run_property(prop, [structures.rocksalt_mgo()], Altered(), field_only)
    plain = Altered(labels=("energy", "forces"))
    with pytest.raises(CapabilityError, match="not on any response to a field"):
        run_property(DielectricProperty(), [structures.rocksalt_mgo()], plain)
    assert plain.calls == field_only.calls == []


def test_observables_without_label_are_flagged():
    doc = compute(structures.rocksalt_mgo(), Altered(labels=("polarizability",)))
    assert codes(doc) == {"untrained_observable"}
    assert "born_effective_charges" in doc.flags[0].message


def test_unbound_property_has_no_plan():
    with pytest.raises(SettingsError, match="bind"):
        DielectricProperty().plan(structures.rocksalt_mgo())
    bound = DielectricProperty().bind(ToyModel().info)
    atoms = structures.rocksalt_mgo()
    atoms.set_cell(np.zeros((3, 3)))
    with pytest.raises(StructureError, match="zero volume"):
        bound.plan(atoms)


# Instability


def test_imaginary_modes_give_no_ionic_part():
    doc = compute(structures.rocksalt_mgo(), Altered({"hessian": lambda h: -h}))
    assert doc.status_ionic == "unstable"
    assert (doc.ionic, doc.total, doc.e_ionic, doc.e_total, doc.epsilon_ionic, doc.epsilon_total) == (None,) * 6
    assert doc.n is not None
    assert doc.modes.frequencies_thz[0] < -1
    assert codes(doc) == {"unstable"}
    assert doc.flags[0].value < doc.flags[0].threshold == -1e-4
    assert "3 imaginary" in doc.flags[0].message


def test_unstable_sum_on_request_says_so():
    atoms = structures.rocksalt_mgo()
    stable = compute(atoms)
    doc = compute(atoms, Altered({"hessian": lambda h: -h}), allow_unstable=True)
    assert doc.status_ionic == "unstable_summed"
    assert doc.e_ionic == pytest.approx(-stable.e_ionic)
    assert "formal" in doc.flags[0].message
    assert compute(atoms, allow_unstable=True).status_ionic == "ok"


@pytest.mark.parametrize(("dtype", "threshold"), [("float64", 1e-4), ("float32", 1e-3)])
def test_thresholds_depend_on_the_precision(dtype, threshold):
    """ω² of MgO scaled to half and twice the threshold, with both signs."""
    atoms = structures.rocksalt_mgo()
    omega_squared = (compute(atoms).modes.frequencies_thz[0] / 15.633302) ** 2
    statuses = []
    for target in (-2.0, -0.5, 0.5, 2.0):
        factor = target * threshold / omega_squared
        doc = compute(atoms, Altered({"hessian": lambda h, f=factor: f * h}, dtype=dtype))
        statuses.append(doc.status_ionic)
        assert (doc.e_ionic is None) == (doc.status_ionic != "ok")
    assert statuses == ["unstable", "soft", "soft", "ok"]


def test_precision_that_counts_is_that_of_the_hessian():
    atoms = structures.rocksalt_mgo()
    omega_squared = (compute(atoms).modes.frequencies_thz[0] / 15.633302) ** 2
    soft = Altered({"hessian": lambda h: 5e-4 / omega_squared * h}, dtype="float32")
    assert compute(atoms, Altered(), soft).status_ionic == "soft"


def test_free_atoms_are_soft_not_infinite():
    doc = compute(structures.rocksalt_mgo(), Altered({"hessian": np.zeros_like}), allow_unstable=True)
    assert doc.status_ionic == "soft"
    assert doc.e_ionic is None


# Electronic part


def test_permittivity_below_one_is_invalid():
    doc = compute(structures.rocksalt_mgo(), Altered({"polarizability": lambda a: a - 0.02 * np.diag([0, 0, 1])}))
    assert doc.status_electronic == "invalid"
    assert (doc.n, doc.refractive_index_principal, doc.electronic, doc.e_electronic, doc.total) == (None,) * 5
    assert doc.epsilon_electronic[2][2] < 1
    assert doc.e_ionic is not None
    assert codes(doc) == {"invalid_electronic", "symmetry"} - ({"symmetry"} if doc.electronic is None else set())


def test_implausible_values_are_flagged():
    doc = compute(structures.rocksalt_mgo(), Altered({"polarizability": lambda a: 40 * a}))
    assert "implausible_refractive_index" in codes(doc)
    doc = compute(structures.rocksalt_mgo(), Altered({"hessian": lambda h: 0.02 * h}))
    assert codes(doc) == {"large_ionic"}
    assert doc.status_ionic == "ok"


def test_broken_symmetry_is_flagged_and_raw_tensor_kept():
    bias = np.diag([0.0, 0.0, 1.0]) * EPSILON_VACUUM
    doc = compute(structures.rocksalt_mgo(), Altered({"polarizability": lambda a: a + bias}))
    assert codes(doc) == {"symmetry"}
    assert doc.epsilon_electronic[2][2] - doc.epsilon_electronic[0][0] == pytest.approx(1.0)
    assert np.array(doc.electronic) == pytest.approx(doc.e_electronic * np.eye(3), abs=1e-10)


# The crystal


def test_residual_forces_are_flagged():
    atoms = structures.rocksalt_mgo()
    atoms.positions[0] += [0.05, 0.02, 0.0]
    doc = compute(atoms)
    assert "residual_forces" in codes(doc)
    flag = next(f for f in doc.flags if f.code == "residual_forces")
    assert flag.value == pytest.approx(doc.max_force)
    assert flag.threshold == 0.05


@pytest.mark.parametrize(
    ("gap", "insulating", "code"),
    [(None, "unknown", "all_metal_composition"), (0.0, "no", "metal"), (0.4, "yes", None)],
)
def test_metals_are_unknown_unless_the_gap_is_given(gap, insulating, code):
    from ase.build import bulk

    subject = PropertyInput(bulk("CuZn", "cesiumchloride", 2.95), band_gap=gap)
    doc = compute(None, subject=subject)
    assert doc.insulating == insulating
    assert doc.band_gap == gap
    assert (code in codes(doc)) if code else not codes(doc) & {"metal", "all_metal_composition"}


def test_insulators_are_unknown_too_but_not_flagged():
    doc = compute(structures.rocksalt_mgo())
    assert doc.insulating == "unknown"
    assert not doc.flags


def test_one_atom():
    from ase.build import bulk

    doc = compute(bulk("Cu"))
    assert doc.e_ionic == 0.0
    assert doc.modes.frequencies_thz == ()


def test_site_properties_and_oxidation_states_do_not_matter():
    plain = as_structure(structures.rocksalt_mgo())
    decorated = plain.copy()
    decorated.add_oxidation_state_by_element({"Mg": 2, "O": -2})
    decorated.add_site_property("magmom", [0.0, 0.1])
    left, right = compute(plain), compute(decorated)
    assert right.key == left.key
    assert right.formula_pretty == "MgO"
    assert right.structure == left.structure
    assert decorated.site_properties["magmom"] == [0.0, 0.1]


def test_eigenvectors_on_request():
    doc = compute(structures.rocksalt_mgo(), store_eigenvectors=True)
    vectors = np.array(doc.modes.eigenvectors).reshape(3, 6)
    assert vectors @ vectors.T == pytest.approx(np.eye(3))
    assert compute(structures.rocksalt_mgo()).modes.eigenvectors is None


# Identity and provenance


def test_key_can_be_known_in_advance_and_depends_on_the_input_structure():
    atoms, moved = structures.rocksalt_mgo(), structures.rocksalt_mgo()
    moved.positions[0, 0] += 0.01
    model = ToyModel()
    prop = DielectricProperty().bind(model.info)
    expected = result_key(prop, atoms, model.info)
    assert compute(atoms).key == expected
    relaxed = compute(None, subject=PropertyInput(moved, input_structure=atoms))
    assert relaxed.key == expected
    assert relaxed.provenance.structure_hash != relaxed.provenance.input_structure_hash
    assert compute(moved).key != expected
    assert compute(atoms, force_threshold=0.01).key != expected
    assert compute(atoms, Altered(dtype="float32")).key != expected
    assert result_key(prop, atoms, model.info, extra_settings={"relax": True}) != expected


def test_same_question_same_document():
    left, right = (compute(structures.wurtzite_zno()).to_json_dict() for _ in range(2))
    for doc in (left, right):
        doc["provenance"].pop("created_at")
    assert left == right


def test_settings_refuse_nonsense():
    with pytest.raises(ValueError, match="Extra inputs"):
        DielectricSettings(force_treshold=0.1)
    with pytest.raises(ValueError, match="greater than 0"):
        DielectricSettings(force_threshold=0.0)
    with pytest.raises(ValueError, match="ionic"):
        DielectricSettings(ionic="maybe")
