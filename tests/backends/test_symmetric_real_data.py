"""Two hundred real crystals: responses by symmetry against the full calculation of the same symmetrized crystal.

``pytest -m slow -s`` shows the figures.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from fieldflows.backends.base import Response
from fieldflows.backends.symmetric import SymmetrySettings, evaluate_each
from fieldflows.datasets.extxyz import read_extxyz
from fieldflows.physics.symmetry import space_group
from fieldflows.structures import check_structure
from fieldflows.testing.structures import random_rotation
from tests.backends.mace_field.models import ALL, small_model
from tests.physics.lattices import SYSTEMS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("FIELDFLOWS_DATA" not in os.environ, reason="FIELDFLOWS_DATA does not name the real data"),
]

FILES = ("dielectric_test_dev", "dielectric_valid_dev", "ferroelectric_paths_dev")
COUNT = 200
SEED = 20
LARGEST = 40
"""Atoms of the largest crystal that is taken, for the sake of the full calculation."""
LIMIT = 1e-8
"""Largest difference from the full calculation, relative to the largest component."""
SMALLEST = {"energy": 1e-3, "forces": 1e-3, "stress": 1e-4, "polarization": 1e-3, "polarizability": 1e-4}
"""Quantities that symmetry makes zero are compared on these scales, in their units."""


@cache
def sample() -> tuple[Atoms, ...]:
    """Return crystals at random, of every file, every second one in a random frame."""
    rng = np.random.default_rng(SEED)
    frames = []
    for name in FILES:
        found = list(read_extxyz(Path(os.environ["FIELDFLOWS_DATA"]) / f"{name}.extxyz.xz"))
        frames += [(name, frame) for frame in found if 1 < len(frame) <= LARGEST]
    chosen = []
    for number in rng.permutation(len(frames)):
        atoms = frames[number][1].atoms()
        if len(chosen) % 2:
            turn = random_rotation(rng)
            atoms.set_cell(atoms.cell[:] @ turn.T)
            atoms.positions = atoms.positions @ turn.T
        check_structure(atoms)
        chosen.append(atoms)
        if len(chosen) == COUNT:
            return tuple(chosen)
    raise AssertionError(f"only {len(chosen)} crystals")


@cache
def model():
    numbers = sorted({int(z) for atoms in sample() for z in atoms.numbers})
    return small_model(
        atomic_numbers=numbers, atomic_energies=[0.01 * z for z in numbers], r_max=4.5, avg_num_neighbors=20.0
    )


def test_the_sample_has_all_crystal_systems():
    groups = [space_group(atoms.cell[:], atoms.positions, atoms.numbers, 1e-3) for atoms in sample()]
    systems = Counter(group.crystal_system for group in groups)
    print(f"\n{len(groups)} crystals, {len({group.number for group in groups})} space groups: {dict(systems)}")
    assert set(systems) == set(SYSTEMS)
    assert min(systems.values()) >= 2
    tilted = [atoms for atoms in sample() if np.abs(atoms.cell[0, 1:]).max() > 0.01]
    assert len(tilted) >= COUNT // 2


def test_equal_to_the_full_calculation(record_property):
    structures = list(sample())
    whole = evaluate_each(model(), structures, None, ALL, SymmetrySettings())
    primitive = evaluate_each(model(), structures, None, ALL, SymmetrySettings(), primitive_hessian=True)
    worst: dict[str, float] = dict.fromkeys(ALL, 0.0)
    changes: dict[str, float] = {"shift Å": 0.0, "strain": 0.0, "force eV/Å": 0.0} | dict.fromkeys(ALL[3:6], 0.0)
    products, rows, used = 0, 0, 0
    for atoms, response, small in zip(structures, whole, primitive, strict=True):
        assert isinstance(response, Response), response
        assert isinstance(small, Response), small
        assert (response.symmetry is None) == (small.symmetry is None)
        if response.symmetry is None:
            continue
        used += 1
        use = small.symmetry
        products, rows = products + use.n_displacements, rows + 3 * len(atoms)
        reference = model().evaluate(rebuilt(response, atoms), observables=ALL)
        for name in ALL:
            worst[name] = max(worst[name], difference(response.get(name), reference.get(name), name))
        unfolded = {
            "energy": small.energy,
            "forces": small.forces,
            "born_effective_charges": small.born_effective_charges,
            "polarizability": small.polarizability,
            "polarization": small.polarization,
            "stress": small.stress,
        }
        # the primitive cell may have operations that the cell as given hides, and is then another 1e-5 Å away
        again = model().evaluate(rebuilt(small, atoms), observables=tuple(unfolded))
        for name, value in unfolded.items():
            worst[name] = max(worst[name], difference(value, again.get(name), name))
        cell = Atoms(numbers=atoms.numbers[use.representatives], positions=use.positions, cell=use.cell, pbc=True)
        hessian = model().evaluate(cell, observables=("hessian",)).hessian
        worst["hessian"] = max(worst["hessian"], difference(small.hessian, hessian, "hessian"))
        raw = model().evaluate(atoms, observables=ALL[3:6])
        for name in ALL[3:6]:
            changes[name] = max(changes[name], difference(small.get(name), raw.get(name), name))
        changes["shift Å"] = max(changes["shift Å"], use.max_shift)
        changes["strain"] = max(changes["strain"], use.strain)
        changes["force eV/Å"] = max(changes["force eV/Å"], use.force_change or 0.0)
    print(f"\nsymmetry used for {used} of {COUNT}; {products} products for {rows} rows of Hessians")
    print("largest difference from the full calculation:", {k: f"{v:.1e}" for k, v in worst.items()})
    print("largest change against the crystal as given:", {k: f"{v:.1e}" for k, v in changes.items()})
    record_property("worst", worst)
    record_property("changes", changes)
    assert used >= 0.9 * COUNT
    assert max(worst.values()) < LIMIT
    assert changes["shift Å"] < 1e-3
    assert changes["force eV/Å"] <= SymmetrySettings().force_tolerance
    assert products < rows / 3


def rebuilt(response: Response, atoms: Atoms) -> Atoms:
    """Return the crystal as given, put together from images of the cell that was evaluated."""
    use = response.symmetry
    inverse = np.linalg.inv(use.cell)
    cell = np.round(atoms.cell[:] @ inverse) @ use.cell
    home = use.positions[use.mapping]
    positions = home + np.round((atoms.positions - home) @ inverse) @ use.cell
    return Atoms(numbers=atoms.numbers, positions=positions, cell=cell, pbc=True)


def difference(found, expected, name: str) -> float:
    """Return the largest difference relative to the largest component."""
    scale = max(np.abs(np.asarray(expected)).max(), SMALLEST.get(name, 1e-3))
    return float(np.abs(np.asarray(found) - np.asarray(expected)).max() / scale)
