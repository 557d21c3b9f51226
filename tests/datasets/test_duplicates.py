"""Copies: exact ones by fingerprint, near ones by matching, and what is no copy."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms

from fieldflows.datasets.duplicates import DuplicatesConfig, find_duplicates, fingerprint
from fieldflows.datasets.frame import LabeledFrame
from fieldflows.datasets.matching import CrystalMatcher, Tolerances
from fieldflows.errors import SettingsError
from tests.datasets.synthetic import perovskite


def frame(atoms: Atoms | None = None, source: str = "a", labels: tuple[str, ...] = ("polarizability",), **extra):
    crystal = perovskite()
    atoms = atoms or Atoms(crystal.symbols, positions=crystal.positions, cell=crystal.cell, pbc=True)
    return LabeledFrame(atoms, {name: np.eye(3) for name in labels}, "SrTiO3", source, 0, extra=extra)


def test_exact_copies_in_any_order_and_wrapping():
    one = frame()
    atoms = one.atoms[[4, 2, 0, 1, 3]]
    atoms.positions += atoms.cell[0] - 2 * atoms.cell[2]
    assert fingerprint(one) == fingerprint(frame(atoms))
    assert find_duplicates([one, frame(atoms)], DuplicatesConfig()) == {1: (0, "exact")}
    atoms.positions[0] += 0.05
    assert fingerprint(one) != fingerprint(frame(atoms))


def test_the_same_crystal_from_two_files_that_round_differently():
    """Published coordinates of six decimals, and the same with noise in the ninth: no 5 at the end may divide them."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        scaled = np.round(rng.random((5, 3)), 5) + 5e-6
        atoms = Atoms("SrTiO3", cell=np.diag([3.912345, 3.9, 4.1]), scaled_positions=scaled, pbc=True)
        other = atoms.copy()
        other.positions += rng.uniform(-5e-9, 5e-9, (5, 3))
        other.set_cell(other.cell[:] * (1 + 1e-12))
        assert fingerprint(frame(atoms)) == fingerprint(frame(other))


def test_near_copies_rotated_shifted_and_as_supercells():
    one = frame()
    other = one.atoms.repeat((1, 1, 2))
    other.rotate(30, "z", rotate_cell=True)
    other.positions += [0.2, 0.1, 0.0]
    other.set_cell(other.cell[:] * 1.002, scale_atoms=True)
    assert find_duplicates([one, frame(other)], DuplicatesConfig()) == {1: (0, "near")}
    assert find_duplicates([one, frame(other)], DuplicatesConfig(near=False)) == {}


def test_polymorphs_and_strained_cells_are_no_copies():
    one = frame()
    tetragonal = one.atoms.copy()
    tetragonal.set_cell(tetragonal.cell[:] * [[1], [1], [1.06]], scale_atoms=True)
    off_center = one.atoms.copy()
    off_center.positions[1] += [0, 0, 0.3]
    assert find_duplicates([one, frame(tetragonal), frame(off_center)], DuplicatesConfig()) == {}


def test_trajectories_keep_near_copies_but_not_exact_ones():
    one = frame(source="md")
    shaken = one.atoms.copy()
    shaken.positions += 0.001 * np.random.default_rng(0).normal(size=shaken.positions.shape)
    frames = [one, frame(shaken, source="md"), frame(source="md")]
    assert find_duplicates(frames, DuplicatesConfig(), frozenset({"md"})) == {2: (0, "exact")}
    assert find_duplicates(frames, DuplicatesConfig()) == {1: (0, "near"), 2: (0, "exact")}


def test_a_frame_with_another_label_or_of_another_path_stays():
    one = frame()
    assert find_duplicates([one, frame(labels=("epsilon_ionic",))], DuplicatesConfig()) == {}
    assert find_duplicates([frame(wfid="1"), frame(wfid="2")], DuplicatesConfig()) == {}
    both = frame(labels=("polarizability", "epsilon_ionic"))
    assert find_duplicates([both, one], DuplicatesConfig()) == {1: (0, "exact")}


def test_a_trajectory_that_nobody_declared_is_refused_before_the_work():
    frames = [frame() for _ in range(12)]
    for k, item in enumerate(frames):
        item.atoms.positions[1] += 0.05 * k
        item.atoms.set_cell(item.atoms.cell[:] * (1.0 if k < 8 else 1.1), scale_atoms=True)
    pairs = 8 * 7 // 2 + 4 * 3 // 2  # the two volumes are not compared with each other
    with pytest.raises(
        SettingsError, match=rf"among {pairs} pairs of frames, {pairs} of them among 12 frames of SrTiO3"
    ):
        find_duplicates(frames, DuplicatesConfig(most_pairs=pairs - 1))
    assert len(find_duplicates(frames, DuplicatesConfig(most_pairs=pairs))) < 12
    assert find_duplicates(frames, DuplicatesConfig(most_pairs=0), frozenset({"a"})) == {}
    assert find_duplicates(frames, DuplicatesConfig(most_pairs=0, near=False)) == {}


def test_a_skewed_cell_of_the_same_lattice_is_the_same_crystal():
    one = frame().atoms
    skewed = one.copy()
    skewed.set_cell(np.array([[1, 0, 0], [60, 1, 0], [-45, 7, 1]]) @ one.cell[:])  # atoms stay where they are
    assert np.linalg.cond(skewed.cell[:]) > 1000
    matcher = CrystalMatcher(Tolerances())
    assert matcher.same(one, skewed)
    moved = skewed.copy()
    moved.positions[1] += [0, 0, 1.5]
    assert not matcher.same(one, moved)
