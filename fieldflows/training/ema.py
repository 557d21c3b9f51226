"""Averages of the weights over the steps: exponential, and plain from some step on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class MovingAverage:
    """Average θ̄ ← d θ̄ + (1 − d) θ with d = min(decay, (1 + k)/(10 + k)) after step k.

    The start of the decay forgets the random initial weights quickly.  Where a plain mean is asked for, the average
    starts again and is θ̄ ← θ̄ + (θ − θ̄)/m after the m-th step since (stochastic weight averaging, Izmailov et al.,
    UAI 2018, with a mean over steps rather than epochs).

    Args:
        parameters: Name to parameter; the average starts as a copy.
        decay: The decay that is reached in the end; 0 follows the weights.

    Attributes:
        averaged: Steps that are in the plain mean; 0 before it has begun.
    """

    def __init__(self, parameters: dict[str, torch.nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.averaged = 0
        self.average = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, step: int, plain: bool = False) -> None:
        """Take the present weights in after step number ``step`` (from 1), into the plain mean if so asked."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        if plain:
            self.averaged += 1
            share = 1 / self.averaged
        for name, value in self.parameters.items():
            self.average[name].lerp_(value, share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the network inside the block, and the weights back afterwards."""
        kept = {name: value.detach().clone() for name, value in self.parameters.items()}
        copy_into(self.parameters, self.average)
        try:
            yield
        finally:
            copy_into(self.parameters, kept)


@torch.no_grad()
def copy_into(parameters: dict[str, torch.nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    """Overwrite parameters in place."""
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
