"""Weights of e3nn modules as plain matrices, differentiable by the parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

from fieldflows.backends.mace_field._mace import o3

Blocks = dict[tuple[int, int], torch.Tensor]

Value = TypeVar("Value")


class Weights:
    """What is made of the parameters before any crystal is seen, remembered while they are fixed.

    Parameters that require gradients are read at every call.  Those that do not are read again after any change that
    torch counts: assignments in place, ``load_state_dict``, ``.to(...)``.  Only a change behind its back, through
    ``parameter.data``, goes unnoticed.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[Hashable, Any]] = {}

    def linear(self, module: torch.nn.Module) -> Blocks:
        """Return :func:`linear_blocks`."""
        return self.remember("linear", module, module.parameters(), None, lambda: linear_blocks(module))

    def elements(self, module: torch.nn.Module, elements: torch.Tensor, names: Hashable) -> Blocks:
        """Return :func:`element_blocks` of some elements, which ``names`` tells apart from others."""
        return self.remember(
            "elements",
            module,
            module.parameters(),
            names,
            lambda: {key: block.index_select(0, elements) for key, block in element_blocks(module).items()},
        )

    def remember(self, kind: str, owner: object, parameters: Any, names: Hashable, make: Callable[[], Value]) -> Value:
        """Return what ``make`` returns, or did when it was last called for the same parameters and names."""
        parameters = list(parameters)
        if torch.is_inference_mode_enabled() or any(p.requires_grad or p.is_inference() for p in parameters):
            return make()
        stamp = names, tuple((p.data_ptr(), p._version, p.dtype) for p in parameters)
        known = self._known.get((kind, id(owner)))
        if known is None or known[0] != stamp:
            known = stamp, make()
            self._known[kind, id(owner)] = known
        value: Value = known[1]
        return value


def linear_blocks(linear: torch.nn.Module) -> Blocks:
    """Return the matrices (multiplicity in, multiplicity out) of an ``o3.Linear``, by input and output block."""
    blocks: Blocks = {}
    offset = 0
    for instruction in linear.instructions:
        if instruction.i_in < 0:  # a bias, kept elsewhere
            continue
        size = math.prod(instruction.path_shape)
        weight = linear.weight[offset : offset + size].view(instruction.path_shape)
        blocks[instruction.i_in, instruction.i_out] = instruction.path_weight * weight
        offset += size
    return blocks


def tensor_product_blocks(product: torch.nn.Module) -> dict[tuple[int, int, int], torch.Tensor]:
    """Return the weights (mul 1, mul 2, mul out) of a fully connected tensor product, by its three blocks."""
    blocks = {}
    offset = 0
    for instruction in product.instructions:
        size = math.prod(instruction.path_shape)
        weight = product.weight[offset : offset + size].view(instruction.path_shape)
        blocks[instruction.i_in1, instruction.i_in2, instruction.i_out] = instruction.path_weight * weight
        offset += size
    return blocks


def element_blocks(product: torch.nn.Module) -> dict[tuple[int, int], torch.Tensor]:
    """Return matrices (element, mul in, mul out) by blocks of a product of features with the one-hot of elements.

    The coupling coefficient of (l, 0, l) is δ/√(2l+1).
    """
    blocks = {}
    for (i_in, _, i_out), weight in tensor_product_blocks(product).items():
        if product.irreps_in1[i_in].ir == product.irreps_out[i_out].ir:
            degree = product.irreps_in1[i_in].ir.l
            blocks[i_in, i_out] = weight.transpose(0, 1) / math.sqrt(2 * degree + 1)
    return blocks


def coupling(l1: int, l2: int, l3: int, like: torch.Tensor) -> torch.Tensor:
    """Return the real coupling coefficients (2l1+1, 2l2+1, 2l3+1) of e3nn in the precision of ``like``."""
    return o3.wigner_3j(l1, l2, l3, dtype=torch.float64).to(like)
