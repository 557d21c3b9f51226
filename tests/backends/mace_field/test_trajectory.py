"""Steps of a trajectory are evaluated as fresh crystals are, with a neighbor list that is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from fieldflows.backends.base import SteppingModel, load_model
from fieldflows.backends.mace_field.graphs import build_graph
from fieldflows.backends.mace_field.model import MACEFieldModel
from fieldflows.backends.mace_field.network import build_network
from fieldflows.backends.mace_field.trajectory import TrajectoryEvaluator
from fieldflows.calculators import FieldCalculator
from fieldflows.errors import EvaluationError, InputError, SettingsError, StructureError, UnknownElementError
from fieldflows.observables import FIRST_ORDER_OBSERVABLES
from tests.backends.mace_field.models import FIELD, cubic, small_model, triclinic


@pytest.fixture(scope="module")
def model():
    return small_model()


def assert_fresh(response, model, atoms, field=None):
    """Hold a response against an evaluation that knows nothing of the trajectory."""
    expected = model.evaluate(atoms, field, FIRST_ORDER_OBSERVABLES)
    for name in FIRST_ORDER_OBSERVABLES:
        scale = max(1.0, float(np.abs(expected.get(name)).max()))
        np.testing.assert_allclose(response.get(name), expected.get(name), rtol=0, atol=1e-11 * scale, err_msg=name)
    np.testing.assert_array_equal(response.field, expected.field)


def edges_of(graph):
    return sorted(zip(*graph["edge_index"].tolist(), *graph["unit_shifts"].T.tolist(), strict=True))


@pytest.mark.parametrize("field", [None, FIELD])
def test_a_random_walk_agrees_with_fresh_evaluations(model, field):
    evaluator = model.stepper()
    atoms = triclinic()
    random = np.random.default_rng(0)
    start = atoms.positions.copy()
    for _ in range(25):
        atoms.positions += random.normal(scale=0.04, size=atoms.positions.shape)
        atoms.positions += 0.05 * (start - atoms.positions)
        assert_fresh(evaluator.evaluate(atoms, field), model, atoms, field)
    assert 1 < evaluator.rebuilds < 25


@pytest.mark.parametrize(
    "changes",
    [
        {"distance_transform": "Agnesi", "pair_repulsion": True},
        {"interaction_cls": "RealAgnosticDensityResidualInteractionBlock"},
    ],
    ids=["by element", "density"],
)
def test_radial_functions_that_know_elements_are_stepped_as_well(changes):
    model = small_model(**changes)
    evaluator = model.stepper()
    atoms = triclinic()
    for _ in range(3):
        atoms.positions[0] += 0.03
        assert_fresh(evaluator.evaluate(atoms, FIELD), model, atoms, FIELD)
    assert evaluator.rebuilds == 1


def test_the_reference_path_and_single_precision_are_stepped_as_well(model):
    atoms = triclinic()
    reference = MACEFieldModel(model.network, model.metadata, sha256="0" * 64, engine="reference")
    assert_fresh(reference.stepper().evaluate(atoms, FIELD), model, atoms, FIELD)
    network = build_network(model.network.config, torch.float32)
    network.load_state_dict(model.network.state_dict())
    single = MACEFieldModel(network, model.metadata, sha256="0" * 64)
    stepped = single.stepper().evaluate(atoms, FIELD)
    fresh = single.evaluate(atoms, FIELD, FIRST_ORDER_OBSERVABLES)
    for name in FIRST_ORDER_OBSERVABLES:
        np.testing.assert_allclose(stepped.get(name), fresh.get(name), rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_edges_of_every_step_are_those_within_the_cutoff(model):
    evaluator = model.stepper()
    atoms = cubic().repeat((2, 1, 1))
    random = np.random.default_rng(3)
    config = model.network.config
    counts = set()
    for _ in range(15):
        atoms.positions += random.normal(scale=0.05, size=atoms.positions.shape)
        graph = evaluator._graph(atoms)
        fresh = build_graph(atoms, config.atomic_numbers, config.r_max)
        assert edges_of(graph) == edges_of(fresh)
        lengths = graph["distances"][graph["distance_index"]]
        sender, receiver = graph["edge_index"]
        vectors = graph["positions"][receiver] - graph["positions"][sender] + graph["shifts"]
        np.testing.assert_allclose(lengths, vectors.norm(dim=1), atol=1e-12)
        assert len(graph["distances"]) == len(sender) // 2, "opposite edges share a distance, and no others do"
        counts.add(len(sender))
    assert len(counts) > 1, "edges never crossed the cut-off, so that nothing was tried"


def test_the_list_is_built_exactly_when_it_must_be(model):
    evaluator = TrajectoryEvaluator(model.network, skin=0.4)
    atoms = triclinic()
    evaluator.evaluate(atoms)
    assert evaluator.rebuilds == 1
    atoms.positions[0, 0] += 0.199
    evaluator.evaluate(atoms)
    assert evaluator.rebuilds == 1, "half of the skin was not reached"
    atoms.positions[0, 0] += 0.002
    evaluator.evaluate(atoms)
    assert evaluator.rebuilds == 2
    atoms.positions += 0.15
    evaluator.evaluate(atoms)
    assert evaluator.rebuilds == 3, "|(0.15, 0.15, 0.15)| is 0.26"
    atoms.set_cell(atoms.cell[:] * 1.0001, scale_atoms=True)
    evaluator.evaluate(atoms)
    assert evaluator.rebuilds == 4
    evaluator.evaluate(atoms, FIELD)
    evaluator.evaluate(atoms.copy(), observables=("forces",))
    assert evaluator.rebuilds == 4, "neither a field nor a copy moves anything"


def test_without_a_skin_every_move_builds(model):
    evaluator = TrajectoryEvaluator(model.network, skin=0.0)
    atoms = triclinic()
    for _ in range(3):
        atoms.positions[0] += 1e-3
        assert_fresh(evaluator.evaluate(atoms), model, atoms)
    evaluator.evaluate(atoms)
    assert evaluator.rebuilds == 3


def test_two_atoms_that_approach_by_the_whole_skin_are_seen(model):
    """Each moves by just less than half of the skin towards the other, from just outside of it."""
    atoms = Atoms("ONa", positions=[(0, 0, 0), (0, 0, model.info.cutoff + 0.39)], cell=(12, 12, 12), pbc=True)
    evaluator = TrajectoryEvaluator(model.network, skin=0.4)
    apart = evaluator.evaluate(atoms)
    np.testing.assert_array_equal(apart.forces, 0.0)
    assert len(evaluator._graph(atoms)["distances"]) == 0
    atoms.positions[:, 2] += [0.1999, -0.1999]
    near = evaluator.evaluate(atoms)
    assert evaluator.rebuilds == 1
    assert len(evaluator._graph(atoms)["distances"]) == 1
    assert_fresh(near, model, atoms)


def test_any_crystal_may_follow(model):
    evaluator = model.stepper()
    other = cubic()
    swapped = triclinic()
    swapped.numbers = swapped.numbers[::-1]
    stretched = triclinic()
    stretched.set_cell(stretched.cell[:] @ (np.eye(3) + 0.02), scale_atoms=True)
    wrapped = triclinic()
    wrapped.positions += wrapped.cell[0] * 1.6 - wrapped.cell[2] * 0.7
    back = wrapped.copy()
    back.wrap()
    for atoms in (triclinic(), other, triclinic(), swapped, stretched, wrapped, back, other.repeat((1, 2, 1))):
        assert_fresh(evaluator.evaluate(atoms), model, atoms)


def test_what_was_handed_over_is_left_alone(model):
    evaluator = model.stepper()
    atoms = triclinic()
    before = atoms.copy()
    first = evaluator.evaluate(atoms)
    kept = first.forces.copy()
    atoms.positions += 0.01
    evaluator.evaluate(atoms)
    np.testing.assert_array_equal(first.forces, kept)
    np.testing.assert_allclose(atoms.positions, before.positions + 0.01, atol=0)


def test_bad_steps_are_refused_and_the_next_good_one_works(model):
    evaluator = model.stepper()
    good = triclinic()
    evaluator.evaluate(good)
    broken = good.copy()
    broken.positions[0, 0] = np.nan
    with pytest.raises(StructureError, match="not finite"):
        evaluator.evaluate(broken)
    close = good.copy()
    evaluator = TrajectoryEvaluator(model.network, skin=20.0)
    evaluator.evaluate(close)
    close.positions[1] = close.positions[0] + (0.0, 0.0, 0.1)
    with pytest.raises(StructureError, match="apart"):
        evaluator.evaluate(close)
    assert evaluator.rebuilds == 1, "the list itself still held"
    with pytest.raises(UnknownElementError, match="Xe"):
        evaluator.evaluate(Atoms("Xe", cell=(4, 4, 4), pbc=True))
    with pytest.raises(SettingsError, match="polarizability"):
        evaluator.evaluate(good, observables=("energy", "polarizability"))
    with pytest.raises(InputError, match="three finite"):
        evaluator.evaluate(good, field=(0, np.inf, 0))
    with pytest.raises(SettingsError, match="skin"):
        TrajectoryEvaluator(model.network, skin=-1)
    assert_fresh(evaluator.evaluate(good), model, good)


def test_results_that_are_not_finite_are_refused():
    model = small_model(seed=1000)  # a network of its own: others are shared
    model.network.scale_shift.scale.fill_(float("nan"))
    with pytest.raises(EvaluationError, match="not finite"):
        model.stepper().evaluate(triclinic())


def test_the_calculator_steps_and_keeps_its_list(model, monkeypatch):
    atoms = triclinic()
    atoms.calc = FieldCalculator(model, electric_field=FIELD)
    fresh = []
    monkeypatch.setattr(model, "evaluate", lambda *args: fresh.append(args))
    stepper = atoms.calc._stepper
    for step in range(3):
        atoms.positions[1, 2] += 0.01
        atoms.get_forces()
        atoms.get_potential_energy()
        atoms.get_stress()
        assert ("polarization" in atoms.calc.results) == (step > 0), "it comes along once it was asked for"
        atoms.calc.get_property("polarization", atoms)
    assert stepper.rebuilds == 1
    assert not fresh
    monkeypatch.undo()
    expected = model.evaluate(atoms, FIELD, (*FIRST_ORDER_OBSERVABLES, "born_effective_charges"))
    for name in ("forces", "polarization", "born_effective_charges"):
        np.testing.assert_allclose(atoms.calc.get_property(name, atoms), expected.get(name), rtol=0, atol=1e-12)


def test_energy_is_conserved_in_a_field(model):
    atoms = cubic()
    atoms.calc = FieldCalculator(model, electric_field=FIELD)
    atoms.calc._stepper = TrajectoryEvaluator(model.network, skin=0.1)
    random = np.random.default_rng(5)
    atoms.set_velocities(random.normal(scale=0.02, size=(len(atoms), 3)))
    kinetic = atoms.get_kinetic_energy()
    dynamics = VelocityVerlet(atoms, timestep=1.0 * units.fs)
    totals, moved = [], []
    for _ in range(30):
        dynamics.run(2)
        totals.append(atoms.get_total_energy())
        moved.append(atoms.get_kinetic_energy() - kinetic)
    assert atoms.calc._stepper.rebuilds > 1, "the run was too short to try a new list"
    assert np.ptp(moved) > 1e-4, "nothing was exchanged with the potential energy"
    assert np.ptp(totals) < 0.02 * np.ptp(moved)


def test_a_relaxation_of_the_cell_ends_where_fresh_evaluations_end(model):
    ends = []
    for stepping in (True, False):
        atoms = triclinic()
        atoms.calc = FieldCalculator(model)
        if not stepping:
            atoms.calc._stepper = None
        BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.0, steps=8)
        ends.append(atoms)
    np.testing.assert_allclose(ends[0].positions, ends[1].positions, atol=1e-9)
    np.testing.assert_allclose(ends[0].cell[:], ends[1].cell[:], atol=1e-9)
    assert np.abs(ends[0].cell[:] - triclinic().cell[:]).max() > 1e-4


def test_only_models_that_step_are_asked_to(model):
    assert isinstance(model, SteppingModel)
    toy = load_model("toy")
    assert not isinstance(toy, SteppingModel)
    atoms = cubic()
    atoms.calc = FieldCalculator(toy, allow_untrained=True)
    assert np.isfinite(atoms.get_forces()).all()
