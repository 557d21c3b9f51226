"""The forest and the other baselines: what goes in, one seed one answer, and what they are worth."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from fieldflows.datasets.frame import LabeledFrame
from fieldflows.errors import SettingsError
from fieldflows.evaluation import baselines as module
from fieldflows.evaluation import forest
from fieldflows.evaluation.baselines import Baselines
from fieldflows.evaluation.forest import PROPERTIES, CompositionForest, composition_features
from fieldflows.training.metrics import ALL_QUANTITIES
from fieldflows.units import EPSILON_VACUUM

INDEX = next(quantity for quantity in ALL_QUANTITIES if quantity.name == "refractive_index")
MEAN = next(quantity for quantity in ALL_QUANTITIES if quantity.name == "epsilon_electronic_mean")
CHARGE = next(quantity for quantity in ALL_QUANTITIES if quantity.name == "born_charge_diagonal")


def halide(metal: str, anion: str, length: float, epsilon: float) -> LabeledFrame:
    atoms = bulk(metal + anion, "rocksalt", a=length)
    labels = {"polarizability": (epsilon - 1) * EPSILON_VACUUM * np.eye(3)}
    return LabeledFrame(atoms, labels, metal + anion, "made", int(10 * length), split="train")


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch):
    monkeypatch.setattr(forest, "TREES", 30)


@pytest.fixture(scope="module")
def frames() -> list[LabeledFrame]:
    return [
        halide(metal, anion, 4 + 0.3 * i + 0.4 * k, 2 + 0.7 * k + 0.1 * i)
        for k, anion in enumerate(("F", "Cl", "Br", "I"))
        for i, metal in enumerate(("Li", "Na", "K", "Rb", "Cs"))
    ]


def test_features_in_closed_form():
    atoms = Atoms("TiO2", positions=np.zeros((3, 3)), cell=3 * np.eye(3), pbc=True)
    values = composition_features(atoms, [8, 14, 22])
    assert len(values) == 3 + 4 * len(PROPERTIES) + 1
    assert values[:3] == pytest.approx([2 / 3, 0.0, 1 / 3])
    z = PROPERTIES.index("Z")
    mean, spread, low, high = (values[3 + k * len(PROPERTIES) + z] for k in range(4))
    assert mean == pytest.approx((8 + 8 + 22) / 3)
    assert spread == pytest.approx(np.std([8, 8, 22]))
    assert (low, high) == (8, 22)
    x = PROPERTIES.index("X")
    assert values[3 + x] == pytest.approx((2 * 3.44 + 1.54) / 3)  # Pauling
    assert values[-1] == pytest.approx(9.0)
    assert np.isfinite(values).all()


def test_features_do_not_look_at_positions_and_count_formula_units_alike(frames):
    atoms = frames[0].atoms.copy()
    numbers = [3, 9]
    expected = composition_features(atoms, numbers)
    atoms.positions += 0.3
    assert composition_features(atoms, numbers) == pytest.approx(expected)
    assert composition_features(atoms.repeat((2, 1, 1)), numbers) == pytest.approx(expected)


def test_every_element_has_features():
    for z in range(1, 119):
        assert np.isfinite(composition_features(Atoms([z], cell=np.eye(3), pbc=True), [z])).all()


def test_one_seed_one_forest(frames):
    one, two, other = (CompositionForest(frames, seed).predict(frames[:4]) for seed in (3, 3, 4))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_a_forest_learns_what_composition_tells(frames):
    held_out = frames[1::5]
    fitted = CompositionForest([frame for frame in frames if frame not in held_out], seed=0)
    mean, index = fitted.predict(held_out)
    truth = np.array([1 + np.trace(frame.labels["polarizability"]) / (3 * EPSILON_VACUUM) for frame in held_out])
    assert np.abs(mean - truth).mean() < 0.5 * np.abs(truth - np.median(truth)).mean()
    assert np.abs(index - np.sqrt(truth)).mean() < 0.5 * np.abs(np.sqrt(truth) - np.sqrt(np.median(truth))).mean()


def test_baselines_by_quantity(frames):
    made = Baselines(frames, ("born_effective_charges", "polarizability", "polarization"), seed=1)
    assert set(made.definitions) == {"median", "zero", "forest"}
    assert set(made.predict(MEAN, frames[:2])) == {"median", "forest"}
    assert made.predict(CHARGE, frames[:2]) == {}  # no training frame has Z*
    mean, index = made.forest.predict(frames[:2])
    guess = made.predict(MEAN, frames[:2])["forest"][0]["polarizability"]
    assert np.eye(3) + guess / EPSILON_VACUUM == pytest.approx(mean[0] * np.eye(3))
    guess = made.predict(INDEX, frames[:2])["forest"][1]["polarizability"]
    assert 1 + guess[0, 0] / EPSILON_VACUUM == pytest.approx(index[1] ** 2)


def test_without_training_frames_zero_is_all_that_is_left(frames):
    made = Baselines([], ("polarizability", "polarization", "forces"))
    assert made.definitions == {"zero": module.DEFINITIONS["zero"]}
    assert made.predict(MEAN, frames[:1]) == {}


def test_without_scikit_learn(frames, monkeypatch):
    monkeypatch.setattr(forest, "forest_available", lambda: False)
    monkeypatch.setattr(module, "forest_available", lambda: False)
    made = Baselines(frames, ("polarizability",))
    assert made.forest is None
    assert "scikit-learn" in made.note
    assert set(made.predict(MEAN, frames[:1])) == {"median"}
    with pytest.raises(SettingsError, match=r"fieldflows\[evaluation\]"):
        Baselines(frames, ("polarizability",), forest="on")
    assert Baselines(frames, ("polarizability",), forest="off").note == ""
