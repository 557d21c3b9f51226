"""Errors against scikit-learn and numpy on random arrays, and views on observables against numbers made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from fieldflows.datasets.frame import LabeledFrame
from fieldflows.evaluation.baselines import Baselines
from fieldflows.evaluation.statistics import error_statistics, evaluate_quantities, quantity_evaluation
from fieldflows.training.metrics import ALL_QUANTITIES, DETAILS, QUANTITIES, collect, evaluate_metrics
from fieldflows.units import E_PER_A2_TO_UC_PER_CM2, EPSILON_VACUUM

LABELS = ("energy", "forces", "stress", "polarization", "born_effective_charges", "polarizability")


def frame(seed: int, n: int = 4, split: str = "test") -> LabeledFrame:
    rng = np.random.default_rng(seed)
    cell = 5 * np.eye(3) + rng.uniform(-0.5, 0.5, (3, 3))
    atoms = Atoms("SrTiO3"[:2] * n, positions=rng.uniform(0, 5, (n, 3)), cell=cell, pbc=True)
    labels = {
        "energy": np.array(rng.normal()),
        "forces": rng.normal(size=(n, 3)),
        "stress": rng.normal(size=(3, 3)),
        "polarization": 1e-3 * rng.normal(size=3),
        "born_effective_charges": rng.normal(size=(n, 3, 3)),
        "polarizability": EPSILON_VACUUM * (5 * np.eye(3) + rng.normal(size=(3, 3))),
    }
    return LabeledFrame(atoms, labels, f"Sr{n}", "made", seed, split=split)


def perturbed(item: LabeledFrame, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1000 + seed)
    return {key: value * (1 + 0.1 * rng.normal(size=value.shape)) for key, value in item.labels.items()}


@pytest.mark.parametrize("seed", range(3))
def test_errors_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=300) * 10.0 ** rng.integers(-3, 3)
    predicted = reference + rng.normal(size=300)
    found = error_statistics(reference, predicted, vectors=True)
    assert found.mae == pytest.approx(mean_absolute_error(reference, predicted), rel=1e-12)
    assert found.rmse == pytest.approx(root_mean_squared_error(reference, predicted), rel=1e-12)
    assert found.r2 == pytest.approx(r2_score(reference, predicted), rel=1e-9)
    difference = (predicted - reference).reshape(100, 3)
    assert found.distance == pytest.approx(np.mean([np.sqrt(d @ d) for d in difference]))


def test_a_quantity_knows_its_labels_and_the_factor():
    reference = np.array([1.0, 2.0, 3.0])
    found = quantity_evaluation("x", "e", reference, reference + 0.5, {"zero": (reference, 0 * reference)}, 3)
    assert (found.label_mean, found.count) == (2.0, 3)
    assert found.label_spread == pytest.approx(np.std([1, 2, 3]))
    assert found.factor("zero", "mae") == pytest.approx(4.0)
    assert found.factor("zero") == pytest.approx(np.sqrt(14 / 3) / 0.5)
    assert found.factor("forest") is None
    assert (
        quantity_evaluation("x", "e", reference, reference, {"zero": (reference, 0 * reference)}, 3).factor("zero")
        is None
    )


def test_diagonal_and_off_diagonal_make_the_whole():
    frames = [frame(k) for k in range(5)]
    predictions = [perturbed(item, k) for k, item in enumerate(frames)]
    found = collect(frames, predictions, ALL_QUANTITIES)
    for whole, scale in (("stress", 1e3),):
        parts = np.concatenate([found[f"{whole}_diagonal"][2], found[f"{whole}_off_diagonal"][2]])
        assert np.sort(parts) == pytest.approx(np.sort(found[whole][2]))
        assert np.sort(parts) == pytest.approx(np.sort(np.concatenate([p[whole].ravel() * scale for p in predictions])))
    charges = np.concatenate([found["born_charge_diagonal"][1], found["born_charge_off_diagonal"][1]])
    expected = np.concatenate([item.labels["born_effective_charges"].ravel() for item in frames])
    assert np.sort(charges) == pytest.approx(np.sort(expected))


def test_views_in_closed_form():
    item = frame(0)
    labels = {"polarizability": EPSILON_VACUUM * np.diag([1.0, 2.0, 6.0]), "polarization": np.array([3e-3, 0, 4e-3])}
    item = item.with_(labels=labels)
    found = collect([item], [labels], ALL_QUANTITIES)
    assert found["epsilon_electronic_mean"][1] == pytest.approx([4.0])
    assert found["refractive_index"][1] == pytest.approx([2.0])
    assert found["polarization_norm"][1] == pytest.approx([5e-3 * E_PER_A2_TO_UC_PER_CM2])
    assert {name: found[name][0].unit for name in found} == {
        "polarization": "µC/cm²", "polarization_norm": "µC/cm²", "epsilon_electronic_diagonal": "1",
        "epsilon_electronic_off_diagonal": "1", "epsilon_electronic_mean": "1", "refractive_index": "1",
    }  # fmt: skip


def test_what_training_reports_is_untouched():
    """Details stand beside the quantities of a training run, and do not change them."""
    names = [quantity.name for quantity in QUANTITIES]
    assert not {quantity.name for quantity in DETAILS} & set(names)
    frames = [frame(k) for k in range(2)]
    predictions = [perturbed(item, k) for k, item in enumerate(frames)]
    assert list(evaluate_metrics(frames, predictions)) == names
    assert [q.name for q in ALL_QUANTITIES if q.name in names] == names
    assert len(ALL_QUANTITIES) == len(names) + len(DETAILS)


def test_all_quantities_beside_their_baselines():
    train, frames = [frame(100 + k, split="train") for k in range(4)], [frame(k) for k in range(3)]
    predictions = [perturbed(item, k) for k, item in enumerate(frames)]
    found = evaluate_quantities(frames, predictions, Baselines(train, LABELS, forest="off"))
    assert list(found) == [quantity.name for quantity in ALL_QUANTITIES]
    assert {name: tuple(item.baselines) for name, item in found.items() if "polariz" in name or "energy" in name} == {
        "energy_per_atom": ("composition",), "polarization": ("zero",), "polarization_norm": ("zero",),
    }  # fmt: skip
    zero = found["forces"].baselines["zero"]
    assert zero.mae == pytest.approx(1e3 * np.mean([np.abs(item.labels["forces"]).mean() for item in frames]))
    assert found["forces"].model.distance is not None
    assert found["born_charge_diagonal"].model.distance is None
    assert found["forces"].frames == 3


def test_masked_labels_count_only_where_they_are():
    one, two = frame(0), frame(1)
    two = two.with_(labels={"energy": two.labels["energy"]})
    found = evaluate_quantities([one, two], [one.labels, one.labels], Baselines([], LABELS, forest="off"))
    assert found["energy_per_atom"].frames == 2
    assert found["forces"].frames == 1
    assert found["forces"].model.mae == 0.0


def test_perfect_predictions_modulo_quanta_score_zero():
    frames = [frame(k) for k in range(6)]
    rng = np.random.default_rng(0)
    predictions = []
    for item in frames:
        quanta = item.atoms.cell[:] / item.atoms.get_volume()
        predictions.append({"polarization": item.labels["polarization"] + rng.integers(-3, 4, size=3) @ quanta})
    found = evaluate_quantities(frames, predictions, Baselines([], ("polarization",), forest="off"))
    assert found["polarization"].model.rmse < 1e-12 * E_PER_A2_TO_UC_PER_CM2
    assert found["polarization_norm"].model.rmse < 1e-12 * E_PER_A2_TO_UC_PER_CM2
    assert found["polarization"].baselines["zero"].rmse > 0.1
