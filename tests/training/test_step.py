"""The gradient of an effective batch, however it is cut."""

import numpy as np
import pytest
import torch

from fieldflows.backends.mace_field.engine.engine import fastest
from fieldflows.errors import TrainingError
from fieldflows.training.data import make_batch
from fieldflows.training.distributed import Ranks
from fieldflows.training.response import full_response
from fieldflows.training.sampler import BatchLimits
from fieldflows.training.setup import prepare
from fieldflows.training.step import Stepper, step_bytes, total_norm
from tests.training.crystals import ALL_TERMS, SmallDataset, small_dataset, tiny_config

ELECTRONIC = ("born_effective_charges", "polarizability")
TERMS = {**ALL_TERMS, "forces": {"scale": "spread", "normalization": "atoms"}}


def uneven() -> SmallDataset:
    kinds = (("forces", "energy"), ("born_effective_charges", "polarization"), ("polarizability", "stress"))
    frames = list(small_dataset(5, 0, 0).frames)
    for k, frame in enumerate(frames[:-1]):
        frames[k] = frame.with_(labels={key: frame.labels[key] for key in kinds[k % 3]})
    return SmallDataset(frames)


@pytest.fixture(scope="module")
def prepared():
    config = tiny_config(loss={"terms": TERMS}, run={"batching": "mixed"})
    return config, prepare(config, {"train": uneven().subset("train")})


def stepper(prepared, said=None, **run):
    config, setup = prepared
    config = config.model_copy(update={"run": config.run.model_copy(update=run)})
    return Stepper(config, setup, fastest(setup.network), Ranks(), (said if said is not None else []).append)


def assert_equal(first, second, tolerance=1e-12):
    assert first.loss == pytest.approx(second.loss, rel=tolerance)
    assert first.parts == pytest.approx(second.parts, rel=tolerance)
    scale = float(total_norm(second.gradients))
    for mine, theirs in zip(first.gradients, second.gradients, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert float((mine - theirs).abs().max()) <= tolerance * scale


LIMITS = [
    {"micro_structures": 1},
    {"micro_structures": 2},
    {"micro_edges": 90},
    {"micro_atoms": 4},
]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_parts_add_up_to_the_gradient_of_the_whole(prepared, limits):
    """Against the loss of one batch of all frames, with its own normalizations and one backward pass."""
    _, setup = prepared
    mine = stepper(prepared, **limits)
    batch = mine.begin([3, 0, 4, 1, 2], 7)
    found = mine.compute(batch)

    parameters = list(setup.parameters.values())
    data = make_batch([setup.frames["train"][i] for i in batch.indices], setup.labels)
    loss, parts = setup.loss(full_response(fastest(setup.network), data, create_graph=True), data)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    assert found.loss == pytest.approx(float(loss), rel=1e-12)
    assert found.parts == pytest.approx({key: float(value) for key, value in parts.items()}, rel=1e-12)
    scale = float(torch.nn.utils.get_total_norm([g for g in gradients if g is not None]))
    assert float(found.norm) == pytest.approx(scale, rel=1e-12)
    for own, expected in zip(found.gradients, gradients, strict=True):
        expected = torch.zeros_like(own) if expected is None and own is not None else expected
        if own is not None:
            assert float((own - expected).abs().max()) <= 1e-12 * scale


def test_the_normalizations_are_those_of_the_labels(prepared):
    batch = stepper(prepared).begin([0, 1, 2, 3, 4], 0)
    # frames 0, 3 and 4 have forces, in cells of two atoms; frames 2 and 4 a polarizability
    assert batch.whole["forces"] == 6.0
    assert batch.whole["energy"] == 3.0
    assert batch.whole["polarizability"] == 2.0
    # not in this batch
    assert "polarizability" not in stepper(prepared).begin([0, 1, 3], 0).whole


def test_random_numbers_do_not_depend_on_the_parts():
    config = tiny_config(
        loss={"directions": "random", "terms": {key: {"kind": "mse"} for key in ELECTRONIC}},
        run={"position_noise": 0.05},
    )
    setup = prepare(config, {"train": small_dataset(4, 0, 0, names=ELECTRONIC).subset("train")})
    results = []
    for limits in ({}, {"micro_structures": 1}, {"micro_structures": 3}):
        mine = stepper((config, setup), **limits)
        results.append(mine.compute(mine.begin([2, 0, 1, 3], 5)))
    assert_equal(results[1], results[0])
    assert_equal(results[2], results[0])
    again = stepper((config, setup))
    assert again.compute(again.begin([2, 0, 1, 3], 6)).loss != results[0].loss


def test_memory_that_runs_out_halves_the_parts(prepared, monkeypatch):
    whole = stepper(prepared)
    expected = whole.compute(whole.begin([0, 1, 2, 3, 4], 0))
    part = Stepper.part
    sizes = []

    def limited(self, batch, positions):
        sizes.append(len(positions))
        if len(positions) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return part(self, batch, positions)

    monkeypatch.setattr(Stepper, "part", limited)
    said = []
    mine = stepper(prepared, said)
    assert_equal(mine.compute(mine.begin([0, 1, 2, 3, 4], 0)), expected)
    assert said
    assert "run.micro_edges" in said[0]
    assert mine.limits != BatchLimits()
    sizes.clear()
    mine.compute(mine.begin([0, 1, 2, 3, 4], 1))
    assert set(sizes) == {1}, "the limit that was found is kept"


def test_memory_that_runs_out_for_one_frame_names_it(prepared, monkeypatch):
    def never(self, batch, positions):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(Stepper, "part", never)
    mine = stepper(prepared)
    with pytest.raises(TrainingError, match=r"for MgO \(teacher:1\) alone \(2 atoms, .*20.00 GiB.*float32"):
        mine.compute(mine.begin([1], 0))


def test_other_errors_are_not_taken_for_lack_of_memory(prepared, monkeypatch):
    def wrong(self, batch, positions):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Stepper, "part", wrong)
    mine = stepper(prepared)
    with pytest.raises(RuntimeError, match="shapes"):
        mine.compute(mine.begin([1], 0))


def test_the_estimate_of_memory_grows_with_size_and_directions(prepared):
    costs = [frame.cost for frame in prepared[1].frames["train"]]
    # frame 0 has forces alone, frame 2 a polarizability along three directions
    assert step_bytes(costs[0], 8, 2, 8) < step_bytes(costs[2], 8, 2, 8)
    assert step_bytes(costs[2], 16, 2, 8) == pytest.approx(2 * step_bytes(costs[2], 8, 2, 8))
    assert step_bytes(costs[2], 8, 2, 4) == pytest.approx(step_bytes(costs[2], 8, 2, 8) / 2)
    assert np.isfinite(step_bytes(costs[0], 8, 2, 8))
