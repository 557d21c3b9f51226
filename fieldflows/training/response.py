"""Predictions of a batch for a loss: what there are labels for, and no derivative besides."""

from __future__ import annotations

import torch

from fieldflows.backends.mace_field.derivatives import Enthalpy, respond
from fieldflows.training.data import Batch
from fieldflows.training.symmetry import SECOND_DERIVATIVES


def full_response(network: Enthalpy, batch: Batch, create_graph: bool = False) -> dict[str, torch.Tensor]:
    """Return the observables that the batch has labels for, Z* (n, 3, 3) and α (g, 3, 3) complete.

    With a reduction, primitive cells are evaluated, second derivatives along its directions, and all is completed.

    Args:
        network: The network, or the fast engine.
        batch: The frames; its targets say what is needed.
        create_graph: Keep the graph, for the gradient of a loss by the parameters.
    """
    if batch.reduction is None:
        return respond(network, batch.graph, tuple(batch.targets), create_graph=create_graph)
    directions = batch.reduction.directions
    products = respond(network, batch.graph, tuple(batch.targets), create_graph=create_graph, directions=directions)
    return batch.reduction.complete(products)


def directional_response(network: Enthalpy, batch: Batch, directions: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return predictions for a training step with Z* and α along one direction v per frame.

    One second derivative replaces three: with g = v·∂F/∂𝓔, summed over the frames, (v·Z*)_κj = −∂g/∂u_κj and
    α·v = −(1/Ω) ∂g/∂𝓔.  First derivatives (forces, stress, polarization) are complete.

    Args:
        network: The network, or the fast engine.
        batch: The frames; its targets say what is needed.
        directions: (g, 3).

    Returns:
        energy (g,), forces (n, 3), stress (g, 3, 3), polarization (g, 3), born_effective_charges (n, 3) and
        polarizability (g, 3), as far as there are labels.
    """
    results = respond(network, batch.graph, tuple(batch.targets), create_graph=True, directions=directions[None])
    return {key: value.squeeze(1) if key in SECOND_DERIVATIVES else value for key, value in results.items()}
