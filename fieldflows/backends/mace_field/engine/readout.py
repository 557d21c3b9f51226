"""Readouts: atomic energies from the scalar features of a layer."""

from __future__ import annotations

import torch

from fieldflows.backends.mace_field.engine.weights import Weights


def readout_energies(
    module: torch.nn.Module, scalars: torch.Tensor, heads: torch.Tensor, weights: Weights
) -> torch.Tensor:
    """Return the energy of every atom from its own head, (n,), in the units before scale and shift.

    Args:
        module: A ``LinearReadoutBlock``, ``NonLinearReadoutBlock`` or ``NonLinearBiasReadoutBlock`` of mace.
        scalars: (n, c) scalar features; no other features reach an energy.
        heads: (n,) head of each atom.
        weights: The memory of the engine.
    """
    if hasattr(module, "linear"):
        energies = _linear(module.linear, scalars, weights)
    else:
        hidden = _own_head(module.non_linearity(_linear(module.linear_1, scalars, weights)), heads, module.num_heads)
        if hasattr(module, "linear_mid"):
            hidden = _own_head(
                module.non_linearity(_linear(module.linear_mid, hidden, weights)), heads, module.num_heads
            )
        energies = _linear(module.linear_2, hidden, weights)
    if energies.shape[1] == 1:
        return energies[:, 0]
    return energies.gather(1, heads[:, None])[:, 0]


def _linear(module: torch.nn.Module, scalars: torch.Tensor, weights: Weights) -> torch.Tensor:
    result = scalars @ weights.linear(module)[0, 0]
    bias = getattr(module, "bias", None)
    return result + bias if bias is not None and bias.numel() else result


def _own_head(x: torch.Tensor, heads: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Set hidden features that belong to other heads to zero; those of one head are consecutive."""
    if n_heads == 1:
        return x
    owner = torch.arange(n_heads, device=x.device).repeat_interleave(x.shape[1] // n_heads)
    return x * (owner == heads[:, None]).to(x.dtype)
