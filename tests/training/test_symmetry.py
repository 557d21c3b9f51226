"""The reduced computation against the one along three axes, on the same frames: values, losses and gradients."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.spacegroup import crystal
from scipy.spatial.transform import Rotation

from fieldflows.backends.mace_field.derivatives import respond
from fieldflows.backends.mace_field.engine.engine import fastest
from fieldflows.backends.mace_field.graphs import build_graph
from fieldflows.backends.mace_field.network import NetworkConfig, build_network
from fieldflows.datasets.frame import LabeledFrame
from fieldflows.training.config import Term
from fieldflows.training.data import make_batch, make_frames
from fieldflows.training.evaluation import predict
from fieldflows.training.losses import Loss
from fieldflows.training.response import full_response
from fieldflows.training.sampler import BatchLimits, epoch_batches
from fieldflows.training.symmetry import FrameSymmetry, Outcome, bring_to_symmetry, describe, summarize
from tests.training.crystals import LABELS

NUMBERS = [8, 14, 16, 22, 30, 38]
CUTOFF = 3.6
SECOND = ("born_effective_charges", "polarizability")


def turned(atoms: Atoms, seed: int) -> Atoms:
    """Return a crystal in another orientation, in another cell of the same lattice, with its atoms in other images."""
    random = np.random.default_rng(seed)
    atoms = make_supercell(atoms, [[1, 1, 0], [0, 1, 0], [0, -1, 1]])
    rotation = Rotation.random(random_state=seed).as_matrix()
    atoms.set_cell(atoms.cell[:] @ rotation.T, scale_atoms=True)
    atoms.positions += random.integers(-1, 2, size=(len(atoms), 3)) @ atoms.cell[:]
    return atoms


def of_group(number: int, parameters: tuple[float, ...], **sites: tuple[float, ...]) -> Atoms:
    """Return the crystal of a space group (standard setting) with one site per element."""
    return crystal(list(sites), list(sites.values()), spacegroup=number, cellpar=list(parameters))


def crystals() -> dict[str, tuple[Atoms, int]]:
    """Return crystals of all systems with plausible distances, and the field directions that each point group needs."""
    return {
        "cubic": (
            of_group(221, (3.905, 3.905, 3.905, 90, 90, 90), Sr=(0, 0, 0), Ti=(0.5, 0.5, 0.5), O=(0.5, 0.5, 0)),
            1,
        ),
        "cubic, centered": (bulk("ZnS", "zincblende", a=5.41, cubic=True), 1),
        "hexagonal": (bulk("ZnO", "wurtzite", a=3.25, c=5.2, u=0.382), 1),
        "trigonal": (of_group(150, (4.6, 4.6, 3.4, 90, 90, 120), Ti=(0, 0, 0), O=(0.31, 0, 0.5)), 1),
        "trigonal, chiral": (of_group(152, (4.2, 4.2, 5.1, 90, 90, 120), Si=(0.47, 0, 1 / 3)), 1),
        "tetragonal": (of_group(136, (4.59, 4.59, 2.96, 90, 90, 90), Ti=(0, 0, 0), O=(0.305, 0.305, 0)), 1),
        "tetragonal, polar": (of_group(75, (4.6, 4.6, 3.3, 90, 90, 90), Ti=(0, 0, 0), O=(0.2, 0.33, 0.41)), 1),
        "orthorhombic": (of_group(25, (4.1, 5.3, 3.7, 90, 90, 90), Zn=(0, 0, 0.1), S=(0.27, 0.36, 0.3)), 1),
        "monoclinic": (of_group(10, (4.4, 4.8, 3.9, 90, 103, 90), Zn=(0.2, 0, 0.4), O=(0.1, 0.3, 0.8)), 2),
        "triclinic": (of_group(2, (4.4, 4.1, 3.9, 97, 103, 88), Si=(0.2, 0.3, 0.4), O=(0.7, 0.1, 0.8)), 3),
    }


CRYSTALS = crystals()


def labeled(atoms: Atoms, name: str, labels=LABELS) -> LabeledFrame:
    """Return a frame with labels that obey no symmetry at all."""
    random = np.random.default_rng([len(atoms), sum(map(ord, name))])
    n = len(atoms)
    shapes = {"energy": (), "forces": (n, 3), "stress": (3, 3), "polarization": (3,),
              "born_effective_charges": (n, 3, 3), "polarizability": (3, 3)}  # fmt: skip
    return LabeledFrame(atoms, {key: random.normal(size=shapes[key]) for key in labels}, name, "test", 0)


@lru_cache
def network(dtype=torch.float64):
    config = NetworkConfig(
        atomic_numbers=NUMBERS, atomic_energies=[0.0] * len(NUMBERS), r_max=CUTOFF, max_ell=3,
        hidden_irreps="4x0e + 4x1o", MLP_irreps="4x0e", correlation=3, num_bessel=4, radial_MLP=[8],
        avg_num_neighbors=8.0, element_polarizability=True,
    )  # fmt: skip
    made = build_network(config, dtype=dtype, seed=5)
    with torch.no_grad():
        made.element_polarizability.copy_(torch.linspace(0.1, 0.3, len(NUMBERS)))
        made.field_linear[0].weight.mul_(10.0)
    return made


@lru_cache
def engine(dtype=torch.float64):
    return fastest(network(dtype))


def frames_of(names, dtype=torch.float64, labels=LABELS):
    items = [labeled(CRYSTALS[name][0], name, labels) for name in names]
    return make_frames(items, labels, NUMBERS, CUTOFF, dtype, symprec=1e-3)


BY_ATOMS = Term(kind="l1", normalization="atoms")
LOSSES = {
    "huber": Loss({key: Term(kind="huber", delta=0.7, weight=1.3) for key in LABELS}, dict.fromkeys(LABELS, 0.8)),
    "l1": Loss({**{key: Term(kind="l1") for key in LABELS}, SECOND[0]: BY_ATOMS}, dict.fromkeys(LABELS, 1.0)),
}


def gradients(batch, loss, dtype):
    parameters = dict(network(dtype).named_parameters())
    value, parts = loss(full_response(engine(dtype), batch, create_graph=True), batch)
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return value.detach(), {k: v.detach() for k, v in parts.items()}, dict(zip(parameters, found, strict=True))


def plain(frames):
    """Return the same frames as they are, along three directions."""
    made = []
    for frame in frames:
        graph = build_graph(frame.atoms, NUMBERS, CUTOFF, frame.graph["node_attrs"].dtype)
        made.append(replace(frame, graph=graph, outcome=None))
    return made


def compare(frames, loss, value_tolerance=1e-10, gradient_tolerance=1e-9, dtype=torch.float64):
    """Hold loss, parts and gradients with and without reduction against each other; return the reduced batch."""
    batch = make_batch(frames, LABELS)
    value, parts, found = gradients(batch, loss, dtype)
    whole, whole_parts, expected = gradients(make_batch(plain(frames), LABELS), loss, dtype)
    torch.testing.assert_close(value, whole, rtol=value_tolerance, atol=0)
    for key, part in whole_parts.items():
        torch.testing.assert_close(parts[key], part, rtol=value_tolerance, atol=value_tolerance * float(whole))
    largest = max(float(g.abs().max()) for g in expected.values())
    assert largest > 0
    for name, gradient in expected.items():
        size = max(float(gradient.abs().max()), 1e-3 * largest)
        difference = float((found[name] - gradient).abs().max())
        assert difference <= gradient_tolerance * size, (name, difference / size)
    return batch


@pytest.mark.parametrize("orientation", ["as given", "turned"])
@pytest.mark.parametrize("name", list(CRYSTALS))
def test_loss_and_gradients_are_those_of_three_directions(name, orientation):
    atoms, count = CRYSTALS[name]
    frames = make_frames(
        [labeled(turned(atoms, 7) if orientation == "turned" else atoms, name)], LABELS, NUMBERS, CUTOFF,
        torch.float64, symprec=1e-3,
    )  # fmt: skip
    assert frames[0].cost.directions == count
    assert (frames[0].outcome.kind == "reduced") == (count < 3)
    batch = compare(frames, LOSSES["huber"])
    assert (batch.reduction is None) == (count == 3)
    if batch.reduction is not None:
        assert batch.reduction.count == count


@pytest.mark.parametrize("loss", list(LOSSES))
def test_batches_that_mix_numbers_of_directions(loss):
    frames = frames_of(["hexagonal", "monoclinic", "triclinic", "orthorhombic", "cubic, centered"])
    assert [frame.cost.directions for frame in frames] == [1, 2, 3, 1, 1]
    batch = compare(frames, LOSSES[loss])
    assert batch.reduction.count == 3
    batch = compare(frames[:2], LOSSES[loss])
    assert batch.reduction.count == 2


def test_single_precision_agrees_within_its_rounding():
    frames = frames_of(["hexagonal", "monoclinic", "tetragonal"], torch.float32)
    batch = compare(frames, LOSSES["huber"], 2e-5, 2e-3, torch.float32)
    assert batch.reduction.directions.dtype == batch.graph["positions"].dtype
    assert network(torch.float32).dtype == torch.float32


def test_masked_tensors_change_nothing():
    """Frames without some label beside others that have it: the loss sees neither their labels nor their products."""
    partial = [
        labeled(CRYSTALS["hexagonal"][0], "hexagonal", ("energy", "forces")),
        labeled(CRYSTALS["monoclinic"][0], "monoclinic", ("energy", "polarizability")),
        labeled(CRYSTALS["orthorhombic"][0], "orthorhombic", LABELS),
    ]
    frames = make_frames(partial, LABELS, NUMBERS, CUTOFF, torch.float64, symprec=1e-3)
    assert [frame.cost.directions for frame in frames] == [0, 2, 1]
    batch = compare(frames, LOSSES["huber"])
    assert batch.reduction.count == 2
    assert not batch.reduction.directions[:, 0].any()


class Counting:
    """An evaluator that counts what is asked of it."""

    def __init__(self, evaluator, monkeypatch):
        self.evaluator, self.device = evaluator, evaluator.device
        self.forwards, self.backwards, self.inputs = 0, 0, []
        original = torch.autograd.grad

        def grad(outputs, inputs, *arguments, **options):
            self.backwards += 1
            self.inputs.append(len(inputs))
            return original(outputs, inputs, *arguments, **options)

        monkeypatch.setattr(torch.autograd, "grad", grad)

    def __call__(self, *arguments, **options):
        self.forwards += 1
        return self.evaluator(*arguments, **options)


@pytest.mark.parametrize(
    ("labels", "backwards", "inputs"),
    [
        (("energy",), 0, []),
        (("energy", "forces", "stress"), 1, [2]),
        (("polarization",), 1, [1]),
        (("polarizability",), 2, [1, 1]),
        (SECOND, 2, [1, 2]),
        (LABELS, 2, [3, 2]),
    ],
)
def test_no_derivative_without_its_label(monkeypatch, labels, backwards, inputs):
    frames = frames_of(["hexagonal", "orthorhombic"], labels=labels)
    counting = Counting(engine(), monkeypatch)
    results = full_response(counting, make_batch(frames, LABELS), create_graph=True)
    assert set(results) == set(labels)
    assert (counting.forwards, counting.backwards) == (1, backwards)
    assert counting.inputs == inputs


def test_predictions_for_evaluation_are_equal():
    names = ["triclinic", "cubic", "monoclinic", "hexagonal", "trigonal, chiral"]
    reduced = frames_of(names)
    loss, limits = LOSSES["huber"], BatchLimits(3)
    found, parts = predict(engine(), reduced, LABELS, limits, loss)
    expected, whole = predict(engine(), plain(reduced), LABELS, limits, loss)
    for mine, theirs in zip(found, expected, strict=True):
        assert set(mine) == set(theirs) == set(LABELS)
        for key in LABELS:
            np.testing.assert_allclose(mine[key], theirs[key], rtol=1e-9, atol=1e-11)
    assert parts == pytest.approx(whole, rel=1e-10)


def test_batches_hold_one_number_of_directions():
    frames = frames_of([*CRYSTALS, *CRYSTALS], labels=SECOND)
    costs = [frame.cost for frame in frames]
    batches = epoch_batches(costs, BatchLimits(4), seed=1, epoch=0)
    assert sorted(i for batch in batches for i in batch) == list(range(len(frames)))
    counts = [{costs[i].directions for i in batch} for batch in batches]
    assert all(len(found) == 1 for found in counts)
    assert {count for found in counts for count in found} == {1, 2, 3}


@pytest.mark.parametrize("shape", ["centered", "supercell"])
def test_primitive_cells_stand_for_larger_ones(shape):
    """Eight atoms of zincblende as two; a row of rock-salt cells, whose shape hides its threefold axes."""
    atoms = (
        CRYSTALS["cubic, centered"][0]
        if shape == "centered"
        else make_supercell(bulk("ZnO", "rocksalt", a=4.28), np.diag([3, 1, 1]))
    )
    frames = make_frames([labeled(turned(atoms, 3), shape)], LABELS, NUMBERS, CUTOFF, torch.float64, symprec=1e-3)
    assert len(frames[0].atoms) == len(atoms) > 2
    assert frames[0].cost.atoms == 2
    assert frames[0].cost.directions == 1
    batch = compare(frames, LOSSES["l1"])
    assert batch.reduction.multiplicity.tolist() == [len(atoms) / 2]
    assert len(batch.owner) == len(atoms)


def distorted(atoms, seed=0):
    random = np.random.default_rng(seed)
    noisy = atoms.copy()
    noisy.positions += 1e-4 * random.uniform(-1, 1, size=noisy.positions.shape)
    noisy.set_cell(noisy.cell[:] * (1 + 2e-5 * random.uniform(-1, 1, size=(3, 3))), scale_atoms=True)
    return noisy


def test_a_slightly_distorted_crystal_is_brought_to_its_symmetry():
    noisy = distorted(CRYSTALS["cubic"][0])
    before = noisy.copy()
    moved, outcome = bring_to_symmetry(noisy, 1e-3)
    assert outcome.kind == "reduced"
    assert 1e-5 < outcome.moved < 4e-4
    assert noisy == before
    assert np.abs(moved.positions - noisy.positions).max() < 5e-4
    assert np.ptp(moved.cell.lengths()) < 1e-12
    # what the network says of the moved crystal obeys the cubic symmetry, to rounding
    alpha = respond(network(), build_graph(moved, NUMBERS, CUTOFF), ("polarizability",))["polarizability"][0]
    torch.testing.assert_close(alpha, float(alpha[0, 0]) * torch.eye(3, dtype=torch.float64), atol=1e-13, rtol=0)


def test_predictions_move_with_the_atoms_and_no_further():
    """A reduced frame of a distorted crystal differs from the frame as it is in the order of the displacement."""
    frames = make_frames([labeled(distorted(CRYSTALS["cubic, centered"][0]), "x")], LABELS, NUMBERS, CUTOFF,
                         torch.float64, symprec=1e-3)  # fmt: skip
    found, _ = predict(engine(), frames, LABELS, BatchLimits(1))
    expected, _ = predict(engine(), plain(frames), LABELS, BatchLimits(1))
    for key in SECOND:
        scale = np.abs(expected[0][key]).max()
        assert 1e-8 * scale < np.abs(found[0][key] - expected[0][key]).max() < 1e-2 * scale


def test_what_cannot_be_reduced_stays_as_it_is(monkeypatch):
    from fieldflows.errors import EvaluationError
    from fieldflows.training import symmetry

    ideal = CRYSTALS["cubic"][0]
    random = np.random.default_rng(0)
    rattled = ideal.copy()
    rattled.positions += 0.05 * random.normal(size=rattled.positions.shape)
    same, outcome = bring_to_symmetry(rattled, 1e-3)
    assert same is rattled
    assert outcome.kind == "unsymmetric"
    open_cell = ideal.copy()
    open_cell.pbc = [True, True, False]
    assert bring_to_symmetry(open_cell, 1e-3)[1].kind == "unsymmetric"
    found = symmetry.primitive_crystal(ideal.cell[:], ideal.positions, ideal.numbers, 1e-3)
    monkeypatch.setattr(symmetry, "primitive_crystal", lambda *_: replace(found, max_shift=2e-3))
    same, outcome = bring_to_symmetry(ideal, 1e-3)
    assert same is ideal
    assert (outcome.kind, outcome.moved) == ("too far", 2e-3)

    def fail(*_):
        raise EvaluationError("No space group.")

    monkeypatch.setattr(symmetry, "primitive_crystal", fail)
    assert bring_to_symmetry(ideal, 1e-3)[1].kind == "failed"


def test_labels_stay_and_frames_without_second_derivatives_are_not_searched(monkeypatch):
    from fieldflows.training import data

    noisy = distorted(CRYSTALS["cubic"][0])
    item = labeled(noisy, "cubic")
    made = make_frames([item], LABELS, NUMBERS, CUTOFF, torch.float64, symprec=1e-3)[0]
    assert made.outcome.kind == "reduced"
    assert not np.array_equal(made.graph["positions"].numpy(), noisy.positions)
    for key in LABELS:
        np.testing.assert_array_equal(made.labels[key], item.labels[key])
    as_it_is = make_frames([item], LABELS, NUMBERS, CUTOFF, torch.float64)[0]
    assert as_it_is.outcome is None
    np.testing.assert_array_equal(as_it_is.graph["positions"].numpy(), noisy.positions)

    monkeypatch.setattr(data, "bring_to_symmetry", None)
    forces = labeled(noisy, "cubic", ("energy", "forces"))
    skipped = make_frames([forces], LABELS, NUMBERS, CUTOFF, torch.float64, symprec=1e-3)[0]
    assert skipped.outcome.kind == "not needed"
    np.testing.assert_array_equal(skipped.graph["positions"].numpy(), noisy.positions)


def test_the_summary_counts_what_was_done():
    assert summarize([None, Outcome("not needed", symmetry=FrameSymmetry.nothing(2))]) == {}
    one, two = (bring_to_symmetry(CRYSTALS[name][0], 1e-3)[1] for name in ("cubic, centered", "monoclinic"))
    outcomes = [
        replace(one, moved=1e-5), replace(one, moved=3e-5), replace(two, moved=2e-4), None,
        Outcome("unsymmetric"), Outcome("too far", 2e-3), Outcome("failed"),
        Outcome("not needed", symmetry=FrameSymmetry.nothing(2)),
    ]  # fmt: skip
    found = summarize(outcomes)
    assert found == {
        "frames": 6,
        "directions": {"1": 2, "2": 1, "3": 3},
        "left_as_they_are": {"unsymmetric": 1, "too far": 1, "failed": 1},
        "atoms_of_reduced": 22,
        "atoms_in_primitive_cells": 10,
        "moved_median": 3e-5,
        "moved_max": 2e-4,
        "unit": "Å",
    }
    assert "2 need one field direction, 1 two, 3 three" in describe(found)
