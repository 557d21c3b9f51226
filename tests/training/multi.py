"""Datasets, networks and files of runs with several heads and foundations."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

from fieldflows.backends.mace_field.checkpoint import save_checkpoint
from fieldflows.backends.mace_field.foundation import describe
from fieldflows.backends.mace_field.network import MACEFieldNetwork, NetworkConfig, build_network
from fieldflows.datasets.frame import LabeledFrame
from fieldflows.training.config import TrainingConfig
from tests.training.crystals import COMPOUNDS, SmallDataset, label, rattled, teacher

NUMBERS = [8, 9, 11, 12, 16, 17]


def plain_network(seed: int = 5, heads: tuple[str, ...] = ("Default",), **changes) -> MACEFieldNetwork:
    """Return a small network without field blocks: a foundation."""
    count = len(heads)
    energies = [[-3.0 - h, -2.0, -1.0, -4.0, -2.5, -1.5] for h in range(count)]
    settings = {
        "atomic_numbers": NUMBERS, "atomic_energies": energies if count > 1 else energies[0], "r_max": 3.5,
        "max_ell": 2, "hidden_irreps": "4x0e + 4x1o", "MLP_irreps": "4x0e", "correlation": 2, "radial_MLP": [8],
        "avg_num_neighbors": 6.0, "field_coupling": False, "heads": list(heads),
        "scale": [1.0 + 0.2 * h for h in range(count)] if count > 1 else 1.0,
        "shift": [0.1 * h for h in range(count)] if count > 1 else 0.0,
    }  # fmt: skip
    return build_network(NetworkConfig(**{**settings, **changes}), dtype=torch.float64, seed=seed)


def save(network: MACEFieldNetwork, path: Path) -> Path:
    """Write a network as a checkpoint file."""
    save_checkpoint(path, network, describe(network, "tiny", ["energy", "forces", "stress"]))
    return path


def frames_of(names, compounds, splits=("train", "train", "valid"), head=None, source="teacher", network=None, start=0):
    """Return labeled crystals of some compounds, one per split entry and compound."""
    network = network or teacher()
    frames = []
    for compound in compounds:
        for i, split in enumerate(splits):
            atoms = rattled(compound, start + i)
            extra = {} if head is None else {"head": head}
            frames.append(
                LabeledFrame(
                    atoms, label(network, atoms, names), COMPOUNDS[compound][0], source, start + 10 * compound + i,
                    split=split, extra=extra,
                )
            )  # fmt: skip
    return frames


RESPONSE = ("born_effective_charges", "polarizability")
SURFACE = ("energy", "forces", "stress")


@lru_cache
def two_heads() -> SmallDataset:
    """Return Z* and α in one head, energies and forces in another, of the same compounds, split alike."""
    frames = []
    for head, names, start in (("dielectric", RESPONSE, 0), ("surface", SURFACE, 20)):
        frames += frames_of(names, (0, 1), ("train", "train"), head=head, start=start)
        frames += frames_of(names, (2,), ("valid", "valid"), head=head, start=start)
    return SmallDataset(frames)


def heads_config(heads=None, **changes) -> TrainingConfig:
    """Return the configuration of a tiny network with two heads; sections are merged key by key."""
    terms = {
        "energy": {"scale": 0.1}, "forces": {"scale": "spread"},
        "born_effective_charges": {"scale": "spread"}, "polarizability": {"scale": "spread"},
    }  # fmt: skip
    data = {
        "heads": heads
        or {
            "dielectric": {"dataset": {"path": "unused"}, "labels": {"born_effective_charges": 1, "polarizability": 1}},
            "surface": {"dataset": {"path": "unused"}, "weight": 2.0},
        },
        "model": {
            "name": "tiny",
            "architecture": {
                "channels": 4, "max_ell": 2, "correlation": 2, "cutoff": 3.5, "num_bessel": 4, "radial_MLP": [8],
                "readout_channels": 4,
            },
        },
        "loss": {"terms": terms},
        "optimizer": {"learning_rate": 0.01, "warm_up_steps": 2},
        "run": {"epochs": 2, "batch_structures": 4, "dtype": "float64", "threads": 1, "seed": 3, "ema_decay": None},
    }  # fmt: skip
    for section, values in changes.items():
        data[section] = {**data.get(section, {}), **values}
    return TrainingConfig.from_dict(data)


def subsets(dataset: SmallDataset):
    """Return split to frames."""
    return {split: dataset.subset(split) for split in ("train", "valid", "test")}
