import os

import pytest
import torch

from fieldflows.errors import TrainingError
from fieldflows.training.state import PREVIOUS_NAME, STATE_NAME, TrainingState, clear_states, load_state, save_state


def state(step):
    torch.manual_seed(step)
    return TrainingState(
        "config", "data", epoch=1, batch=2, step=step, seconds=3.25, sums={"loss": 0.1, "loss/count": 3.0},
        schedule={"best": float("inf"), "reduction": 1.0, "waited": 0},
        history=[{"epoch": 1.0, "score": 0.30000000000000004}], log_bytes=17,
        tensors={"model/a": torch.randn(3, 2), "optimizer/a/step": torch.tensor(5.0), "best/a": torch.ones(2).double()},
    )  # fmt: skip


def same(a, b):
    assert {k: v for k, v in vars(a).items() if k != "tensors"} == {k: v for k, v in vars(b).items() if k != "tensors"}
    assert set(a.tensors) == set(b.tensors)
    return all(torch.equal(a.tensors[k], b.tensors[k]) and a.tensors[k].dtype == b.tensors[k].dtype for k in a.tensors)


def test_round_trip_is_exact(tmp_path):
    assert load_state(tmp_path) is None
    save_state(tmp_path, state(1))
    assert same(load_state(tmp_path), state(1))
    assert torch.equal(load_state(tmp_path).part("model")["a"], state(1).tensors["model/a"])
    assert sorted(os.listdir(tmp_path)) == [STATE_NAME]


def test_the_state_before_is_kept(tmp_path):
    for step in (1, 2, 3):
        save_state(tmp_path, state(step))
    assert sorted(os.listdir(tmp_path)) == [PREVIOUS_NAME, STATE_NAME]
    (tmp_path / STATE_NAME).unlink()
    assert same(load_state(tmp_path), state(2))


def spoil_truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def spoil_bit(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(bytes(data))


def spoil_header(path):
    path.write_bytes(path.read_bytes().replace(b'\\"step\\": 2', b'\\"step\\": 9'))


def spoil_empty(path):
    path.write_bytes(b"")


def spoil_foreign(path):
    path.write_bytes(b"\x80\x04 a pickle, perhaps")


@pytest.mark.parametrize("spoil", [spoil_truncate, spoil_bit, spoil_header, spoil_empty, spoil_foreign])
def test_damage_falls_back_and_is_an_error_when_nothing_is_left(tmp_path, spoil):
    save_state(tmp_path, state(1))
    save_state(tmp_path, state(2))
    before = (tmp_path / STATE_NAME).read_bytes()
    spoil(tmp_path / STATE_NAME)
    assert (tmp_path / STATE_NAME).read_bytes() != before
    assert same(load_state(tmp_path), state(1))
    spoil_truncate(tmp_path / PREVIOUS_NAME)
    with pytest.raises(TrainingError, match="--fresh"):
        load_state(tmp_path)
    clear_states(tmp_path)
    assert load_state(tmp_path) is None


def test_a_full_disk_keeps_the_state_before(tmp_path, monkeypatch):
    save_state(tmp_path, state(1))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match="No space left"):
        save_state(tmp_path, state(2))
    assert same(load_state(tmp_path), state(1))
    assert os.listdir(tmp_path) == [STATE_NAME]
