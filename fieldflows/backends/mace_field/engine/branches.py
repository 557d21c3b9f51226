"""Functions whose derivative by every input is a node of its own.

A ``torch.autograd.Function`` computes gradients by all of its inputs, wanted or not.  Here a value is computed once,
and every input hangs on it by a branch that autograd enters only if that gradient is asked for: forces alone need no
gradient of weights, the gradient of a loss by the weights needs none by positions.  The gradients are written with the
same functions, and can therefore be differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Gradient = Callable[[torch.Tensor], torch.Tensor]


class _Branch(torch.autograd.Function):
    """Zero in value; its gradient by ``x`` is given."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, like: torch.Tensor, gradient: Gradient) -> torch.Tensor:
        """Return zeros of the shape of ``like`` that take no memory."""
        ctx.gradient = gradient
        return like.new_zeros(()).expand(like.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """Return the gradient by x."""
        return ctx.gradient(gradient), None, None


class _Join(torch.autograd.Function):
    """A value and the branches that it depends through."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, *branches: torch.Tensor) -> torch.Tensor:
        """Return the value."""
        ctx.count = len(branches)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """Hand the gradient to every branch."""
        return None, *([gradient] * ctx.count)


def with_gradients(value: torch.Tensor, *inputs: tuple[torch.Tensor, Gradient]) -> torch.Tensor:
    """Return a value that was computed without a graph as a function of some inputs.

    Args:
        value: The value.
        inputs: What it depends on, and the gradient by it from the gradient by the value.
    """
    if not torch.is_grad_enabled():
        return value
    value = value.detach()
    branches = [_Branch.apply(x, value, gradient) for x, gradient in inputs if x.requires_grad]
    return _Join.apply(value, *branches) if branches else value
