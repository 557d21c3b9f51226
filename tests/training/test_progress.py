import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from fieldflows.training.plan import make_plan
from fieldflows.training.progress import ProgressBar, clock, remaining
from fieldflows.training.setup import prepare
from fieldflows.training.state import TrainingState
from tests.training.crystals import small_dataset, tiny_config


def test_time_left_is_that_of_the_steps_or_of_the_limit():
    assert remaining(elapsed=10.0, done=5, to_do=20, limit=None, before=100.0) == 40.0
    assert remaining(10.0, 5, 20, limit=120.0, before=100.0) == 10.0
    assert remaining(30.0, 5, 20, limit=120.0, before=100.0) == 0.0
    assert remaining(1.0, 0, 20, limit=None, before=0.0) == 20.0
    assert (clock(59.9), clock(3725.4)) == ("0:00:59", "1:02:05")


def test_the_bar_shows_loss_rate_errors_and_times():
    text = io.StringIO()
    bar = ProgressBar(Console(file=text, width=250, force_terminal=True, color_system=None), max_minutes=5.0)
    setup = SimpleNamespace(frames={"train": [1, 2], "valid": [3]}, parameters={}, labels=("forces",))
    state = TrainingState("c", "d", epoch=1, batch=0, seconds=60.0)
    bar.start(setup, state, steps_per_epoch=4, epochs=3)
    state.batch = 2
    bar.evaluation({"epoch": 1.0, "train": {"loss": 0.5}, "score": 0.25}, "F 12.3 meV/Å")
    bar.step(state, 0.123456, 0.0025)
    bar.message("a [remark]")
    bar.close()
    shown = text.getvalue()
    for piece in (
        "Frames: train 2, valid 1. Labels: forces.",
        "epoch 1: loss 0.5 (train), 0.25 (valid); MAE F 12.3 meV/Å",
        "epoch 2", "6/12", "0:01:00, left 0:00:00", "loss 0.1235, rate 0.0025; F 12.3 meV/Å", "a [remark]",
    ):  # fmt: skip
        assert piece in shown, piece


def test_the_plan_counts_what_training_does():
    config = tiny_config(run={"batch_structures": 4, "micro_structures": 1})
    setup = prepare(config, {"train": small_dataset(6, 0, 0).subset("train")})
    alone, shared = make_plan(config, setup), make_plan(config, setup, ranks=2)
    # four frames and two, one after the other
    assert (alone.batches, alone.structures, alone.parts, alone.balance) == (2, 3.0, 3.0, 1.0)
    assert (shared.batches, shared.parts) == (2, 1.5)
    assert 1.0 <= shared.balance <= 2.0
    frames = setup.frames["train"]
    structures, atoms, edges = alone.largest
    assert (structures, atoms) == (1, 2)
    assert edges == max(frame.cost.edges for frame in frames)
    bigger = make_plan(tiny_config(run={"batch_structures": 4}), setup)
    assert bigger.largest[0] == 4
    assert bigger.memory > 2 * alone.memory
    assert alone.memory == pytest.approx(shared.memory)
    assert "over 2 processes" in shared.lines()[0]
    assert "processes" not in " ".join(alone.lines()).replace("each process", "")
