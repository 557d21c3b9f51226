"""A small Matbench file and a dataset of the same crystals, labeled by the closed-form toy model."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.io import write

from fieldflows import load_model
from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import Dataset, build_dataset
from fieldflows.datasets.matbench import official_folds, official_mbid
from fieldflows.physics.dielectric import electronic_permittivity
from fieldflows.physics.optics import refractive_index
from fieldflows.structures import as_structure

LENGTHS = {"Li": 4.3, "Na": 4.9, "K": 5.6, "Rb": 6.0}
LARGER = {"F": 0.0, "Cl": 0.8, "Br": 1.1, "I": 1.6}
RAISED = 3.0
"""Labels are so many times the true n, so that there is much to correct."""
MARKED = "KMgF3"
"""The crystal that is planted: its formula and magnesium occur nowhere else."""

TRAIN = {
    "dataset": {"config": "data.yaml"},
    "model": {
        "name": "small",
        "architecture": {
            "channels": 2, "max_ell": 1, "correlation": 1, "cutoff": 3.6, "radial_MLP": [4], "num_bessel": 3,
        },
    },
    "run": {"epochs": 2, "batch_structures": 4, "threads": 1, "dtype": "float64"},
}  # fmt: skip


def halides() -> dict[str, Atoms]:
    """Return sixteen rocksalt crystals by formula."""
    return {
        cation + anion: bulk(cation + anion, "rocksalt", a=LENGTHS[cation] + LARGER[anion])
        for cation in LENGTHS
        for anion in LARGER
    }


def marked() -> Atoms:
    """Return the cubic perovskite KMgF₃."""
    places = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    return Atoms("KMgF3", scaled_positions=places, cell=np.eye(3) * 3.99, pbc=True)


def crystals() -> dict[str, Atoms]:
    """Return all crystals by formula, the planted one last."""
    return {**halides(), MARKED: marked()}


def fold_of(formula: str) -> int:
    """Return the fold that a crystal is in: in turn, and 2 for the planted one."""
    return 2 if formula == MARKED else list(halides()).index(formula) % 5


def mbids() -> dict[str, str]:
    """Return an official identifier for each crystal, of its fold."""
    folds = official_folds()
    free = {fold: iter(np.flatnonzero(folds == fold)) for fold in range(5)}
    return {formula: official_mbid(int(next(free[fold_of(formula)]))) for formula in crystals()}


def true_index(atoms: Atoms) -> float:
    """Return n of the toy model."""
    return refractive_index(electronic_permittivity(load_model("toy").evaluate(atoms).polarizability))


def write_task(folder: Path, changed: Mapping[str, float] | None = None) -> tuple[Path, Path]:
    """Write file and index; n is that of the toy model, times RAISED, unless it is changed."""
    labels = {formula: RAISED * true_index(atoms) for formula, atoms in crystals().items()} | dict(changed or {})
    rows = [[as_structure(atoms).as_dict(), labels[formula]] for formula, atoms in crystals().items()]
    path, index = folder / "matbench.json.gz", folder / "index.csv"
    content = {"columns": ["structure", "n"], "index": list(range(len(rows))), "data": rows}
    path.write_bytes(gzip.compress(json.dumps(content).encode(), mtime=0))
    names = mbids()
    index.write_text("row,mbid\n" + "".join(f"{row},{names[f]}\n" for row, f in enumerate(crystals())))
    return path, index


def write_dataset(folder: Path, factors: Mapping[str, float] | None = None) -> Path:
    """Write tensors of all crystals and the YAML files of dataset and training; return that of the dataset.

    Args:
        folder: Where to.
        factors: Formula to what its labels are multiplied with.
    """
    import yaml

    frames = []
    for formula, atoms in crystals().items():
        factor = dict(factors or {}).get(formula, 1.0)
        found = load_model("toy").evaluate(atoms)
        atoms.info["REF_polarizability"] = factor * found.polarizability.ravel()
        atoms.arrays["REF_becs"] = factor * found.born_effective_charges.reshape(-1, 9)
        frames.append(atoms)
    write(folder / "halides.extxyz", frames)
    source = {
        "type": "extxyz",
        "path": "halides.extxyz",
        "labels": {"polarizability": "e_per_volt_angstrom", "born_effective_charges": "polarization_displacement"},
    }
    data = {
        "name": "halides",
        "sources": [source],
        "split": {"train": 0.4, "valid": 0.1, "test": 0.5, "salt": "matbench"},
    }
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    (folder / "train.yaml").write_text(yaml.safe_dump(TRAIN))
    return folder / "data.yaml"


def dataset(folder: Path, factors: Mapping[str, float] | None = None) -> Dataset:
    """Return the dataset of :func:`write_dataset`."""
    return build_dataset(DatasetConfig.from_yaml(write_dataset(folder, factors)))
