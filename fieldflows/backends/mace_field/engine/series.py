"""Functions of one variable with their derivatives: [f, f′, f″], by the chain rule.

Every entry is a tensor with one row per value of the variable.  All operations are plain torch, so that the entries
can be differentiated by whatever else they depend on (the weights of a radial network).
"""

from __future__ import annotations

import torch

Series = list[torch.Tensor]
"""Value and derivatives; the length is the highest order plus one, and three at most."""

MAX_ORDER = 2


def identity(x: torch.Tensor, order: int) -> Series:
    """Return the variable itself."""
    return [x, torch.ones_like(x), torch.zeros_like(x)][: order + 1]


def product(a: Series, b: Series) -> Series:
    """Return a·b by Leibniz' rule."""
    result = [a[0] * b[0]]
    if len(a) > 1:
        result.append(a[1] * b[0] + a[0] * b[1])
    if len(a) > 2:
        result.append(a[2] * b[0] + 2.0 * (a[1] * b[1]) + a[0] * b[2])
    return result


def chain(outer: Series, inner: Series) -> Series:
    """Return g(a), from g, g′, g″ at the value of a."""
    result = [outer[0]]
    if len(inner) > 1:
        result.append(outer[1] * inner[1])
    if len(inner) > 2:
        result.append(outer[2] * inner[1].square() + outer[1] * inner[2])
    return result


def scaled(a: Series, factor: torch.Tensor | float) -> Series:
    """Return a times a constant."""
    return [entry * factor for entry in a]


def shifted(a: Series, constant: torch.Tensor | float) -> Series:
    """Return a plus a constant."""
    return [a[0] + constant, *a[1:]]


def power(a: Series, exponent: torch.Tensor | float) -> Series:
    """Return aᵖ."""
    x, p = a[0], exponent
    return chain([x**p, p * x ** (p - 1), p * (p - 1) * x ** (p - 2)], a)


def exponential(a: Series) -> Series:
    """Return exp(a)."""
    value = a[0].exp()
    return chain([value, value, value], a)


def sine(a: Series) -> Series:
    """Return sin(a)."""
    value = a[0].sin()
    return chain([value, a[0].cos(), -value], a)


def hyperbolic_tangent(a: Series) -> Series:
    """Return tanh(a)."""
    value = a[0].tanh()
    slope = 1.0 - value.square()
    return chain([value, slope, -2.0 * value * slope], a)


def silu(a: Series) -> Series:
    """Return a·σ(a) with the logistic function σ."""
    x = a[0]
    logistic = torch.sigmoid(x)
    outer = [x * logistic]
    if len(a) > 1:
        outer.append(logistic * (1.0 + x * (1.0 - logistic)))
    if len(a) > 2:
        outer.append(logistic * (1.0 - logistic) * (2.0 + x * (1.0 - 2.0 * logistic)))
    return chain(outer, a)


def matmul(a: Series, matrix: torch.Tensor) -> Series:
    """Return a @ matrix, all orders in one product."""
    return list((torch.cat(a) @ matrix).split(len(a[0])))


def layer_norm(a: Series, module: torch.nn.LayerNorm) -> Series:
    """Return the layer normalization of a over its last dimension."""
    centered = [entry - entry.mean(dim=-1, keepdim=True) for entry in a]
    variance = [entry.mean(dim=-1, keepdim=True) for entry in product(centered, centered)]
    normalized = product(centered, power(shifted(variance, module.eps), -0.5))
    return shifted(scaled(normalized, module.weight), module.bias)
