"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class MovingAverage:
    """Average θ̄ ← d θ̄ + (1 − d) θ with d = min(decay, (1 + k)/(10 + k)) after step k.

    The start of the decay forgets the random initial weights quickly.

    Args:
        parameters: Name to parameter; the average starts as a copy.
        decay: The decay that is reached in the end.
    """

    def __init__(self, parameters: dict[str, torch.nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.average = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the present weights in after step number ``step`` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in self.parameters.items():
            self.average[name].lerp_(value, 1 - decay)

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
