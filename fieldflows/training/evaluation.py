"""Predictions of a network for labeled frames, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from fieldflows.backends.mace_field.derivatives import Enthalpy
from fieldflows.training.data import Batch, Frame, make_batch
from fieldflows.training.losses import Loss
from fieldflows.training.metrics import Predictions, split_predictions
from fieldflows.training.response import full_response
from fieldflows.training.sampler import BatchLimits, ordered_batches


class Interrupted(Exception):
    """Raised inside an evaluation when the run was asked to stop."""


def predict(
    network: Enthalpy,
    frames: Sequence[Frame],
    labels: Sequence[str],
    limits: BatchLimits,
    loss: Loss | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Predictions, dict[str, float]]:
    """Return predictions of what the frames have labels for, and the weighted parts of the loss over all of them.

    Args:
        network: The network, without atomic energies (they are added from the frames).
        frames: The frames, in the order of the answer.
        labels: Observables of interest.
        limits: Limits of a batch.
        loss: The loss, if its value is wanted.
        should_stop: Asked between the batches.

    Returns:
        One mapping per frame in internal units, and observable to λ_o (1/W_o) Σ_g w_g m_g ρ̄_g.

    Raises:
        Interrupted: If ``should_stop`` says so.
    """
    predictions: Predictions = [{} for _ in frames]
    sums: dict[str, list[float]] = {}
    costs = [frame.cost for frame in frames]
    for indices in ordered_batches(costs, limits):
        if should_stop():
            raise Interrupted
        members = [frames[i] for i in indices]
        batch = make_batch(members, labels, network.device)
        results = full_response(network, batch)
        if loss is not None:
            add_batch(sums, loss, {key: results[key] for key in batch.targets}, batch)
        arrays = {key: value.double().cpu().numpy() for key, value in results.items()}
        for index, frame, values in zip(
            indices, members, split_predictions(arrays, [len(f.atoms) for f in members]), strict=True
        ):
            if "energy" in values:
                values["energy"] = values["energy"] + frame.baseline
            predictions[index] = values
    return predictions, weighted_parts(sums)


def weighted_parts(sums: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the parts of the loss from the sums of :func:`add_batch`."""
    return {key: total / count for key, (total, count) in sorted(sums.items()) if count}


def add_batch(sums: dict[str, list[float]], loss: Loss, results: dict[str, torch.Tensor], batch: Batch) -> None:
    """Add numerator and normalization of each observable to the sums; frames without a label may count, too."""
    for key, count in loss.normalizations(batch).items():
        sums.setdefault(key, [0.0, 0.0])[1] += float(count)
    for key, value in loss.numerators(results, batch).items():
        sums[key][0] += float(value)
