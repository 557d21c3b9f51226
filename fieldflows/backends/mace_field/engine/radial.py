"""Radial functions and their derivatives at the distinct distances of a batch, and how they enter the sums over edges.

A radial function is tabulated once per distinct distance (and pair of elements, where it depends on them) with as
many derivatives as are asked for.  Autograd sees functions of the edge length whose derivative is the next table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fieldflows.backends.mace_field.engine import series
from fieldflows.backends.mace_field.engine.branches import with_gradients
from fieldflows.backends.mace_field.engine.series import Series
from fieldflows.backends.mace_field.network import MACEFieldNetwork
from fieldflows.errors import EvaluationError

Pairs = tuple[torch.Tensor, torch.Tensor]
"""Indices of the elements of sender and receiver, one of each per row of a table."""


class Table:
    """Rows of a function of the distance and its derivatives, computed when they are first needed.

    Args:
        evaluate: Order to the series of (rows, width) up to that order.
        index: (e',) row of every edge; one past the last for a dummy edge, which sees zeros.
        limit: Highest derivative that will be taken; those beyond are not a number.
        start: Order to compute at first.
    """

    def __init__(self, evaluate: Callable[[int], Series], index: torch.Tensor, limit: int, start: int) -> None:
        self.evaluate = evaluate
        self.index = index
        self.limit = limit
        self.entries = [_with_zero_row(entry) for entry in evaluate(min(start, limit))]
        self.differentiable = self.entries[0].requires_grad
        self._gathered: dict[int, torch.Tensor] = {}

    def derivative(self, k: int) -> torch.Tensor:
        """Return the k-th derivative, (rows + 1, width)."""
        if k > self.limit:
            # a loss is differentiated by parameters only; whoever uses this one anyway must notice
            return torch.full_like(self.entries[0], float("nan")).detach()
        while len(self.entries) <= k:
            self.entries.append(_with_zero_row(self.evaluate(len(self.entries))[-1]))
        entry = self.entries[k]
        if self.differentiable and torch.is_grad_enabled() and not entry.requires_grad:
            entry = _with_zero_row(self.evaluate(k)[k])  # it was first needed where nobody asked for a graph
            self.entries[k] = entry
        return entry

    def at_edges(self, k: int) -> torch.Tensor:
        """Return the values (not their graph) of the k-th derivative at the edges, (e', width)."""
        if k not in self._gathered:
            self._gathered[k] = self.derivative(k).detach().index_select(0, self.index)
        return self._gathered[k]


def _with_zero_row(entry: torch.Tensor) -> torch.Tensor:
    return torch.cat([entry, entry.new_zeros(1, entry.shape[1])])


def second_by_parameters() -> None:
    """Raise where a graph is wanted for a gradient by what a table holds.

    Raises:
        EvaluationError: Says that the engine has no second derivatives by parameters.
    """
    if torch.is_grad_enabled():
        raise EvaluationError(
            "The engine was asked for second derivatives by parameters, which it does not have.",
            "Differentiate the network itself.",
        )


def jet(lengths: torch.Tensor, table: Table, k: int = 0) -> torch.Tensor:
    """Return the k-th derivative of tabulated functions at the edges, (e', width).

    It is differentiable by the lengths (e',), any number of times, and by what the table holds.
    """
    values = table.derivative(k)

    def by_table(gradient: torch.Tensor) -> torch.Tensor:
        second_by_parameters()
        return torch.zeros_like(values).index_add(0, table.index, gradient)

    return with_gradients(
        table.at_edges(k),
        (lengths, lambda g: (g * jet(lengths, table, k + 1)).sum(1).to(lengths.dtype)),
        (values, by_table),
    )


class RadialBasis:
    """Basis functions and envelope of a network at some distances, with derivatives.

    Args:
        network: The network.
        distances: (u,) in Å.
        pairs: Elements of each row; needed by distance transforms.
    """

    def __init__(self, network: MACEFieldNetwork, distances: torch.Tensor, pairs: Pairs | None) -> None:
        self.network = network
        self.distances = distances
        self.pairs = pairs
        self._known: dict[int, tuple[Series, Series | None]] = {}

    def __call__(self, order: int) -> tuple[Series, Series | None]:
        """Return the basis (u, b), and the envelope (u, 1) where it does not multiply the basis."""
        if order not in self._known:
            self._known[order] = self._evaluate(order)
        return self._known[order]

    def _evaluate(self, order: int) -> tuple[Series, Series | None]:
        embedding = self.network.radial_embedding
        r = series.identity(self.distances[:, None], order)
        cutoff = envelope(r, embedding.cutoff_fn.r_max, self.network.config.num_polynomial_cutoff)
        x = r
        if hasattr(embedding, "distance_transform"):
            assert self.pairs is not None
            numbers = self.network.atomic_numbers
            u, v = (numbers.index_select(0, elements)[:, None] for elements in self.pairs)
            x = TRANSFORMS[self.network.config.distance_transform](embedding.distance_transform, r, u, v)
        basis = BASES[self.network.config.radial_type](embedding.bessel_fn, x)
        dtype = self.network.dtype
        if embedding.apply_cutoff:
            return [entry.to(dtype) for entry in series.product(basis, cutoff)], None
        return [entry.to(dtype) for entry in basis], [entry.to(dtype) for entry in cutoff]


def envelope(r: Series, r_max: torch.Tensor, p: int) -> Series:
    """Return 1 − (p+1)(p+2)/2 yᵖ + p(p+2) yᵖ⁺¹ − p(p+1)/2 yᵖ⁺² with y = r/r_max < 1, and zero beyond."""
    y = r[0] / r_max
    inside = (r[0] < r_max).to(y)
    rest = 1.0 - y
    factor = -0.5 * p * (p + 1) * (p + 2)
    value = 1.0 - 0.5 * (p + 1) * (p + 2) * y**p + p * (p + 2) * y ** (p + 1) - 0.5 * p * (p + 1) * y ** (p + 2)
    outer = [value]
    if len(r) > 1:
        outer.append(factor * y ** (p - 1) * rest.square() / r_max)
    if len(r) > 2:
        outer.append(factor * y ** (p - 2) * rest * ((p - 1) * rest - 2.0 * y) / r_max**2)
    return series.chain([entry * inside for entry in outer], r)


def _bessel(module: Any, x: Series) -> Series:
    sines = series.sine(series.scaled(x, module.bessel_weights))
    return series.scaled(series.product(sines, series.power(x, -1)), module.prefactor)


def _gaussian(module: Any, x: Series) -> Series:
    away = [x[0] - module.gaussian_weights, *x[1:]]
    return series.exponential(series.scaled(series.product(away, away), module.coeff))


BASES: dict[str, Callable[[Any, Series], Series]] = {"bessel": _bessel, "gaussian": _gaussian}


def _agnesi(module: Any, r: Series, u: torch.Tensor, v: torch.Tensor) -> Series:
    """Return [1 + a y^q/(1 + y^(q−p))]⁻¹ with y = r/r₀ and r₀ half the sum of the covalent radii."""
    y = series.scaled(r, 1.0 / (0.5 * (module.covalent_radii[u] + module.covalent_radii[v])))
    inner = series.power(series.shifted(series.power(y, module.q - module.p), 1.0), -1)
    ratio = series.scaled(series.product(series.power(y, module.q), inner), module.a)
    return series.power(series.shifted(ratio, 1.0), -1)


def _soft(module: Any, r: Series, u: torch.Tensor, v: torch.Tensor) -> Series:
    """Return p₀ + (r − p₀)·½[1 + tanh(α(r − m))], from p₀ = ¾ r₀ at short distances to r."""
    bond = module.covalent_radii[u] + module.covalent_radii[v]
    low, high = (3 / 4) * bond, (4 / 3) * bond
    steep = module.alpha / (high - low)
    step = series.hyperbolic_tangent(series.scaled(series.shifted(r, -0.5 * (low + high)), steep))
    switched = series.product(series.shifted(r, -low), series.scaled(series.shifted(step, 1.0), 0.5))
    return series.shifted(switched, low)


TRANSFORMS: dict[str, Callable[[Any, Series, torch.Tensor, torch.Tensor], Series]] = {"Agnesi": _agnesi, "Soft": _soft}


def pair_repulsion(network: MACEFieldNetwork, distances: torch.Tensor, pairs: Pairs, order: int) -> Series:
    """Return half the Ziegler-Biersack-Littmark energy of a pair, (u, 1) in eV."""
    module = network.pair_repulsion_fn
    u, v = (network.atomic_numbers.index_select(0, elements)[:, None] for elements in pairs)
    r = series.identity(distances[:, None], order)
    length = module.a_prefactor * 0.529 / (torch.pow(u, module.a_exp) + torch.pow(v, module.a_exp))
    screening: Series | None = None
    for weight, rate in zip(module.c, (3.2, 0.9423, 0.4028, 0.2016), strict=True):
        term = series.scaled(series.exponential(series.scaled(r, -rate / length)), weight)
        screening = term if screening is None else [a + b for a, b in zip(screening, term, strict=True)]
    assert screening is not None
    bare = series.scaled(series.power(r, -1), 0.5 * 14.3996 * u * v)
    reach = module.covalent_radii[u] + module.covalent_radii[v]
    cutoff = envelope(r, reach, network.config.num_polynomial_cutoff)
    return series.product(series.product(bare, screening), cutoff)


def perceptron(module: torch.nn.Module, x: Series, cutoff: Series | None = None) -> Series:
    """Return a radial network of mace at a series, times an envelope: ``FullyConnectedNet`` or ``RadialMLP``."""
    if hasattr(module, "net"):
        *hidden, last = module.net
        for layer in hidden:
            if isinstance(layer, torch.nn.Linear):
                x = series.shifted(series.matmul(x, layer.weight.T), layer.bias)
            elif isinstance(layer, torch.nn.LayerNorm):
                x = series.layer_norm(x, layer)
            else:
                x = series.silu(x)
        if cutoff is None:
            return series.shifted(series.matmul(x, last.weight.T), last.bias)
        weighted = series.matmul(series.product(x, cutoff), last.weight.T)
        return [a + b * last.bias for a, b in zip(weighted, cutoff, strict=True)]
    *hidden, last = module
    for layer in hidden:
        x = series.matmul(x, layer.weight * (layer.h_in * layer.var_in) ** -0.5)
        x = series.scaled(series.silu(x), layer.act.cst * layer.var_out**0.5)
    if cutoff is not None:
        x = series.product(x, cutoff)
    return series.matmul(x, last.weight * (last.h_in * last.var_in / last.var_out) ** -0.5)


def edge_density(module: torch.nn.Module, x: Series, cutoff: Series | None) -> Series:
    """Return tanh(n(x)²), times an envelope, of a density network n, (u, 1)."""
    value = perceptron(module, x)
    density = series.hyperbolic_tangent(series.product(value, value))
    return density if cutoff is None else series.product(density, cutoff)
