"""What is known about elements before any label is seen: similar elements start with similar weights.

Most weights of the network exist once per element (embedding, self-connections, product basis).  With some hundred
crystals each element is seen a few times, and independent weights learn little from their neighbors in the periodic
table.  Here the random weights are drawn from a Gaussian process over the elements,

    W_z = Σ_z' L_zz' G_z',   L Lᵀ = K,   K_zz' = exp(−|x_z − x_z'|²/(2 ℓ²)),

with x_z standardized descriptors (electronegativity, ionization energy, covalent radius, period, valence electrons,
block).  Every W_z alone has the distribution that it would have without (K_zz = 1).  During the training the weights
may be drawn towards those of similar elements (:class:`Sharing`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def element_descriptors(atomic_numbers: Sequence[int]) -> FloatArray:
    """Return standardized descriptors of elements, shape (elements, 9); a missing value is the mean."""
    from ase.data import covalent_radii
    from pymatgen.core import Element

    rows = []
    for z in atomic_numbers:
        element = Element.from_Z(int(z))
        group = int(element.group)
        valence = group if group <= 12 else group - 10
        rows.append(
            [
                _number(element.X),
                _number(element.ionization_energy),
                float(covalent_radii[z]),
                float(element.row),
                float(valence),
                *(float(element.block == block) for block in "spdf"),
            ]
        )
    table = np.array(rows)
    table = np.where(np.isfinite(table), table, np.nanmean(table, axis=0))
    spread = table.std(axis=0)
    return (table - table.mean(axis=0)) / np.where(spread > 0, spread, 1.0)


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return float("nan")


def similarity(atomic_numbers: Sequence[int], length: float) -> FloatArray:
    """Return the kernel K between elements, 1 on the diagonal.

    Args:
        atomic_numbers: The elements.
        length: ℓ in units of the root mean square distance between two of them, divided by 2.
    """
    x = element_descriptors(atomic_numbers)
    squared = np.square(x[:, None] - x[None]).sum(axis=-1)
    count = len(x)
    mean = squared.sum() / max(count * (count - 1), 1)
    return np.exp(-squared / (2 * max(mean, 1e-12) * (length / 2) ** 2))


def similar_mean(atomic_numbers: Sequence[int], length: float) -> FloatArray:
    """Return S, which maps values by element to the kernel means over the other elements; rows sum to 1.

    An element that resembles no other one is mapped to itself.

    Args:
        atomic_numbers: The elements.
        length: See :func:`similarity`.
    """
    kernel = similarity(atomic_numbers, length)
    np.fill_diagonal(kernel, 0.0)
    total = kernel.sum(axis=1, keepdims=True)
    return np.where(total > 1e-6, kernel / np.maximum(total, 1e-12), np.eye(len(kernel)))


def element_blocks(network: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Yield views of all weights that exist once per element, the element first."""
    count = len(network.atomic_numbers)  # type: ignore[arg-type]
    yield network.node_embedding.linear.weight.view(count, -1)  # type: ignore[union-attr]
    for interaction in network.interactions:  # type: ignore[union-attr]
        product, offset = interaction.skip_tp, 0
        for instruction in product.instructions:
            size = int(np.prod(instruction.path_shape))
            block = product.weight[offset : offset + size].view(instruction.path_shape)
            offset += size
            if block.shape[1] == count:
                yield block.transpose(0, 1)
    for product in network.products:  # type: ignore[union-attr]
        for contraction in product.symmetric_contractions.contractions:
            for weight in (contraction.weights_max, *contraction.weights):
                if len(weight) == count:
                    yield weight


@torch.no_grad()
def correlate(network: torch.nn.Module, length: float) -> None:
    """Correlate the random weights of similar elements in place.

    Args:
        network: A network with fresh random weights.
        length: See :func:`similarity`.
    """
    kernel = similarity(network.atomic_numbers.tolist(), length)  # type: ignore[union-attr,operator]
    root = np.linalg.cholesky(kernel + 1e-9 * np.eye(len(kernel)))
    for block in element_blocks(network):
        factor = torch.as_tensor(root, dtype=block.dtype, device=block.device)
        block.copy_(torch.tensordot(factor, block.clone(), dims=1))


class Sharing:
    """Draws the weights of each element towards the kernel mean of the other ones.

    After a step with learning rate η: W_z ← W_z − η λ (W_z − Σ_{z'≠z} K_zz' W_z' / Σ_{z'≠z} K_zz').

    Args:
        network: The network.
        strength: λ.
        length: See :func:`similarity`.
    """

    def __init__(self, network: torch.nn.Module, strength: float, length: float) -> None:
        self.network = network
        self.strength = strength
        self.mean = similar_mean(network.atomic_numbers.tolist(), length)  # type: ignore[union-attr,operator]

    @torch.no_grad()
    def apply(self, learning_rate: float) -> None:
        """Take one step towards the mean."""
        rate = min(1.0, learning_rate * self.strength)
        for block in element_blocks(self.network):
            mean = torch.as_tensor(self.mean, dtype=block.dtype, device=block.device)
            block.lerp_(torch.tensordot(mean, block, dims=1), rate)
