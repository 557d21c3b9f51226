"""A small dataset that the closed-form toy model labels, with noise, so that every part of an evaluation has work."""

from __future__ import annotations

import numpy as np
from ase.build import bulk

from fieldflows import load_model
from fieldflows.datasets.dataset import Dataset, dataset_digest
from fieldflows.datasets.frame import LabeledFrame
from fieldflows.datasets.paths import N_FRAMES
from fieldflows.datasets.statistics import count, label_statistics
from fieldflows.schemas.dataset import DatasetManifest
from fieldflows.testing.structures import tetragonal_batio3

LABELS = ("energy", "forces", "stress", "polarization", "born_effective_charges", "polarizability")
HALIDES = (("LiF", 4.1), ("NaF", 4.7), ("KF", 5.4), ("LiCl", 5.2), ("NaCl", 5.7), ("KCl", 6.3))


def labeled(atoms, names, noise: float, seed: int) -> dict[str, np.ndarray]:
    """Return labels of the toy model, off by a fraction of their size."""
    response = load_model("toy").evaluate(atoms, observables=names)
    rng = np.random.default_rng(seed)
    labels = {}
    for name in names:
        value = np.asarray(response.get(name), dtype=float)
        labels[name] = value * (1 + noise * rng.normal(size=value.shape))
    return labels


def crystals(noise: float) -> list[LabeledFrame]:
    frames = []
    for k in range(12):
        formula, a = HALIDES[k % len(HALIDES)]
        atoms = bulk(formula, "rocksalt", a=a)
        rng = np.random.default_rng(k)
        atoms.positions += rng.uniform(-0.1, 0.1, size=atoms.positions.shape)
        split = "train" if k < 8 else "valid" if k < 10 else "test"
        labels = labeled(atoms, LABELS, noise, k)
        extra = {"sum_rule_residual": 0.01 * np.eye(3), "head": "one" if k % 2 else "two"}
        frames.append(LabeledFrame(atoms, labels, formula, "halides", k, split=split, extra=extra))
    return frames


def path(noise: float, split: str = "test") -> list[LabeledFrame]:
    """Return a polarization path of tetragonal BaTiO3, from nonpolar to polar, labeled by the toy model."""
    polar = tetragonal_batio3()
    fractional = polar.get_scaled_positions()
    nonpolar = np.round(2 * fractional) / 2
    step = fractional - nonpolar
    step -= np.round(step)
    frames = []
    for k in range(N_FRAMES):
        atoms = polar.copy()
        atoms.set_scaled_positions(nonpolar + step * k / (N_FRAMES - 1))
        labels = labeled(atoms, ("polarization",), noise, 100 + k)
        quanta = atoms.cell[:] / atoms.get_volume()
        raw = labels["polarization"] + quanta[2] / 2
        extra = {"wfid": "path-1", "path_index": k, "polarization_raw": raw, "polar_mpid": "a", "nonpolar_mpid": "b"}
        frames.append(LabeledFrame(atoms, labels, "BaTiO3", "paths", k, split=split, extra=extra))
    return frames


def dataset(frames: list[LabeledFrame], name: str = "made") -> Dataset:
    manifest = DatasetManifest(
        name=name, digest=dataset_digest(frames), created_at="2026-01-01", code_version="0", n_frames=len(frames),
        n_materials=len({f.material for f in frames}), elements=sorted({s for f in frames for s in f.atoms.symbols}),
        counts=count(frames), statistics=label_statistics(frames), rejects=[], flags=[], duplicates=[], sources=[],
        config={},
    )  # fmt: skip
    return Dataset(frames, manifest)
