"""Weights of e3nn modules as plain matrices, differentiable by the parameters."""

from __future__ import annotations

import math

import torch

from fieldflows.backends.mace_field._mace import o3

Blocks = dict[tuple[int, int], torch.Tensor]


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
