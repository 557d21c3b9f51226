"""Several processes: the result of one, and the same end for all."""

import functools
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fieldflows.errors import SettingsError, TrainingError
from fieldflows.training.distributed import SeveralRanks, environment_size, flat_sum, joined
from fieldflows.training.loop import train
from fieldflows.training.result import Reporter
from fieldflows.training.sampler import divide, epoch_batches
from fieldflows.training.setup import prepare
from fieldflows.training.state import load_state
from fieldflows.training.step import effective_limits
from tests.training.crystals import ALL_TERMS, SmallDataset, small_dataset, tiny_config
from tests.training.ranks import finish, run, start

ELECTRONIC = ("born_effective_charges", "polarizability")


def uneven_dataset() -> SmallDataset:
    """Training frames of three kinds of labels, two of them with a polarizability."""
    kinds = (("forces", "energy"), ("born_effective_charges", "polarization"), ("polarizability", "stress"))
    frames = list(small_dataset(8, 2, 0).frames)
    for k, frame in enumerate(frames[:8]):
        frames[k] = frame.with_(labels={key: frame.labels[key] for key in kinds[(0, 1, 2, 0, 1, 2, 0, 1)[k]]})
    return SmallDataset(frames)


def mixed_config(**run):
    terms = {**ALL_TERMS, "forces": {"scale": "spread", "normalization": "atoms"}}
    settings = {"epochs": 2, "batch_structures": 4, "batching": "mixed", "checkpoint_steps": 1, **run}
    return tiny_config(run=settings, loss={"terms": terms})


def random_config(**run):
    settings = {"epochs": 2, "position_noise": 0.01, "checkpoint_steps": 1, **run}
    return tiny_config(
        run=settings, loss={"directions": "random", "terms": {key: {"kind": "mse"} for key in ELECTRONIC}}
    )


CONFIGS = {"unequal labels": mixed_config, "random directions": random_config}


@functools.cache
def dataset_of(name):
    if name == "unequal labels":
        return uneven_dataset()
    return small_dataset(7, 2, 0, names=ELECTRONIC)


def train_case(rank, name, directory, data, **changes):
    result = train(CONFIGS[name](**changes), directory, dataset=data, figures=False)
    return result.status, result.steps, result.history


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def step_losses(directory: Path) -> list[float]:
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "step"]


def assert_same(directory: Path, reference: Path) -> None:
    """Equal losses and weights within round-off."""
    np.testing.assert_allclose(step_losses(directory), step_losses(reference), rtol=1e-10)
    mine, theirs = weights(directory), weights(reference)
    assert set(mine) == set(theirs)
    for key, value in theirs.items():
        torch.testing.assert_close(mine[key], value, rtol=1e-10, atol=1e-10)
    found, expected = (json.loads((d / "metrics.json").read_text())["model"] for d in (directory, reference))
    for split, quantities in expected.items():
        for quantity, errors in quantities.items():
            assert found[split][quantity]["mae"] == pytest.approx(errors["mae"], rel=1e-8, abs=1e-10)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Directories of finished runs, by name and number of processes."""
    made = {}

    def directory(name, size=1):
        if (name, size) not in made:
            made[name, size] = path = tmp_path_factory.mktemp("reference")
            data = dataset_of(name)
            results = run(train_case, size, name, path, data) if size > 1 else [train_case(0, name, path, data)]
            assert [result[0] for result in results] == ["epochs"] * size
            for _, steps, history in results:
                assert steps == results[0][1]
                assert [record["score"] for record in history] == [record["score"] for record in results[0][2]]
        return made[name, size]

    return directory


@pytest.mark.parametrize(
    ("name", "size"), [("unequal labels", 2), pytest.param("random directions", 3, marks=pytest.mark.slow)]
)
def test_several_processes_give_the_result_of_one(reference, name, size):
    assert_same(reference(name, size), reference(name))
    start = json.loads((reference(name, size) / "log.jsonl").read_text().splitlines()[0])
    assert start["processes"] == size


def test_a_share_may_lack_a_label_or_be_empty():
    """What the tests above claim to cover does occur in them."""
    config, data = mixed_config(), dataset_of("unequal labels")
    frames = prepare(config, {"train": data.subset("train")}).frames["train"]
    costs = [frame.cost for frame in frames]
    lacking = 0
    for batch in epoch_batches(costs, effective_limits(config.run), config.run.seed, 0, mixed=True):
        shares = divide([costs[i] for i in batch], 2)
        have = [any("polarizability" in frames[batch[k]].labels for k in share) for share in shares]
        lacking += have in ([True, False], [False, True])
    assert lacking
    config = random_config()
    data = dataset_of("random directions")
    costs = [frame.cost for frame in prepare(config, {"train": data.subset("train")}).frames["train"]]
    batches = epoch_batches(costs, effective_limits(config.run), config.run.seed, 0)
    assert any([] in divide([costs[i] for i in batch], 3) for batch in batches)


def collectives(rank):
    ranks = SeveralRanks(10.0)
    found = ranks.exchange([rank, 0.5])
    gradient = None if rank == 0 else torch.full((2, 2), 3.0)
    like = [torch.zeros(2, 2), torch.zeros(3), torch.zeros(1)]
    sums = flat_sum(ranks, [gradient, torch.arange(3.0) + rank, None], like)
    ranks.exchange()
    text = ranks.share(b"abc" if rank == 0 else b"")
    held = torch.full((2,), float(rank))
    ranks.share_tensors([held])
    return found.tolist(), [None if s is None else s.tolist() for s in sums], text, held.tolist()


def test_sums_keep_what_no_rank_has():
    for found in run(collectives, 2):
        assert found[0] == [[0, 0.5], [1, 0.5]]
        assert found[1] == [[[3.0, 3.0], [3.0, 3.0]], [1.0, 3.0, 5.0], None]
        assert found[2:] == (b"abc", [0.0, 0.0])


def failing(rank, directory, data, what):
    """Train with something that goes wrong on the second rank, after some steps."""
    from fieldflows.training.step import Stepper

    compute = Stepper.part

    def spoiled(self, batch, positions):
        if rank == 1 and batch.step >= 2:
            if what == "error":
                raise ValueError("a bug on one rank")
            if what == "hang":
                time.sleep(8)
            if what == "death":
                os.kill(os.getpid(), signal.SIGKILL)
        return compute(self, batch, positions)

    Stepper.part = spoiled
    started = time.monotonic()
    try:
        train_case(rank, "unequal labels", directory, data)
    except Exception as error:
        return type(error).__name__, str(error), time.monotonic() - started
    return "no error", "", 0.0


def fail_together(directory, what, timeout=60.0):
    """Let the second of two processes fail, and return what became of each."""
    outcome = run(failing, 2, directory, dataset_of("unequal labels"), what, timeout=timeout)
    assert outcome[0][0] == "TrainingError"
    assert outcome[0][2] < 50
    assert load_state(directory).step == 2
    return outcome


def test_an_error_on_one_ends_all_and_they_go_on_bitwise(reference, tmp_path):
    first, second = fail_together(tmp_path, "error")
    assert "Process 1 of 2 has ended: ValueError: a bug on one rank" in first[1]
    assert second[:2] == ("ValueError", "a bug on one rank")
    run(train_case, 2, "unequal labels", tmp_path, dataset_of("unequal labels"))
    expected = weights(reference("unequal labels", 2))
    assert all(torch.equal(value, expected[key]) for key, value in weights(tmp_path).items())
    assert step_losses(tmp_path) == step_losses(reference("unequal labels", 2))


@pytest.mark.slow  # three runs
def test_the_death_of_one_ends_all_and_another_number_goes_on(reference, tmp_path):
    first, second = fail_together(tmp_path, "death")
    assert "has lost the others" in first[1]
    assert second == -signal.SIGKILL
    # the newest state ends the epoch, the one before has it to end
    newest = tmp_path / "state.safetensors"
    assert load_state(tmp_path).epoch == 1
    newest.write_bytes(newest.read_bytes()[:-9])
    assert load_state(tmp_path).epoch == 0
    assert train_case(0, "unequal labels", tmp_path, dataset_of("unequal labels"))[0] == "epochs"
    assert_same(tmp_path, reference("unequal labels"))


@pytest.mark.slow  # waits for the time limit
def test_one_that_does_not_answer_ends_all(tmp_path):
    first, second = fail_together(tmp_path, "hang", timeout=4.0)
    assert "has lost the others" in first[1]
    assert "has lost the others" in second[1]


def nan_on_one_rank(rank, directory, data):
    frames = list(data.frames)
    frames[3] = frames[3].with_(labels={**frames[3].labels, "polarizability": np.full((3, 3), 1e200)})
    config = tiny_config(
        model={"element_polarizability": False},
        run={"dtype": "float32", "batch_structures": 4, "micro_structures": 1},
        loss={"terms": {"polarizability": {"kind": "mse"}}},
    )
    train(config, directory, dataset=SmallDataset(frames), figures=False)


def test_a_loss_that_is_not_finite_names_the_frame_on_all(tmp_path):
    for error in run(nan_on_one_rank, 2, tmp_path, dataset_of("random directions")):
        assert isinstance(error, TrainingError)
        assert "loss is not finite" in str(error)
        assert "MgS (teacher:3)" in str(error)
        assert "NaCl" not in str(error)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["frames"] == ["MgS (teacher:3)"]


class Waiting(Reporter):
    """Says that step 3 was made and waits for a signal."""

    def __init__(self, directory):
        self.directory = directory

    def step(self, state, loss, learning_rate):
        if state.step == 3:
            (self.directory / "reached").touch()
            end = time.monotonic() + 60
            while time.monotonic() < end and not (self.directory / "signal was sent").exists():
                time.sleep(0.02)


def waiting(rank, directory, data):
    return train(mixed_config(), directory, dataset=data, figures=False, reporter=Waiting(directory)).status


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_to_one_process_ends_all_in_order(reference, tmp_path, number):
    started = start(waiting, 2, tmp_path, dataset_of("unequal labels"))
    end = time.monotonic() + 60
    while not (tmp_path / "reached").exists() and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(started[1][0].pid, number)
    if number == signal.SIGINT:
        # once from the terminal, once from torchrun
        time.sleep(0.1)
        os.kill(started[1][0].pid, number)
    time.sleep(0.1)
    (tmp_path / "signal was sent").touch()
    assert finish(started) == ["interrupted", "interrupted"]
    assert load_state(tmp_path).step in (3, 4)
    assert train_case(0, "unequal labels", tmp_path, dataset_of("unequal labels"))[0] == "epochs"
    assert_same(tmp_path, reference("unequal labels"))


def with_data(rank, directory, data):
    return train(tiny_config(), directory, dataset=data[rank], figures=False)


def test_mistakes_before_the_first_step_reach_all(tmp_path):
    data = dataset_of("random directions")
    for error in run(with_data, 2, tmp_path / "data", (data, SmallDataset(data.frames[1:]))):
        assert "another dataset each" in str(error)
    (tmp_path / "file").write_text("")
    first, second = run(with_data, 2, tmp_path / "file" / "run", (data, data))
    assert "Cannot use" in str(first)
    assert "Process 0 of 2 has ended: Cannot use" in str(second)


def test_torchrun_is_read_from_the_environment(monkeypatch):
    assert environment_size({}) == (0, 1)
    assert environment_size({"RANK": "1", "WORLD_SIZE": "4"}) == (1, 4)
    for rank, size in (("4", "4"), ("x", "2"), ("0", "0")):
        with pytest.raises(SettingsError, match="make no sense"):
            environment_size({"RANK": rank, "WORLD_SIZE": size})
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined("cpu", 1.0) as ranks:
        assert (ranks.size, ranks.leader, ranks.exchange([2.0]).tolist()) == (1, True, [[2.0]])


def test_a_process_without_a_gpu_of_its_own_is_told(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SettingsError, match="torch sees 1"), joined("cuda", 1.0):
        pass
