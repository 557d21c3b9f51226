"""Checkpoints for the tests of the registry: small networks that differ by their seed."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from fieldflows.backends.mace_field.checkpoint import CheckpointMetadata, save_checkpoint
from fieldflows.backends.mace_field.network import NetworkConfig, build_network

METRICS = {"valid": {"born_charge_diagonal": {"unit": "e", "mae": 0.1, "rmse": 0.2, "r2": 0.9, "count": 6}}}


def write_checkpoint(path: Path, seed: int = 0, heads: tuple[str, ...] = ("Default",)) -> str:
    """Write a checkpoint and return its sha256."""
    config = NetworkConfig(
        atomic_numbers=[8, 12], atomic_energies=[[-1.0 - i, -0.5] for i in range(len(heads))], heads=list(heads),
        r_max=3.0, num_bessel=3, max_ell=1, hidden_irreps="2x0e + 2x1o", MLP_irreps="2x0e", correlation=1,
        radial_MLP=[4], avg_num_neighbors=6.0, scale=[1.0 + i for i in range(len(heads))],
        shift=[0.0] * len(heads),
    )  # fmt: skip
    metadata = CheckpointMetadata(
        name=f"oxide {seed}",
        network=config,
        trained_labels=("born_effective_charges", "polarizability"),
        license="MIT",
        provenance={"dataset_digest": "d" * 64, "metrics": METRICS},
    )
    return save_checkpoint(path, build_network(config, dtype=torch.float64, seed=seed), metadata)


def alter(path: Path) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))
