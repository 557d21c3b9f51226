"""The basis of the symmetric contractions, which a state dict carries and an architecture alone does not fix.

mace builds the coupling tables ``U_matrix_*`` in a full basis, or, where cuequivariance happens to be installed, in a
smaller one of the same space.  Weights belong to the basis that they were trained in.  The tables are part of the
state, so that a network takes the basis of whatever state it is given, on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch


def adopt_coupling_basis(network: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Give tables and weights of the symmetric contractions the number of paths that they have in a state dict.

    Shapes that differ in anything but the number of paths are left alone, for the caller to complain about.

    Args:
        network: The network; changed in place, its new tensors hold zeros.
        state: The state dict that will be loaded.
    """
    for name, module in network.named_modules():
        if not (hasattr(module, "weights_max") and hasattr(module, "U_tensors")):
            continue
        for order in range(1, module.correlation + 1):
            own, given = module.U_tensors(order), state.get(f"{name}.U_matrix_{order}")
            if given is None or given.shape == own.shape or given.shape[:-1] != own.shape[:-1]:
                continue
            paths = given.shape[-1]
            module.register_buffer(f"U_matrix_{order}", own.new_zeros(given.shape))
            if order == module.correlation:
                module.weights_max = _resized(module.weights_max, paths)
            else:
                position = module.correlation - 1 - order
                module.weights[position] = _resized(module.weights[position], paths)


def _resized(weight: torch.Tensor, paths: int) -> torch.nn.Parameter:
    """Return a parameter (elements, paths, channels) of zeros."""
    elements, _, channels = weight.shape
    return torch.nn.Parameter(weight.detach().new_zeros(elements, paths, channels))
