"""Invariant features of atoms, as a network sees them."""

from __future__ import annotations

import torch

from fieldflows.backends.mace_field._mace import o3
from fieldflows.backends.mace_field.graphs import Graph
from fieldflows.backends.mace_field.network import MACEFieldNetwork


def invariant_features(network: MACEFieldNetwork, graph: Graph) -> torch.Tensor:
    """Return the scalar node features after all layers at zero field, shape (n, channels of all layers).

    These are the invariants of mace's ``MACECalculator.get_descriptors``.

    Args:
        network: The network.
        graph: A batch of n atoms in all.
    """
    found: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        irreps = o3.Irreps(str(module.linear.irreps_out))  # type: ignore[union-attr]
        parts = [
            output[:, part] for part, (_, ir) in zip(irreps.slices(), irreps, strict=True) if ir.l == 0 and ir.p == 1
        ]
        found.append(torch.cat(parts, dim=1))

    handles = [product.register_forward_hook(keep) for product in network.products]
    try:
        with torch.no_grad():
            network(graph)
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(found, dim=1)
