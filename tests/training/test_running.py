"""Runs with accumulation, averages, patience by label and full disks."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fieldflows.errors import CheckpointError, FieldflowsError, SettingsError, TrainingError
from fieldflows.training.ema import MovingAverage
from fieldflows.training.learner import Learner
from fieldflows.training.loop import train as train_with_figures
from fieldflows.training.optimize import make_optimizer, set_learning_rate
from fieldflows.training.result import Reporter
from fieldflows.training.state import load_state, save_state
from tests.training.crystals import small_dataset, tiny_config

ELECTRONIC = ("born_effective_charges", "polarizability")


def train(config, directory, dataset, **options):
    return train_with_figures(config, directory, dataset=dataset, figures=False, **options)


@pytest.fixture(scope="module")
def dataset():
    return small_dataset(5, 1, 0, names=ELECTRONIC)


def step_losses(directory: Path) -> list[float]:
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "step"]


class Stop(Exception):
    pass


class StopAt(Reporter):
    def __init__(self, step):
        self.at = step

    def step(self, state, loss, learning_rate):
        if state.step == self.at:
            raise Stop


def test_accumulation_changes_nothing_but_rounding_and_may_change_on_the_way(dataset, tmp_path):
    run = {"epochs": 2, "batch_structures": 4, "checkpoint_steps": 1}
    whole = train(tiny_config(run=run), tmp_path / "whole", dataset)
    with pytest.raises(Stop):
        train(tiny_config(run={**run, "micro_structures": 1}), tmp_path / "parts", dataset, reporter=StopAt(2))
    parts = train(tiny_config(run={**run, "micro_structures": 3}), tmp_path / "parts", dataset)
    assert parts.steps == whole.steps == 4
    np.testing.assert_allclose(step_losses(tmp_path / "parts"), step_losses(tmp_path / "whole"), rtol=1e-11)
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    for key, value in load_file(tmp_path / "parts" / "model.safetensors").items():
        torch.testing.assert_close(value, expected[key], rtol=1e-11, atol=1e-11)
    table = (tmp_path / "parts" / "training.log").read_text().splitlines()
    assert "µC/cm²" not in table[2]
    assert [line.split()[0] for line in table if not line.startswith("#")] == ["1", "2"]
    assert table[-1] == f"# ended by: epochs; best at epoch {whole.best['epoch']:g}"


class Remember(Reporter):
    """Keeps the weights after each step."""

    def __init__(self):
        self.weights = []

    def start(self, setup, state, steps_per_epoch, epochs):
        self.parameters = setup.parameters

    def step(self, state, loss, learning_rate):
        self.weights.append({key: value.detach().clone() for key, value in self.parameters.items()})


def test_the_plain_mean_of_the_weights_is_that(dataset, tmp_path):
    run = {"epochs": 3, "average_from": 1, "ema_decay": None, "checkpoint_steps": 1, "batch_structures": 3}
    memory = Remember()
    train(tiny_config(run=run), tmp_path / "whole", dataset, reporter=memory)
    state = load_state(tmp_path / "whole")
    # two steps an epoch, the first epoch is not in it
    assert (state.step, state.averaged) == (6, 4)
    for key, value in state.part("average").items():
        mean = torch.stack([weights[key] for weights in memory.weights[2:]]).mean(dim=0)
        torch.testing.assert_close(value, mean, rtol=1e-13, atol=1e-13)

    with pytest.raises(Stop):
        train(tiny_config(run=run), tmp_path / "broken", dataset, reporter=StopAt(4))
    train(tiny_config(run=run), tmp_path / "broken", dataset)
    again = load_state(tmp_path / "broken").part("average")
    assert all(torch.equal(again[key], value) for key, value in state.part("average").items())


def test_an_average_without_memory_follows_the_weights():
    weight = torch.nn.Parameter(torch.zeros(2))
    average = MovingAverage({"w": weight}, 0.0)
    with torch.no_grad():
        weight.fill_(3.0)
    average.update(1)
    assert average.average["w"].tolist() == [3.0, 3.0]


def test_a_run_stops_by_label_and_remembers_it_when_it_goes_on(dataset, tmp_path):
    """With a step so large that the weights are thrown away, the first evaluation stays the best."""
    settings = {"learning_rate": 3.0, "schedule": "constant", "warm_up_steps": 4}
    run = {"epochs": 9, "label_patience": {"polarizability": 2, "born_effective_charges": 1}, "ema_decay": None}
    config = tiny_config(run={**run, "checkpoint_steps": 1}, optimizer=settings)
    result = train(config, tmp_path, dataset)
    assert result.status == "patience"
    assert result.epochs < 9
    watched = load_state(tmp_path).watched
    assert watched["polarizability"]["waited"] >= 2
    assert watched["born_effective_charges"]["waited"] >= 1
    parts = [record["valid"]["polarizability"] for record in result.history]
    assert watched["polarizability"]["loss"] == min(parts)
    assert train(config, tmp_path, dataset).epochs == result.epochs


def test_the_score_decides_which_weights_are_best(dataset, tmp_path):
    run = {"epochs": 1, "score": {"polarizability": 2.0}}
    record = train(tiny_config(run=run), tmp_path, dataset).history[0]
    assert record["score"] == 2.0 * record["valid"]["polarizability"] != record["valid"]["loss"]
    config = tiny_config(run={"score": {"forces": 1.0}}, loss={"terms": {"forces": {}, "polarizability": {}}})
    with pytest.raises(SettingsError, match=r"run\.score names forces, but no frame"):
        train(config, tmp_path / "other", dataset)


def test_states_from_before_these_settings_are_read(dataset, tmp_path):
    config = tiny_config(run={"epochs": 2, "checkpoint_steps": 1})
    with pytest.raises(Stop):
        train(config, tmp_path, dataset, reporter=StopAt(2))
    state = load_state(tmp_path)
    for name in ("watched", "averaged"):
        delattr(state, name)
    save_state(tmp_path, state)
    assert "watched" not in (tmp_path / "state.safetensors").read_bytes()[:20000].decode(errors="ignore")
    assert train(config, tmp_path, dataset).status == "epochs"


FULL = {
    "log.jsonl": "log.jsonl",
    "training.log": "training.log",
    "model": ".model.safetensors.{pid}.tmp",
    "state": ".state.safetensors.{pid}.tmp",
    "metrics": ".metrics.json.{pid}.tmp",
    "config": "config.{pid}.tmp",
}


@pytest.mark.parametrize(
    "what",
    [pytest.param(name, marks=() if name in ("log.jsonl", "model", "state") else pytest.mark.slow) for name in FULL],
)
def test_a_full_disk_is_one_clear_error_and_the_last_state_is_kept(dataset, tmp_path, what):
    """Writes go to /dev/full, where the kernel answers as a full disk does."""
    config = tiny_config(run={"epochs": 2, "checkpoint_steps": 1})
    with pytest.raises(Stop):
        train(config, tmp_path, dataset, reporter=StopAt(3))
    before = load_state(tmp_path)
    name = tmp_path / FULL[what].format(pid=os.getpid())
    kept = name.read_bytes() if name.exists() else None
    name.unlink(missing_ok=True)
    name.symlink_to("/dev/full")
    with pytest.raises((TrainingError, CheckpointError), match="No space left on device") as caught:
        train(config, tmp_path, dataset)
    assert isinstance(caught.value, FieldflowsError)
    after = load_state(tmp_path)
    assert after.step >= before.step
    name.unlink(missing_ok=True)
    if kept is not None:
        name.write_bytes(kept)
    assert train(config, tmp_path, dataset).steps == 4


def test_rates_of_groups_are_factors_that_a_resumed_run_keeps(dataset, tmp_path):
    parameters = {name: torch.nn.Parameter(torch.ones(2)) for name in ("interactions.a.linear.weight", "b", "c")}
    config = tiny_config(optimizer={"kind": "adam", "weight_decay": 0.1})
    optimizer = make_optimizer(parameters, config.optimizer, {"b": 0.1, "interactions.a.linear.weight": 0.1})
    set_learning_rate(optimizer, 0.5)
    found = {}
    for group in optimizer.param_groups:
        for name, parameter in parameters.items():
            if any(parameter is member for member in group["params"]):
                found[name] = (group["lr"], group["weight_decay"])
    assert found == {"interactions.a.linear.weight": (0.05, 0.1), "b": (0.05, 0.0), "c": (0.5, 0.0)}

    groups = {"readouts": 1e-6, "field": 3.0}
    config = tiny_config(optimizer={"groups": groups}, run={"epochs": 2, "checkpoint_steps": 1})
    memory = Remember()
    train(config, tmp_path / "whole", dataset, reporter=memory)
    moved = {key: float((memory.weights[-1][key] - value).abs().max()) for key, value in memory.weights[0].items()}
    slow = [moved[name] for name in moved if name.startswith("readouts.")]
    fast = [moved[name] for name in moved if name.startswith("field_")]
    # Adam moves weights by about the learning rate in each step
    assert 0 < max(slow) < 1e-5 * max(fast)
    with pytest.raises(Stop):
        train(config, tmp_path / "broken", dataset, reporter=StopAt(2))
    train(config, tmp_path / "broken", dataset)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_learner_leaves_alone_what_has_no_gradient(dataset):
    from fieldflows.training.setup import prepare
    from fieldflows.training.state import TrainingState

    config = tiny_config(optimizer={"kind": "adam", "weight_decay": 0.1, "clip_norm": 1e-3, "warm_up_steps": 0})
    setup = prepare(config, {"train": dataset.subset("train")})
    learner = Learner(config, setup)
    names = list(learner.parameters)
    before = {name: value.detach().clone() for name, value in learner.parameters.items()}
    gradients = [None] * len(names)
    gradients[1] = torch.ones_like(learner.parameters[names[1]])
    norm = torch.nn.utils.get_total_norm([gradients[1]])
    state = TrainingState("c", "d")
    learner.learn(gradients, norm, 0.1, state)
    changed = [name for name in names if not torch.equal(before[name], learner.parameters[name])]
    assert changed == [names[1]]
    assert (state.step, state.batch, state.learning_rate) == (1, 1, 0.1)
    # clipped to a norm of 1e-3, up to the round-off guard of torch
    moments = learner.optimizer.state[learner.parameters[names[1]]]["exp_avg"]
    assert float(moments.norm()) == pytest.approx(0.1 * 1e-3, rel=1e-3)
