"""The ASE calculator, alone and inside atomate2."""

from __future__ import annotations

import numpy as np
import pytest
from ase.calculators.calculator import PropertyNotImplementedError
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.stress import voigt_6_to_full_3x3_stress
from ase.units import fs

import fieldflows.backends.base as base
from fieldflows.backends.base import load_model
from fieldflows.backends.mace_field.checkpoint import CheckpointMetadata, save_checkpoint
from fieldflows.backends.mace_field.model import MACEFieldModel
from fieldflows.calculators import FieldCalculator
from fieldflows.errors import CapabilityError, InputError
from tests.backends.mace_field.models import ALL, FIELD, cubic, small_model, small_network, triclinic

EVERYTHING = (
    "energy",
    "free_energy",
    "forces",
    "stress",
    "polarization",
    "born_effective_charges",
    "polarizability",
)


class Counted:
    """A model that writes down what it was asked for."""

    def __init__(self, model):
        self.model = model
        self.asked = []

    @property
    def info(self):
        return self.model.info

    def evaluate(self, structures, fields=None, observables=()):
        self.asked.append((tuple(observables), np.array(fields)))
        return self.model.evaluate(structures, fields, observables)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    network = small_network()
    path = tmp_path_factory.mktemp("calculator") / "model.safetensors"
    save_checkpoint(path, network, CheckpointMetadata(name="small", network=network.config, trained_labels=ALL[:-1]))
    return path


def partial_model(*labels):
    network = small_network()
    return MACEFieldModel(network, CheckpointMetadata(name="part", network=network.config, trained_labels=labels))


def test_results_are_those_of_the_model(model):
    atoms = triclinic()
    atoms.calc = FieldCalculator(model, electric_field=FIELD)
    expected = model.evaluate(triclinic(), FIELD, ALL[:-1])
    assert atoms.get_potential_energy() == pytest.approx(expected.energy, abs=1e-13)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_forces(), expected.forces, rtol=0, atol=1e-14)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), expected.stress, rtol=0, atol=1e-14)
    np.testing.assert_allclose(voigt_6_to_full_3x3_stress(atoms.get_stress()), expected.stress, rtol=0, atol=1e-14)
    for name in ("polarization", "born_effective_charges", "polarizability"):
        found = atoms.calc.get_property(name, atoms)
        np.testing.assert_allclose(found, expected.get(name), rtol=0, atol=1e-14, err_msg=name)
    assert set(atoms.calc.implemented_properties) == set(EVERYTHING)


def test_a_call_for_all_properties_gives_all(model):
    atoms = triclinic()
    calculator = FieldCalculator(model)
    calculator.calculate(atoms, list(EVERYTHING))
    assert set(calculator.results) == set(EVERYTHING)
    shapes = {name: np.shape(value) for name, value in calculator.results.items()}
    assert shapes == {
        "energy": (),
        "free_energy": (),
        "forces": (3, 3),
        "stress": (6,),
        "polarization": (3,),
        "born_effective_charges": (3, 3, 3),
        "polarizability": (3, 3),
    }


def test_only_what_is_asked_for_is_computed_and_kept(model):
    counted = Counted(model)
    atoms = triclinic()
    atoms.calc = FieldCalculator(counted)
    atoms.get_forces()
    atoms.get_potential_energy()
    atoms.get_stress()
    assert [set(names) for names, _ in counted.asked] == [{"energy", "forces", "stress"}]
    atoms.calc.get_property("polarizability", atoms)
    assert set(counted.asked[-1][0]) == {"polarizability"}
    atoms.get_forces()
    assert len(counted.asked) == 2, "forces of the same structure are still known"
    atoms.positions[0, 0] += 0.01
    atoms.get_forces()
    assert len(counted.asked) == 3
    assert "polarizability" not in atoms.calc.results


def test_the_field_can_be_set_and_changes_results(model):
    atoms = triclinic()
    atoms.calc = FieldCalculator(model)
    at_rest = atoms.get_forces()
    charges = atoms.calc.get_property("born_effective_charges", atoms)
    small = 1e-5 * FIELD
    atoms.calc.electric_field = small
    np.testing.assert_allclose(atoms.get_forces() - at_rest, np.einsum("i,kij->kj", small, charges), rtol=0, atol=1e-9)
    atoms.calc.electric_field = list(FIELD)
    assert np.abs(atoms.get_forces() - at_rest).max() > 1e-3
    atoms.calc.electric_field = None
    np.testing.assert_array_equal(atoms.get_forces(), at_rest)


def test_a_field_in_time_follows_the_clock(model):
    counted = Counted(model)
    atoms = triclinic()
    atoms.calc = FieldCalculator(counted, electric_field=lambda t: 0.01 * t * np.array([0.0, 0.0, 1.0]))
    energies = []
    for time in (0.0, 2.0, 4.0):
        atoms.calc.time = time
        energies.append(atoms.get_potential_energy())
        np.testing.assert_allclose(counted.asked[-1][1], [0, 0, 0.01 * time])
    assert len(counted.asked) == 3
    assert len(set(energies)) == 3
    expected = [model.evaluate(triclinic(), (0, 0, 0.01 * t), ("energy",)).energy for t in (0, 2, 4)]
    np.testing.assert_allclose(energies, expected, rtol=0, atol=1e-12)


def test_a_constant_field_does_not_care_for_time(model):
    counted = Counted(model)
    atoms = triclinic()
    atoms.calc = FieldCalculator(counted, electric_field=FIELD)
    atoms.get_potential_energy()
    atoms.calc.time = 5.0
    atoms.get_potential_energy()
    assert len(counted.asked) == 1


def test_dynamics_under_a_field_conserve_the_enthalpy(model):
    atoms = cubic(displaced=True)
    atoms.calc = FieldCalculator(model, electric_field=FIELD)
    dynamics = VelocityVerlet(atoms, timestep=0.5 * fs)
    start = atoms.get_total_energy()
    kinetic = []
    dynamics.attach(lambda: kinetic.append(atoms.get_kinetic_energy()))
    dynamics.run(20)
    assert max(kinetic) > 1e-4
    assert abs(atoms.get_total_energy() - start) < 0.02 * max(kinetic)


def test_relaxation_under_a_field_lowers_the_enthalpy(model):
    atoms = triclinic()
    atoms.calc = FieldCalculator(model, electric_field=FIELD)
    start = atoms.get_potential_energy()
    BFGS(atoms, logfile=None).run(steps=4)
    assert atoms.get_potential_energy() < start


@pytest.mark.parametrize("field", [(0.0, 0.1), "north", (0.0, np.nan, 0.0), np.eye(3)])
def test_a_wrong_field_is_refused_at_once(model, field):
    with pytest.raises((InputError, ValueError)):
        FieldCalculator(model, electric_field=field)
    calculator = FieldCalculator(model)
    with pytest.raises((InputError, ValueError)):
        calculator.electric_field = field


def test_a_callable_that_returns_nonsense_is_refused(model):
    atoms = triclinic()
    atoms.calc = FieldCalculator(model, electric_field=lambda t: (0.0, t))
    with pytest.raises(InputError, match="three finite components"):
        atoms.get_potential_energy()


def test_what_a_model_was_not_trained_for_is_refused():
    atoms = triclinic()
    electronic = partial_model("polarization", "polarizability")
    atoms.calc = FieldCalculator(electronic)
    for call in (atoms.get_potential_energy, atoms.get_forces, atoms.get_stress):
        with pytest.raises(CapabilityError, match="need one trained on energy and forces"):
            call()
    assert np.shape(atoms.calc.get_property("born_effective_charges", atoms)) == (3, 3, 3)
    atoms.calc = FieldCalculator(electronic, allow_untrained=True)
    assert atoms.get_forces().shape == (3, 3)
    atoms.calc = FieldCalculator(partial_model("energy", "forces"))
    assert atoms.get_forces().shape == (3, 3)
    with pytest.raises(CapabilityError, match="would be meaningless"):
        atoms.calc.get_property("polarization", atoms)


def test_properties_that_do_not_exist(model):
    atoms = triclinic()
    atoms.calc = FieldCalculator(model)
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_magnetic_moments()


def test_files_are_loaded_once_per_process(checkpoint, monkeypatch):
    loaded = []
    original = MACEFieldModel.from_file

    def count(path, **kwargs):
        loaded.append(path)
        return original(path, **kwargs)

    monkeypatch.setattr(base, "_CACHE", {})
    monkeypatch.setattr(MACEFieldModel, "from_file", count)
    calculators = [FieldCalculator(str(checkpoint)) for _ in range(5)]
    assert len(loaded) == 1
    assert len({id(calculator.model) for calculator in calculators}) == 1
    FieldCalculator(checkpoint, dtype="float32")
    assert len(loaded) == 2
    assert load_model(checkpoint) is calculators[0].model


# --- inside atomate2 ------------------------------------------------------------------------------------------------

NAME = {"@module": "fieldflows.calculators", "@callable": "FieldCalculator"}


def run(maker, structure):
    from jobflow import JobStore, run_locally
    from maggma.stores import MemoryStore

    job = maker.make(structure)
    store = JobStore(MemoryStore(), additional_stores={"data": MemoryStore()})
    responses = run_locally(job, store=store, ensure_success=True)
    return responses[job.uuid][1].output


@pytest.fixture
def structure(tmp_path, monkeypatch):
    from pymatgen.io.ase import AseAtomsAdaptor

    monkeypatch.chdir(tmp_path)
    return AseAtomsAdaptor.get_structure(triclinic())


def test_static_maker(checkpoint, structure, model):
    from atomate2.forcefields.jobs import ForceFieldStaticMaker

    maker = ForceFieldStaticMaker(
        force_field_name=NAME,
        calculator_kwargs={"model": str(checkpoint), "electric_field": FIELD.tolist()},
    )
    document = run(maker, structure)
    expected = model.evaluate(triclinic(), FIELD, ALL[:-1])
    assert document.output.energy == pytest.approx(expected.energy, abs=1e-10)
    np.testing.assert_allclose(document.output.forces, expected.forces, rtol=0, atol=1e-8)
    assert document.forcefield_name == "FieldCalculator"


def test_relax_maker_under_run_locally_loads_once(checkpoint, structure, monkeypatch):
    from atomate2.forcefields.jobs import ForceFieldRelaxMaker

    loaded = []
    original = MACEFieldModel.from_file
    monkeypatch.setattr(base, "_CACHE", {})
    monkeypatch.setattr(
        MACEFieldModel, "from_file", lambda path, **kwargs: loaded.append(path) or original(path, **kwargs)
    )
    maker = ForceFieldRelaxMaker(
        force_field_name=NAME,
        calculator_kwargs={"model": str(checkpoint)},
        relax_cell=False,
        steps=2,
        relax_kwargs={"fmax": 1e-3},
    )
    start = load_model(checkpoint).evaluate(triclinic(), None, ("energy",)).energy
    for _ in range(2):
        document = run(maker, structure)
        assert document.output.energy < start
        assert 1 < document.output.n_steps <= 4
    assert len(loaded) == 1
