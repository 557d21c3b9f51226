from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldflows.backends.mace_field.derivatives import respond
from fieldflows.backends.mace_field.engine.engine import fastest
from fieldflows.training.config import Term
from fieldflows.training.data import make_batch, make_frames
from fieldflows.training.losses import Loss, displaced, fold_polarization, penalty, random_directions, standard_normal
from fieldflows.training.metrics import fold
from fieldflows.training.response import directional_response
from tests.training.crystals import LABELS, small_dataset, teacher

CELL = torch.tensor([[4.0, 0.3, 0.1], [-0.2, 5.0, 0.4], [0.6, -0.5, 6.0]], dtype=torch.float64)


@pytest.fixture(scope="module")
def dataset():
    return small_dataset(3, 1, 0)


def frames_of(dataset, labels=LABELS, energies=None):
    numbers = teacher().config.atomic_numbers
    return make_frames(dataset.frames, labels, numbers, 3.5, torch.float64, energies)


@settings(deadline=None)
@given(st.floats(-3, 3), st.floats(0.05, 2))
def test_huber_agrees_with_torch(error, delta):
    x = torch.tensor([error], dtype=torch.float64)
    ours = penalty(x, Term(kind="huber", delta=delta), 1.0)
    torch.testing.assert_close(ours, torch.nn.functional.huber_loss(x, torch.zeros_like(x), "none", delta))
    torch.testing.assert_close(penalty(x, Term(kind="l1"), 2.0), x.abs() / 2)
    torch.testing.assert_close(penalty(x, Term(kind="mse"), 2.0), x**2 / 4)


@settings(deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=3, max_size=3), st.lists(st.floats(-0.45, 0.45), min_size=3, max_size=3))
def test_folding_removes_whole_quanta_of_a_triclinic_cell(whole, fraction):
    quanta = CELL / torch.linalg.det(CELL)
    small = torch.tensor(fraction, dtype=torch.float64) @ quanta
    shifted = small + torch.tensor(whole, dtype=torch.float64) @ quanta
    folded = fold_polarization(shifted[None], CELL[None])[0]
    torch.testing.assert_close(folded, small, atol=1e-12, rtol=0)
    np.testing.assert_allclose(fold(shifted.numpy(), CELL.numpy()), small.numpy(), atol=1e-12)


def test_folding_keeps_the_gradient():
    difference = torch.tensor([[0.4, -0.3, 0.9]], dtype=torch.float64, requires_grad=True)
    fold_polarization(difference, CELL[None]).sum().backward()
    torch.testing.assert_close(difference.grad, torch.ones(1, 3, dtype=torch.float64))


def test_exact_predictions_have_no_loss_and_every_quantum_is_forgiven(dataset):
    batch = make_batch(frames_of(dataset), LABELS)
    loss = Loss({key: Term(kind="mse") for key in LABELS}, dict.fromkeys(LABELS, 1.0))
    exact = {key: value.clone() for key, value in batch.targets.items()}
    assert float(loss(exact, batch)[0]) == 0.0
    cell = batch.graph["cell"].view(-1, 3, 3)
    quanta = cell / torch.linalg.det(cell).abs()[:, None, None]
    exact["polarization"] = exact["polarization"] + 2 * quanta[:, 0] - quanta[:, 2]
    assert float(loss(exact, batch)[0]) < 1e-24


def test_normalization_by_structures_and_by_atoms(dataset):
    """Two frames of 2 and 4 atoms with errors 1 and 2: (1 + 4)/2 by structures, (2·1 + 4·4)/6 by atoms."""
    from ase.build import make_supercell

    first = dataset.frames[0]
    double = make_supercell(first.atoms, np.diag([2, 1, 1]))
    items = [
        first.with_(labels={"born_effective_charges": np.zeros((2, 3, 3))}),
        first.with_(atoms=double, labels={"born_effective_charges": np.zeros((4, 3, 3))}),
    ]
    frames = make_frames(items, LABELS, teacher().config.atomic_numbers, 3.5, torch.float64)
    batch = make_batch(frames, LABELS)
    predictions = {"born_effective_charges": torch.cat([torch.ones(2, 3, 3), 2 * torch.ones(4, 3, 3)]).double()}
    key = "born_effective_charges"
    by_structures = Loss({key: Term(kind="mse", weight=3.0)}, {key: 1.0})
    by_atoms = Loss({key: Term(kind="mse", normalization="atoms")}, {key: 1.0})
    assert float(by_structures(predictions, batch)[0]) == pytest.approx(3 * 2.5)
    assert float(by_atoms(predictions, batch)[0]) == pytest.approx(3.0)


def test_missing_labels_do_not_count(dataset):
    full, partial = dataset.frames[0], dataset.frames[1]
    partial = partial.with_(labels={"polarizability": partial.labels["polarizability"]})
    frames = make_frames([full, partial], LABELS, teacher().config.atomic_numbers, 3.5, torch.float64)
    batch = make_batch(frames, LABELS)
    loss = Loss({key: Term(kind="mse") for key in LABELS}, dict.fromkeys(LABELS, 1.0))
    predictions = {key: value.clone() for key, value in batch.targets.items()}
    predictions["born_effective_charges"][2:] += 100.0  # the atoms of the frame without such a label
    predictions["energy"][1] += 7.0
    assert float(loss(predictions, batch)[0]) == 0.0
    predictions["polarizability"][1] += 0.2
    assert float(loss(predictions, batch)[0]) == pytest.approx(0.04 / 2)


def test_energies_are_compared_without_baseline_and_per_atom(dataset):
    numbers = teacher().config.atomic_numbers
    energies = [-3.0, -2.0, -1.0, -4.0, -2.5, -1.5]
    frames = frames_of(dataset, ("energy",), energies)
    batch = make_batch(frames, ("energy",))
    for frame, target in zip(frames, batch.targets["energy"], strict=True):
        baseline = sum(energies[numbers.index(z)] for z in frame.atoms.numbers)
        assert float(target) == pytest.approx(float(frame.labels["energy"]) - baseline)
    loss = Loss({"energy": Term(kind="l1")}, {"energy": 1.0})
    assert float(loss({"energy": batch.targets["energy"] + 1.0}, batch)[0]) == pytest.approx(0.5)


@pytest.mark.parametrize("fast", [False, True])
def test_one_direction_is_the_contraction_of_the_full_response(dataset, fast):
    network = teacher()
    evaluator = fastest(network) if fast else network
    batch = make_batch(frames_of(dataset), LABELS)
    directions = random_directions(batch.n_graphs, seed=1, step=2, like=batch.graph["positions"])
    along = directional_response(evaluator, batch, directions)
    full = respond(network, batch.graph, LABELS)
    full["energy"] = full["energy"].detach()
    expected = dict(full)
    expected["born_effective_charges"] = torch.einsum(
        "ni,nij->nj", directions[batch.graph["batch"]], full["born_effective_charges"]
    )
    expected["polarizability"] = torch.einsum("gij,gj->gi", full["polarizability"], directions)
    assert set(along) == set(LABELS)
    for key in LABELS:
        torch.testing.assert_close(along[key].detach(), expected[key], atol=1e-11, rtol=1e-10)


def test_mean_over_directions_is_the_full_mean_square(dataset):
    """For v = e_i the mean over i of |v·ΔZ|²/(3n) is |ΔZ|²/(9n)."""
    batch = make_batch(frames_of(dataset), ("born_effective_charges", "polarizability"))
    loss = Loss({key: Term(kind="mse") for key in batch.targets}, dict.fromkeys(batch.targets, 1.0))
    torch.manual_seed(0)
    predictions = {key: torch.randn_like(value) for key, value in batch.targets.items()}
    total = 0.0
    for axis in range(3):
        v = torch.zeros(batch.n_graphs, 3, dtype=torch.float64)
        v[:, axis] = 1.0
        along = {
            "born_effective_charges": torch.einsum(
                "ni,nij->nj", v[batch.graph["batch"]], predictions["born_effective_charges"]
            ),
            "polarizability": torch.einsum("gij,gj->gi", predictions["polarizability"], v),
        }
        total += float(loss(along, batch, v)[0]) / 3
    assert total == pytest.approx(float(loss(predictions, batch)[0]), rel=1e-12)


def test_random_directions_depend_on_seed_and_step_alone():
    like = torch.zeros(1, dtype=torch.float64)
    first = random_directions(5, 1, 2, like)
    torch.testing.assert_close(random_directions(5, 1, 2, like), first, atol=0, rtol=0)
    assert not torch.equal(random_directions(5, 1, 3, like), first)
    torch.testing.assert_close(first.square().sum(1), torch.ones(5, dtype=torch.float64))
    many = random_directions(40000, 0, 0, like)
    torch.testing.assert_close(
        torch.einsum("gi,gj->ij", many, many) / len(many) * 3, torch.eye(3, dtype=torch.float64), atol=0.03, rtol=0
    )


def test_displacements_depend_on_seed_and_step_and_leave_the_original(dataset):
    network = teacher()
    batch = make_batch(frames_of(dataset), LABELS)
    before = batch.graph["positions"].clone()
    n = len(before)
    moved = displaced(batch.graph, 0.05, standard_normal(n, seed=1, step=2))
    assert torch.equal(batch.graph["positions"], before)
    assert torch.equal(displaced(batch.graph, 0.05, standard_normal(n, 1, 2))["positions"], moved["positions"])
    assert not torch.equal(displaced(batch.graph, 0.05, standard_normal(n, 1, 3))["positions"], moved["positions"])
    torch.testing.assert_close(fastest(network)(moved)[0], network(moved)[0], atol=1e-10, rtol=1e-10)
    widths = [displaced(batch.graph, 0.05, standard_normal(n, 0, step))["positions"] - before for step in range(300)]
    assert float(torch.stack(widths).std()) == pytest.approx(0.05, rel=0.03)


def test_parts_of_a_batch_add_up_to_the_loss_of_the_whole(dataset):
    """Numerators and normalizations are sums over frames, with weights per frame and label."""
    frames = frames_of(dataset)
    frames = [
        replace(f, weight=w, label_weights={"forces": 0.5 * w})
        for f, w in zip(frames, (1.0, 2.0, 0.3, 1.7), strict=True)
    ]
    terms = {key: Term(weight=1.5) for key in LABELS}
    terms["forces"] = Term(normalization="atoms")
    loss = Loss(terms, dict.fromkeys(LABELS, 1.0))
    torch.manual_seed(1)
    whole = make_batch(frames, LABELS)
    predictions = {key: torch.randn_like(value) for key, value in whole.targets.items()}
    total = dict.fromkeys(LABELS, 0.0)
    for g, frame in enumerate(frames):
        atoms = whole.owner == g
        part = {
            key: value[atoms] if len(value) == len(atoms) else value[g : g + 1] for key, value in predictions.items()
        }
        for key, value in loss.numerators(part, make_batch([frame], LABELS)).items():
            total[key] += float(value)
    norms = loss.normalizations(frames)
    assert norms["energy"] == pytest.approx(sum(f.weight for f in frames))
    assert norms["forces"] == pytest.approx(sum(0.5 * f.weight**2 * len(f.atoms) for f in frames))
    for key, value in loss.normalizations(whole).items():
        assert float(value) == pytest.approx(norms[key], rel=1e-14)
    expected, parts = loss(predictions, whole)
    assert sum(total[key] / norms[key] for key in LABELS) == pytest.approx(float(expected), rel=1e-13)
    assert float(parts["forces"]) == pytest.approx(total["forces"] / norms["forces"], rel=1e-13)
