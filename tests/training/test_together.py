"""The loss from predictions at hand is that of the evaluation, also where frames without a label count."""

from __future__ import annotations

import pytest
import torch

from fieldflows.training.data import make_frames
from fieldflows.training.evaluation import predict
from fieldflows.training.loss_config import Term
from fieldflows.training.losses import Loss
from fieldflows.training.sampler import BatchLimits
from fieldflows.training.together import loss_parts
from tests.training.crystals import teacher
from tests.training.multi import frames_of


@pytest.mark.parametrize("count_unlabeled", [False, True])
def test_parts_of_the_loss_are_those_of_one_process(count_unlabeled: bool) -> None:
    network = teacher()
    labeled = frames_of(("energy", "polarizability"), (0, 1), ("train", "train"), network=network)
    # batches of one frame, so that some hold no polarizability at all
    labeled = [f if i % 2 else f.with_(labels={"energy": f.labels["energy"]}) for i, f in enumerate(labeled)]
    config = network.config
    names = ("energy", "polarizability")
    frames = make_frames(labeled, names, config.atomic_numbers, config.r_max, torch.float64)
    terms = {
        "energy": Term(weight=2.0, kind="mse"),
        "polarizability": Term(kind="mse", count_unlabeled=count_unlabeled),
    }
    loss, limits = Loss(terms, {"energy": 0.1, "polarizability": 0.003}), BatchLimits(1)
    other = teacher(seed=12)
    predictions, expected = predict(other, frames, names, limits, loss)
    assert loss_parts(loss, frames, predictions, names, limits) == pytest.approx(expected, rel=1e-12)
    alone = [frame for frame in frames if "polarizability" in frame.labels]
    _, whole = predict(other, alone, names, limits, loss)
    share = 0.5 if count_unlabeled else 1.0
    assert expected["polarizability"] == pytest.approx(share * whole["polarizability"], rel=1e-12)
