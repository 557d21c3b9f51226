"""Crystals and the network of the benchmark."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from ase.spacegroup import crystal

from fieldflows.backends.mace_field.checkpoint import CheckpointMetadata
from fieldflows.backends.mace_field.model import MACEFieldModel
from fieldflows.backends.mace_field.network import NetworkConfig, build_network


def crystals() -> dict[str, Atoms]:
    """Return the structures by tag; the letter stands for the lattice, the number for the atoms in the cell.

    p5: cubic perovskite SrTiO3; q9: alpha quartz SiO2; r10: the primitive cell of LiNbO3, every atom displaced at
    random (0.05 Å per component), so that no symmetry is left.
    """
    perovskite = crystal(
        ["Sr", "Ti", "O"],
        basis=[(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)],
        spacegroup=221,
        cellpar=(3.905, 3.905, 3.905, 90, 90, 90),
    )
    quartz = crystal(
        ["Si", "O"],
        basis=[(0.4697, 0, 2 / 3), (0.4135, 0.2669, 0.7857667)],
        spacegroup=154,
        cellpar=(4.916, 4.916, 5.4054, 90, 90, 120),
    )
    niobate = crystal(
        ["Nb", "Li", "O"],
        basis=[(0, 0, 0), (0, 0, 0.2829), (0.0492, 0.3446, 0.0647)],
        spacegroup=161,
        cellpar=(5.14829, 5.14829, 13.8631, 90, 90, 120),
        primitive_cell=True,
    )
    niobate.positions += np.random.default_rng(1).normal(scale=0.05, size=niobate.positions.shape)
    return {"p5": perovskite, "q9": quartz, "r10": niobate}


def random_model(channels: int = 128, dtype: torch.dtype = torch.float64, seed: int = 0) -> MACEFieldModel:
    """Return a model of the published architecture (2 layers, max L 1, correlation 3) with random weights."""
    numbers = sorted({int(z) for atoms in crystals().values() for z in atoms.numbers})
    config = NetworkConfig(
        atomic_numbers=numbers,
        atomic_energies=[0.0] * len(numbers),
        r_max=5.0,
        num_bessel=10,
        hidden_irreps=f"{channels}x0e + {channels}x1o",
        MLP_irreps="16x0e",
        correlation=3,
        avg_num_neighbors=25.0,
    )
    network = build_network(config, dtype, seed=seed)
    return MACEFieldModel(network, CheckpointMetadata(name=f"random-{channels}", network=config), sha256="0" * 64)
