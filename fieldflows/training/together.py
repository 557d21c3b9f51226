"""Predictions of labeled frames by several processes: each its share, all of them the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from fieldflows.backends.mace_field.derivatives import Enthalpy
from fieldflows.observables import OBSERVABLES
from fieldflows.training.data import Frame, make_batch
from fieldflows.training.distributed import Ranks
from fieldflows.training.evaluation import Interrupted, add_batch, predict, weighted_parts
from fieldflows.training.losses import Loss
from fieldflows.training.metrics import Predictions
from fieldflows.training.sampler import BatchLimits, divide, ordered_batches


def predict_together(
    ranks: Ranks,
    network: Enthalpy,
    frames: Sequence[Frame],
    labels: Sequence[str],
    limits: BatchLimits,
    loss: Loss | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Predictions, dict[str, float]]:
    """Return what :func:`~fieldflows.training.evaluation.predict` returns, computed by all processes.

    Frames are divided by cost.  Which numbers a frame has follows from its labels, so that all predictions fit into
    one vector of known layout, to which each process adds its own; the loss is then computed from them by each.

    Raises:
        Interrupted: On all processes, if one of them was asked to stop.
    """
    if ranks.size == 1:
        return predict(network, frames, labels, limits, loss, should_stop=should_stop)
    own = divide([frame.cost for frame in frames], ranks.size)[ranks.rank]
    found: Predictions = []
    try:
        found, _ = predict(network, [frames[k] for k in own], labels, limits, should_stop=should_stop)
        stopped = False
    except Interrupted:
        stopped = True
    if ranks.exchange([stopped]).any():
        raise Interrupted
    places, length = _layout(frames, labels)
    vector = torch.zeros(length, dtype=torch.float64)
    if not stopped:
        for k, values in zip(own, found, strict=True):
            for key, (start, shape) in places[k].items():
                vector[start : start + int(np.prod(shape))] = torch.as_tensor(np.asarray(values[key]).reshape(-1))
    ranks.add(vector)
    numbers = vector.numpy()
    predictions: Predictions = [
        {key: numbers[start : start + int(np.prod(shape))].reshape(shape) for key, (start, shape) in place.items()}
        for place in places
    ]
    parts = {} if loss is None else loss_parts(loss, frames, predictions, labels, limits, network.device)
    return predictions, parts


def _layout(frames: Sequence[Frame], labels: Sequence[str]) -> tuple[list[dict[str, tuple[int, tuple[int, ...]]]], int]:
    """Return where the numbers of each frame are, by observable (start and shape), and how many there are."""
    places, position = [], 0
    for frame in frames:
        place = {}
        for key in labels:
            if key in frame.labels:
                shape = np.shape(frame.labels[key])
                place[key] = (position, shape)
                position += int(np.prod(shape))
        places.append(place)
    return places, position


def loss_parts(
    loss: Loss,
    frames: Sequence[Frame],
    predictions: Predictions,
    labels: Sequence[str],
    limits: BatchLimits,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Return the weighted parts of the loss of given predictions, batch by batch as an evaluation adds them up.

    Args:
        loss: The loss.
        frames: The frames.
        predictions: One mapping of observable to array per frame; energies with their baselines.
        labels: Observables of interest.
        limits: Limits of a batch.
        device: Where it is computed.
    """
    sums: dict[str, list[float]] = {}
    for indices in ordered_batches([frame.cost for frame in frames], limits):
        batch = make_batch([frames[i] for i in indices], labels, device)
        tensors = {
            key: _stacked(key, [(frames[i], predictions[i]) for i in indices], batch.targets[key])
            for key in batch.targets
        }
        add_batch(sums, loss, tensors, batch)
    return weighted_parts(sums)


def _stacked(key: str, items: Sequence[tuple[Frame, dict[str, np.ndarray]]], like: torch.Tensor) -> torch.Tensor:
    """Return predictions in the layout of the labels of a batch, zero where a frame has none."""
    pieces = []
    for frame, values in items:
        rows = len(frame.atoms) if OBSERVABLES[key].per_atom else 1
        if key in values:
            value = values[key] - (frame.baseline if key == "energy" else 0.0)
        else:
            value = np.zeros((rows, *like.shape[1:]))
        pieces.append(value.reshape(-1, *like.shape[1:]))
    return torch.as_tensor(np.concatenate(pieces), dtype=like.dtype, device=like.device)
