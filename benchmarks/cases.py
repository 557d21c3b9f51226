"""Crystals and networks of the benchmarks."""

from __future__ import annotations

import lzma
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.spacegroup import crystal

from fieldflows.backends.mace_field.checkpoint import CheckpointMetadata
from fieldflows.backends.mace_field.model import MACEFieldModel
from fieldflows.backends.mace_field.network import NetworkConfig, build_network
from fieldflows.observables import OBSERVABLES
from fieldflows.physics.crystal import symmetrize_crystal

TAGS = ("p5", "q9", "m36", "l80")
"""The headline crystals; the letter stands for the lattice, the number for the atoms in the conventional cell."""

IN_DATA = {
    "p5": ("dielectric_test_dev.extxyz.xz", 204, "Ca3NP"),
    "q9": ("dielectric_test_dev.extxyz.xz", 119, "Be3F6"),
    "m36": ("dielectric_test_dev.extxyz.xz", 15, "H12F4O16S4"),
    "l80": ("dielectric_valid_dev.extxyz.xz", 287, "Li4Mn16O48P12"),
}
"""File, frame and formula of the headline crystals in the shared data files (environment FIELDFLOWS_DATA)."""

SYMPREC = 1e-3
"""Tolerance of the space groups in Å, the default of the package."""

FIELD_GAIN = 100.0
"""Random weights of the field blocks are enlarged by this, so that Z* has the size of that of a crystal."""

Source = Literal["data", "published"]


def published_crystals() -> dict[str, Atoms]:
    """Return the crystals by tag, from published coordinates.

    p5: cubic perovskite SrTiO3 (Pm-3m, a = 3.905 Å).
    q9: alpha quartz SiO2 (P3_221; Levien, Prewitt and Weidner, Am. Mineral. 65, 920 (1980)).
    m36: topaz Al2SiO4F2 (Pnma, in the setting Pbnm of Ribbe and Gibbs, Am. Mineral. 56, 24 (1971)).
    l80: bixbyite In2O3 (Ia-3, conventional cell; Marezio, Acta Cryst. 20, 723 (1966)).
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
    # published as Pbnm; (y, z, x) of it are coordinates in the standard setting Pnma
    topaz = crystal(
        ["Al", "Si", "O", "O", "O", "F"],
        basis=[
            (0.1310, 0.0820, 0.9047),
            (0.9410, 0.25, 0.3994),
            (0.0313, 0.25, 0.7059),
            (0.7561, 0.25, 0.4445),
            (0.0110, 0.9070, 0.7900),
            (0.7532, 0.0596, 0.9017),
        ],
        spacegroup=62,
        cellpar=(8.7968, 8.3909, 4.6499, 90, 90, 90),
    )
    bixbyite = crystal(
        ["In", "In", "O"],
        basis=[(0.25, 0.25, 0.25), (0.4662, 0, 0.25), (0.3905, 0.1529, 0.3832)],
        spacegroup=206,
        cellpar=(10.117, 10.117, 10.117, 90, 90, 90),
    )
    return {"p5": perovskite, "q9": quartz, "m36": topaz, "l80": bixbyite}


def data_crystals() -> dict[str, Atoms] | None:
    """Return the headline crystals from the shared data files, or None if FIELDFLOWS_DATA is not set or lacks them.

    p5: Ca3NP (Pm-3m), q9: BeF2 (P3_121), m36: H3SO4F (Pnma), l80: LiMn4P3O12 (I-42d, conventional cell).
    """
    folder = os.environ.get("FIELDFLOWS_DATA")
    if not folder or not all((Path(folder) / name).is_file() for name, _, _ in IN_DATA.values()):
        return None
    found = {}
    for tag, (name, index, formula) in IN_DATA.items():
        atoms = bare(read_frames(Path(folder) / name, index)[0])
        if atoms.get_chemical_formula() != formula:
            return None
        found[tag] = atoms
    return found


def read_frames(path: Path, index: int | None = None) -> list[Atoms]:
    """Return all frames of a compressed extended XYZ file, or one of them."""
    with lzma.open(path, "rt") as file:
        return list(ase.io.read(file, ":" if index is None else slice(index, index + 1), format="extxyz"))


def bare(atoms: Atoms) -> Atoms:
    """Return cell, species and positions without labels."""
    return Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)


def headline_crystals(source: Source | None = None) -> tuple[Source, dict[str, Atoms]]:
    """Return where the crystals come from, and the crystals by tag; from the data files if they are at hand.

    They obey their space group to rounding: coordinates of files do to 2e-6 Å, which would show in the comparison of
    results with and without symmetry.
    """
    found = None if source == "published" else data_crystals()
    if found is None and source == "data":
        raise SystemExit("The data files were asked for, but FIELDFLOWS_DATA does not hold them.")
    name: Source = "published" if found is None else "data"
    return name, {tag: symmetrized(atoms) for tag, atoms in (found or published_crystals()).items()}


def symmetrized(atoms: Atoms) -> Atoms:
    """Return the crystal at its own symmetry, in its own cell and frame."""
    exact = symmetrize_crystal(atoms.cell[:], atoms.positions, atoms.numbers, SYMPREC)
    return Atoms(atoms.numbers, positions=exact.positions, cell=exact.cell, pbc=True)


def primitive(atoms: Atoms) -> Atoms:
    """Return the primitive cell in the frame of the crystal; the crystal itself if it is primitive."""
    exact = symmetrize_crystal(atoms.cell[:], atoms.positions, atoms.numbers, SYMPREC).primitive()
    return Atoms(exact.numbers, positions=exact.positions, cell=exact.cell, pbc=True)


def rattled(atoms: Atoms, width: float = 0.05, seed: int = 1) -> Atoms:
    """Return the crystal with every coordinate displaced at random, in Å, so that no symmetry is left."""
    moved = atoms.copy()
    moved.positions += np.random.default_rng(seed).normal(scale=width, size=moved.positions.shape)
    return moved


def random_model(
    crystals: Iterable[Atoms], channels: int = 128, dtype: torch.dtype = torch.float64, seed: int = 0
) -> MACEFieldModel:
    """Return a model of the published architecture with random weights, for the elements of some crystals.

    Two layers, max L 1, correlation 3, spherical harmonics up to degree 3, cut-off 5 Å, 10 Bessel functions.
    """
    numbers = sorted({int(z) for atoms in crystals for z in atoms.numbers})
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
    with torch.no_grad():
        for block in network.field_linear:
            block.weight.mul_(FIELD_GAIN)
    metadata = CheckpointMetadata(
        name=f"random-{channels}", network=config, trained_labels=tuple(n for n in OBSERVABLES if n != "hessian")
    )
    return MACEFieldModel(network, metadata, sha256="0" * 64)
