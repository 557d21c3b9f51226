"""A second implementation of Eq. 17, to judge the first: plain loops over paths and explicit tensors.

It shares no code with mace, e3nn, matscipy or the package.  It reads names and shapes of a state dict and the numbers
of a configuration (as a plain dictionary) and covers natural-parity features, Bessel functions and the agnostic
interaction blocks.  What it takes over as *data* are the coupling tables ``U_matrix_*`` and the weights.

Coupling coefficients are Gaunt integrals of its own spherical harmonics, scaled to unit Frobenius norm: for natural
parity all couplings have an even sum of degrees, so that these integrals determine them, sign included.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from math import factorial, pi, sqrt
from typing import Any

import numpy as np
import torch
from scipy.constants import elementary_charge, epsilon_0

VACUUM = epsilon_0 / elementary_charge * 1e-10
"""Permittivity of the vacuum, e/(V·Å)."""

Features = dict[int, torch.Tensor]
"""Degree -> (n, channels, 2 degree + 1)."""


def spherical_harmonics(unit: torch.Tensor, degree: int) -> torch.Tensor:
    """Real harmonics of one degree, (..., 2l+1), with Σ_m Y² = 2l+1.

    The polar axis is y and the azimuth runs from z to x, so that degree 1 is √3 (x, y, z).
    """
    x, y, z = unit.unbind(-1)
    cosine, sine = [torch.ones_like(x)], [torch.zeros_like(x)]  # real and imaginary part of (z + i x)^m
    for _ in range(degree):
        cosine.append(cosine[-1] * z - sine[-1] * x)
        sine.append(cosine[-2] * x + sine[-1] * z)
    columns = []
    for order in range(-degree, degree + 1):
        m = abs(order)
        previous, current = torch.zeros_like(y), torch.ones_like(y) * _odd_factorial(2 * m - 1)
        for l in range(m + 1, degree + 1):
            previous, current = current, ((2 * l - 1) * y * current - (l + m - 1) * previous) / (l - m)
        norm = sqrt((2 * degree + 1) * factorial(degree - m) / factorial(degree + m) * (2 if m else 1))
        columns.append(norm * current * (sine[m] if order < 0 else cosine[m]))
    return torch.stack(columns, dim=-1)


def _odd_factorial(n: int) -> int:
    return 1 if n < 1 else n * _odd_factorial(n - 2)


@cache
def coupling(l1: int, l2: int, l3: int) -> torch.Tensor:
    """Invariant tensor (2l1+1, 2l2+1, 2l3+1) of unit norm for an even sum of degrees, by exact quadrature."""
    if (l1 + l2 + l3) % 2:
        raise ValueError("an odd sum of degrees couples to unnatural parity")
    nodes, weights = np.polynomial.legendre.leggauss(12)
    azimuths = np.arange(24) * 2 * pi / 24
    y, phi = (torch.tensor(a.ravel()) for a in np.meshgrid(nodes, azimuths, indexing="ij"))
    rho = torch.sqrt(1 - y**2)
    points = torch.stack([rho * torch.sin(phi), y, rho * torch.cos(phi)], dim=-1)
    weight = torch.tensor(np.repeat(weights, len(azimuths)))
    values = [spherical_harmonics(points, l) for l in (l1, l2, l3)]
    integral = torch.einsum("p,pi,pj,pk->ijk", weight, *values)
    return integral / integral.norm()


@cache
def silu_scale() -> float:
    """Factor that gives silu(z) unit second moment, over the one million normal numbers that e3nn draws with seed 0."""
    sample = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return float((sample * torch.sigmoid(sample)).square().mean() ** -0.5)


def silu(x: torch.Tensor) -> torch.Tensor:
    return silu_scale() * x / (1 + torch.exp(-x))


@dataclass
class Crystal:
    """What the energy depends on."""

    species: list[int]
    positions: torch.Tensor
    cell: torch.Tensor
    field: torch.Tensor
    strain: torch.Tensor
    head: int = 0


class Independent:
    """Energy and response from a state dict and a configuration."""

    def __init__(self, state: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
        self.state = {name: value.detach().double() for name, value in state.items()}
        self.config = config
        self.hidden = _parse(config["hidden_irreps"])
        self.layers = config["num_interactions"]
        self.elements = len(config["atomic_numbers"])
        if config["radial_type"] != "bessel" or config["distance_transform"] != "None" or config["pair_repulsion"]:
            raise ValueError("not covered")

    # --- geometry -----------------------------------------------------------------------------------------------

    def edges(self, crystal: Crystal) -> tuple[list[int], list[int], torch.Tensor]:
        """Receivers, senders and vectors of all pairs closer than the cut-off, by trying every image."""
        cutoff = self.config["r_max"]
        cell = crystal.cell.detach().numpy()
        positions = crystal.positions.detach().numpy()
        reach = np.linalg.norm(np.linalg.inv(cell), axis=0) * (cutoff + np.ptp(positions, axis=0).sum() + 1)
        ranges = [range(-int(np.ceil(r)), int(np.ceil(r)) + 1) for r in reach]
        receivers, senders, images = [], [], []
        for image in product(*ranges):
            shift = np.array(image, dtype=float) @ cell
            for i, j in product(range(len(positions)), repeat=2):
                distance = np.linalg.norm(positions[i] - positions[j] + shift)
                if distance < cutoff and not (i == j and image == (0, 0, 0)):
                    receivers.append(i)
                    senders.append(j)
                    images.append(image)
        shifts = torch.tensor(np.array(images, dtype=float).reshape(-1, 3)) @ crystal.cell
        vectors = crystal.positions[receivers] - crystal.positions[senders] + shifts
        deformation = torch.eye(3, dtype=torch.float64) + 0.5 * (crystal.strain + crystal.strain.T)
        return receivers, senders, vectors @ deformation

    def radial(self, lengths: torch.Tensor) -> torch.Tensor:
        """Bessel functions times the polynomial envelope, (e, basis)."""
        cutoff, p = self.config["r_max"], self.config["num_polynomial_cutoff"]
        x = lengths / cutoff
        envelope = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
        frequencies = torch.arange(1, self.config["num_bessel"] + 1, dtype=torch.float64) * pi / cutoff
        return sqrt(2 / cutoff) * torch.sin(frequencies * lengths[:, None]) / lengths[:, None] * envelope[:, None]

    # --- building blocks ----------------------------------------------------------------------------------------

    def linear(self, name: str, blocks: list[tuple[int, torch.Tensor]], outputs: dict[int, int]) -> Features:
        """Mix channels degree by degree; ``blocks`` may hold a degree several times, fan-in is counted over all."""
        weight = self.state[f"{name}.weight"]
        fan_in = {l: sum(x.shape[1] for k, x in blocks if k == l) for l in outputs}
        result: Features = {}
        start = 0
        for l, x in blocks:
            if l not in outputs:
                continue
            size = x.shape[1] * outputs[l]
            matrix = weight[start : start + size].reshape(x.shape[1], outputs[l]) / sqrt(fan_in[l])
            start += size
            term = torch.einsum("nui,uw->nwi", x, matrix)
            result[l] = result[l] + term if l in result else term
        assert start == len(weight), name
        return result

    def by_element(self, name: str, features: Features, outputs: dict[int, int], species: list[int]) -> Features:
        """Mix channels with one matrix per element (a product with the one-hot scalars)."""
        weight = self.state[f"{name}.weight"]
        result: Features = {}
        start = 0
        for l, x in features.items():
            if l not in outputs:
                continue
            shape = (x.shape[1], self.elements, outputs[l])
            size = int(np.prod(shape))
            cube = weight[start : start + size].reshape(shape) / sqrt(x.shape[1] * self.elements)
            start += size
            result[l] = torch.stack([x[n].T @ cube[:, z, :] for n, z in enumerate(species)]).transpose(1, 2)
        assert start == len(weight), name
        return result

    def net(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Fully connected net without biases; silu between layers, none after the last."""
        depth = 0
        while f"{name}.layer{depth}.weight" in self.state:
            depth += 1
        for k in range(depth):
            matrix = self.state[f"{name}.layer{k}.weight"]
            x = x @ matrix / sqrt(matrix.shape[0])
            if k < depth - 1:
                x = silu(x)
        return x

    def convolution(
        self, name: str, features: Features, edges: tuple[list[int], list[int], torch.Tensor], radial: torch.Tensor
    ) -> list[tuple[int, torch.Tensor]]:
        """Messages of every path (l1, l2) -> l3, paths ordered by l3, summed over neighbors."""
        receivers, senders, vectors = edges
        unit = vectors / vectors.norm(dim=-1, keepdim=True)
        max_ell = self.config["max_ell"]
        harmonics = [spherical_harmonics(unit, l) for l in range(max_ell + 1)]
        paths = [
            (l1, l2, l3)
            for l1 in features
            for l2 in range(max_ell + 1)
            for l3 in range(abs(l1 - l2), min(l1 + l2, max_ell) + 1)
            if (l1 + l2 + l3) % 2 == 0
        ]
        paths.sort(key=lambda path: path[2])  # stable
        weights = self.net(f"{name}.conv_tp_weights", radial)
        count = len(next(iter(features.values())))
        blocks = []
        start = 0
        for l1, l2, l3 in paths:
            sender = features[l1][senders]
            w = weights[:, start : start + sender.shape[1]]
            start += sender.shape[1]
            message = sqrt(2 * l3 + 1) * torch.einsum(
                "eu,eui,ej,ijk->euk", w, sender, harmonics[l2], coupling(l1, l2, l3)
            )
            total = torch.zeros(count, *message.shape[1:], dtype=torch.float64)
            blocks.append((l3, total.index_add(0, torch.tensor(receivers, dtype=torch.int64), message)))
        assert start == weights.shape[1]
        return blocks

    def interaction(
        self, layer: int, features: Features, species: list[int], edges: Any, radial: torch.Tensor, out: dict[int, int]
    ) -> tuple[torch.Tensor, Features | None]:
        """One interaction block: messages (n, channels, Σ 2l+1) and the skip connection."""
        name = f"interactions.{layer}"
        kind = self.config["interaction_cls_first" if layer == 0 else "interaction_cls"]
        up = self.linear(f"{name}.linear_up", list(features.items()), {l: x.shape[1] for l, x in features.items()})
        blocks = self.convolution(name, up, edges, radial)
        degrees = dict.fromkeys(range(self.config["max_ell"] + 1), self.hidden[0])
        message = self.linear(f"{name}.linear", blocks, degrees)
        if "Density" in kind:
            density = torch.tanh(self.net(f"{name}.density_fn", radial) ** 2)
            total = torch.zeros(len(species), 1, dtype=torch.float64)
            norm = 1 + total.index_add(0, torch.tensor(edges[0], dtype=torch.int64), density)[:, :, None]
        else:
            norm = self.config["avg_num_neighbors"]
        message = {l: x / norm for l, x in message.items()}
        skip = None
        if "Residual" in kind:
            skip = self.by_element(f"{name}.skip_tp", features, out, species)
        else:
            message = self.by_element(f"{name}.skip_tp", message, degrees, species)
        return torch.cat([message[l] for l in sorted(message)], dim=-1), skip

    def many_body(self, layer: int, message: torch.Tensor, species: list[int], out: dict[int, int]) -> Features:
        """Products of up to ν messages of one atom, coupled to each output degree, then a linear map."""
        order = self.config["correlation"]
        order = order if isinstance(order, int) else order[layer]
        result: Features = {}
        for index, l in enumerate(out):
            name = f"products.{layer}.symmetric_contractions.contractions.{index}"
            total = torch.zeros(message.shape[0], message.shape[1], 2 * l + 1, dtype=torch.float64)
            for body in range(1, order + 1):
                table = self.state[f"{name}.U_matrix_{body}"]
                if l == 0:
                    table = table[None]
                key = "weights_max" if body == order else f"weights.{order - 1 - body}"
                weight = self.state[f"{name}.{key}"]
                for n, z in enumerate(species):
                    terms = torch.einsum("a...k,kc->ca...", table, weight[z])
                    for _ in range(body):
                        terms = torch.einsum("c...i,ci->c...", terms, message[n])
                    total[n] = total[n] + terms
            result[l] = total
        return self.linear(f"products.{layer}.linear", list(result.items()), out)

    def couple(self, layer: int, features: Features, field: torch.Tensor) -> Features:
        """h − Linear(h ⊗ 𝓔)."""
        weight = self.state[f"field_feats.{layer}.weight"]
        paths = [(l1, l3) for l1 in features for l3 in features if abs(l1 - l3) == 1]
        fan_in = {l3: sum(features[l1].shape[1] for l1, k in paths if k == l3) for _, l3 in paths}
        change: Features = {l: torch.zeros_like(x) for l, x in features.items()}
        start = 0
        for l1, l3 in paths:
            shape = (features[l1].shape[1], features[l3].shape[1])
            matrix = weight[start : start + shape[0] * shape[1]].reshape(shape) * sqrt((2 * l3 + 1) / fan_in[l3])
            start += shape[0] * shape[1]
            term = torch.einsum("uw,nui,j,ijk->nwk", matrix, features[l1], field, coupling(l1, 1, l3))
            change[l3] = change[l3] + term
        assert start == len(weight)
        mixed = self.linear(f"field_linear.{layer}", list(change.items()), {l: x.shape[1] for l, x in change.items()})
        return {l: x - mixed[l] for l, x in features.items()}

    def readout(self, layer: int, scalars: torch.Tensor, head: int) -> torch.Tensor:
        """Energy per atom of one layer."""
        name = f"readouts.{layer}"
        heads = len(self.config["heads"])
        if layer < self.layers - 1:
            return self.linear(f"{name}.linear", [(0, scalars)], {0: heads})[0][:, head, 0]
        width = _parse(self.config["MLP_irreps"])[0]
        x = silu(self.linear(f"{name}.linear_1", [(0, scalars)], {0: heads * width})[0])
        if heads > 1:
            mask = torch.zeros(heads * width, dtype=torch.float64)
            mask[head * width : (head + 1) * width] = 1
            x = x * mask[:, None]
        return self.linear(f"{name}.linear_2", [(0, x)], {0: heads})[0][:, head, 0]

    # --- the whole ----------------------------------------------------------------------------------------------

    def enthalpy(self, crystal: Crystal) -> torch.Tensor:
        """F of one crystal, eV."""
        config, species = self.config, crystal.species
        edges = self.edges(crystal)
        radial = self.radial(edges[2].norm(dim=-1))
        embedding = self.state["node_embedding.linear.weight"].reshape(self.elements, -1) / sqrt(self.elements)
        features: Features = {0: embedding[species][:, :, None]}
        energy = torch.zeros(len(species), dtype=torch.float64)
        for layer in range(self.layers):
            last = layer == self.layers - 1
            out = {0: self.hidden[0]} if last else self.hidden
            message, skip = self.interaction(layer, features, species, edges, radial, out)
            features = self.many_body(layer, message, species, out)
            if skip is not None:
                features = {l: x + skip[l] if l in skip else x for l, x in features.items()}
            if not last:
                features = self.couple(layer, features, crystal.field)
            energy = energy + self.readout(layer, features[0], crystal.head)
        scale, shift = (np.atleast_1d(config[key])[crystal.head] for key in ("scale", "shift"))
        baselines = np.atleast_2d(config["atomic_energies"])[crystal.head]
        total = (float(scale) * energy + float(shift)).sum() + float(sum(baselines[z] for z in species))
        if config["element_polarizability"]:
            atomic = self.state["element_polarizability"][species].sum()
            total = total - 0.5 * atomic * (crystal.field**2).sum()
        if config.get("composition_polarizability"):
            volume = torch.linalg.det(crystal.cell @ (torch.eye(3, dtype=torch.float64) + crystal.strain)).abs()
            chi = self.susceptibility(species, volume / len(species))
            total = total - 0.5 * VACUUM * volume * chi * (crystal.field**2).sum()
        return total

    def susceptibility(self, species: list[int], volume: torch.Tensor) -> torch.Tensor:
        """χ₀ of a composition at a volume per atom in Å³, point by point."""
        part = {k.removeprefix("composition_polarizability."): v.double() for k, v in self.state.items()}

        def statistics(share: torch.Tensor) -> torch.Tensor:
            present = share > 0
            rows, weights = part["properties"][present], share[present][:, None]
            mean = (weights * rows).sum(0)
            spread = (weights * (rows - mean) ** 2).sum(0).sqrt()
            values = torch.cat([mean, spread, rows.min(0).values, rows.max(0).values])
            return (values - part["center"][1:]) / part["spread"][1:]

        share = torch.bincount(torch.tensor(species), minlength=self.elements).double() / len(species)
        lengths, own = part["lengths"], statistics(share)
        logarithm = part["mean"]
        for known, size, weight in zip(part["fractions"], part["volumes"], part["weights"], strict=True):
            parts = [
                ((volume - size) / part["spread"][0] / lengths[0]) ** 2,
                (own - statistics(known)).square().sum() / lengths[1] ** 2,
                (share - known).square().sum() / lengths[2] ** 2,
            ]
            r = (3 * torch.stack(parts).sum() + 1e-12).sqrt()
            logarithm = logarithm + weight * (1 + r) * torch.exp(-r)
        return torch.exp(logarithm)

    def response(self, numbers: Any, positions: Any, cell: Any, field: Any, head: int = 0) -> dict[str, np.ndarray]:
        """All observables in the units and index orders of the package, from one Hessian by positions and field."""
        species = [self.config["atomic_numbers"].index(int(z)) for z in numbers]
        cell = torch.tensor(np.array(cell), dtype=torch.float64)
        n = len(species)
        origin = torch.tensor(np.concatenate([np.array(positions).ravel(), np.array(field, dtype=float)]))
        no_strain = torch.zeros(3, 3, dtype=torch.float64)

        def enthalpy(variables: torch.Tensor, strain: torch.Tensor = no_strain) -> torch.Tensor:
            return self.enthalpy(
                Crystal(species, variables[: 3 * n].reshape(n, 3), cell, variables[3 * n :], strain, head)
            )

        variables = origin.clone().requires_grad_(True)
        strain = no_strain.clone().requires_grad_(True)
        value = enthalpy(variables, strain)
        by_variables, by_strain = torch.autograd.grad(value, (variables, strain))
        second = torch.autograd.functional.hessian(enthalpy, origin)
        volume = float(torch.linalg.det(cell).abs())
        return {
            "energy": value.detach().numpy(),
            "forces": -by_variables[: 3 * n].reshape(n, 3).numpy(),
            "stress": by_strain.numpy() / volume,
            "polarization": -by_variables[3 * n :].numpy() / volume,
            "born_effective_charges": -second[3 * n :, : 3 * n].reshape(3, n, 3).transpose(0, 1).numpy(),
            "polarizability": -second[3 * n :, 3 * n :].numpy() / volume,
            "hessian": second[: 3 * n, : 3 * n].numpy(),
        }


def _parse(irreps: str) -> dict[int, int]:
    """ "8x0e + 8x1o" -> {0: 8, 1: 8}."""
    result = {}
    for part in irreps.split("+"):
        channels, irrep = part.strip().split("x")
        degree, parity = int(irrep[:-1]), irrep[-1]
        if parity != ("e" if degree % 2 == 0 else "o") or degree in result:
            raise ValueError(f"{irreps} is not of natural parity")
        result[degree] = int(channels)
    return result
