"""Small labeled crystals for training tests: a teacher network labels them, a student can learn them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from fieldflows.backends.mace_field.derivatives import respond
from fieldflows.backends.mace_field.graphs import build_graph
from fieldflows.backends.mace_field.network import NetworkConfig, build_network
from fieldflows.datasets.frame import LabeledFrame
from fieldflows.training.config import TrainingConfig

COMPOUNDS = (("NaCl", 5.6), ("MgO", 4.2), ("NaF", 4.6), ("MgS", 5.2))
LABELS = ("energy", "forces", "stress", "polarization", "born_effective_charges", "polarizability")


@dataclass(frozen=True)
class SmallDataset:
    """What a training run needs of a dataset."""

    frames: list[LabeledFrame]

    @property
    def digest(self) -> str:
        text = repr([(f.name, f.split, sorted(f.labels), f.atoms.positions.tolist()) for f in self.frames])
        return hashlib.sha256(text.encode()).hexdigest()

    def subset(self, split: str) -> list[LabeledFrame]:
        return [frame for frame in self.frames if frame.split == split]


def rattled(compound: int, seed: int) -> Atoms:
    formula, a = COMPOUNDS[compound]
    atoms = bulk(formula, "rocksalt", a=a)
    generator = np.random.default_rng([compound, seed])
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + 0.03 * generator.normal(size=(3, 3))), scale_atoms=True)
    atoms.positions += 0.08 * generator.normal(size=(len(atoms), 3))
    return atoms


def teacher(seed: int = 11):
    numbers = [8, 9, 11, 12, 16, 17]
    config = NetworkConfig(
        atomic_numbers=numbers, atomic_energies=[-3.0, -2.0, -1.0, -4.0, -2.5, -1.5], r_max=3.5, max_ell=2,
        hidden_irreps="4x0e + 4x1o", MLP_irreps="4x0e", correlation=2, radial_MLP=[8], avg_num_neighbors=6.0,
        element_polarizability=True,
    )  # fmt: skip
    network = build_network(config, dtype=torch.float64, seed=seed)
    with torch.no_grad():
        network.element_polarizability.copy_(torch.linspace(0.1, 0.3, len(numbers), dtype=torch.float64))
        network.field_linear[0].weight.mul_(10.0)
        network.readouts[0].linear.weight.mul_(10.0)
    return network


def label(network, atoms: Atoms, names=LABELS) -> dict[str, np.ndarray]:
    graph = build_graph(atoms, network.config.atomic_numbers, network.config.r_max)
    found = respond(network, graph, names)
    result = {}
    for key, value in found.items():
        array = value.numpy()
        result[key] = array if key in ("forces", "born_effective_charges") else array[0]
    return result


def small_dataset(n_train: int = 8, n_valid: int = 2, n_test: int = 2, names=LABELS) -> SmallDataset:
    network = teacher()
    frames = []
    for split, count, start in (("train", n_train, 0), ("valid", n_valid, 100), ("test", n_test, 200)):
        for i in range(count):
            atoms = rattled(i % len(COMPOUNDS), start + i)
            material = COMPOUNDS[i % len(COMPOUNDS)][0]
            frames.append(
                LabeledFrame(atoms, label(network, atoms, names), material, "teacher", start + i, split=split)
            )
    return SmallDataset(frames)


def symmetric(compound: int, shape: int) -> Atoms:
    """Return rock salt as it is, orthorhombic, sheared to a monoclinic crystal, or without any symmetry.

    They need 1, 1, 2 and 3 field directions.
    """
    formula, a = COMPOUNDS[compound]
    atoms = bulk(formula, "rocksalt", a=a)
    strain = [np.zeros((3, 3)), np.diag([0.02, -0.03, 0.05]), np.diag([0.02, -0.03, 0.05]), np.zeros((3, 3))][shape]
    if shape == 2:
        strain[0, 1] = strain[1, 0] = 0.04
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
    if shape == 3:
        return rattled(compound, 7)
    # a distortion that a search within 1 mÅ takes for noise
    atoms.positions += 1e-5 * np.random.default_rng([compound, shape]).uniform(-1, 1, size=atoms.positions.shape)
    return atoms


def symmetric_dataset(names=LABELS) -> SmallDataset:
    """Return frames that need 1, 1, 2 and 3 field directions, of two compounds for training and a third otherwise."""
    network = teacher()
    frames = []
    for split, compounds in (("train", (0, 1)), ("valid", (2,))):
        for compound in compounds:
            for shape in range(4):
                atoms = symmetric(compound, shape)
                labels = label(network, atoms, names)
                index = 10 * compound + shape
                frames.append(LabeledFrame(atoms, labels, COMPOUNDS[compound][0], "teacher", index, split=split))
    return SmallDataset(frames)


def tiny_config(**changes) -> TrainingConfig:
    """Return a configuration of a tiny network; sections are merged key by key."""
    data = {
        "dataset": {"path": "unused"},
        "model": {
            "name": "tiny",
            "architecture": {
                "channels": 4, "max_ell": 2, "correlation": 2, "cutoff": 3.5, "num_bessel": 4, "radial_MLP": [8],
                "readout_channels": 4,
            },
        },
        "loss": {
            "terms": {
                "born_effective_charges": {"scale": "spread"},
                "polarizability": {"scale": "spread"},
            }
        },
        "optimizer": {"learning_rate": 0.01, "warm_up_steps": 2},
        "run": {"epochs": 4, "batch_structures": 3, "dtype": "float64", "threads": 1, "seed": 3, "ema_decay": 0.9},
    }  # fmt: skip
    for section, values in changes.items():
        if section == "loss" and "terms" in values:
            data["loss"] = dict(values)
        else:
            data[section] = {**data.get(section, {}), **values}
    return TrainingConfig.from_dict(data)


ALL_TERMS = {
    "energy": {"weight": 1.0, "scale": 0.1},
    "forces": {"weight": 1.0, "scale": "spread"},
    "stress": {"weight": 0.1, "scale": "spread"},
    "polarization": {"weight": 1.0, "scale": "spread"},
    "born_effective_charges": {"weight": 1.0, "scale": "spread"},
    "polarizability": {"weight": 1.0, "scale": "spread"},
}
