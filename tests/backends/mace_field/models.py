"""Small networks and crystals that the tests of this folder share."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from ase import Atoms

from fieldflows.backends.mace_field.checkpoint import CheckpointMetadata
from fieldflows.backends.mace_field.model import MACEFieldModel
from fieldflows.backends.mace_field.network import MACEFieldNetwork, NetworkConfig, build_network

ALL = (
    "energy",
    "forces",
    "stress",
    "polarization",
    "born_effective_charges",
    "polarizability",
    "hessian",
)
"""Every observable."""

HIDDEN = {"L1": "4x0e + 4x1o", "L2": "4x0e + 4x1o + 4x2e"}
"""Hidden irreps up to degree 1 and 2."""

GAINS = {"symmetric_contractions": 6.0, "field_linear": 8.0, ".linear.weight": 2.5}
"""Random weights are enlarged so that responses have the size of those of a real crystal; else they drown."""

FIELD = np.array([0.03, -0.05, 0.02])
"""A field without symmetry, V/Å."""


def small_config(**changes: Any) -> NetworkConfig:
    """A two-layer configuration for O, Na and Ti with four channels."""
    values: dict[str, Any] = {
        "atomic_numbers": [8, 11, 22],
        "r_max": 3.4,
        "num_bessel": 4,
        "num_polynomial_cutoff": 5,
        "max_ell": 2,
        "hidden_irreps": HIDDEN["L1"],
        "MLP_irreps": "4x0e",
        "correlation": 2,
        "radial_MLP": [8, 8],
        "atomic_energies": [-1.5, -0.25, 3.75],
        "avg_num_neighbors": 9.0,
        "scale": 2.8,
        "shift": 0.11,
    }
    return NetworkConfig(**{**values, **changes})


@cache
def _cached(document: str, seed: int, lively: bool) -> MACEFieldNetwork:
    network = build_network(NetworkConfig.model_validate_json(document), torch.float64, seed=seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            for part, gain in GAINS.items() if lively else ():
                if part in name and not name.startswith(("node", "readouts", "products.0.linear")):
                    parameter.mul_(gain)
        if network.config.element_polarizability:
            network.element_polarizability.copy_(
                torch.linspace(0.3, 1.1, len(network.config.atomic_numbers), dtype=torch.float64)
            )
    return network.eval().requires_grad_(False)


def small_network(seed: int = 3, lively: bool = True, **changes: Any) -> MACEFieldNetwork:
    """A network with random weights, built once per process; do not change it."""
    return _cached(small_config(**changes).model_dump_json(), seed, lively)


def small_model(seed: int = 3, batch_bytes: float | None = None, **changes: Any) -> MACEFieldModel:
    """A model around :func:`small_network`, declared as trained on everything."""
    network = small_network(seed, **changes)
    metadata = CheckpointMetadata(name="small", network=network.config, trained_labels=ALL[:-1])
    return MACEFieldModel(network, metadata, sha256="0" * 64, batch_bytes=batch_bytes)


def triclinic() -> Atoms:
    """Three atoms without any symmetry."""
    return Atoms(
        "OTiNa",
        cell=[[3.3, 0.2, -0.1], [0.4, 3.6, 0.3], [-0.5, 0.35, 3.9]],
        scaled_positions=[[0.03, 0.05, -0.02], [0.48, 0.56, 0.41], [0.61, 0.07, 0.55]],
        pbc=True,
    )


def cubic(displaced: bool = False) -> Atoms:
    """Rock salt NaO in its primitive cell, or a cubic cell of three atoms with one of them off its site."""
    if not displaced:
        return Atoms(
            "NaO",
            cell=2.3 * (np.ones((3, 3)) - np.eye(3)),
            scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5]],
            pbc=True,
        )
    return Atoms(
        "NaTiO",
        cell=[3.9, 3.9, 3.9],
        scaled_positions=[[0, 0, 0], [0.52, 0.49, 0.51], [0.5, 0.5, 0.03]],
        pbc=True,
    )
