"""Cells that fit but for a small stretch: against pymatgen's search, and against cells that were made to fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice

from fieldflows.physics.crystal import compact_cell
from fieldflows.physics.sublattices import candidate_cells, distinct_cells, strain_norm, stretch_of
from fieldflows.testing.strategies import SEEDS, cells
from fieldflows.testing.structures import random_rotation
from tests.physics.lattices import unimodular

FCC = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) * 2.1


def made(seed: int, multiple: int, strain: float) -> tuple[np.ndarray, np.ndarray]:
    """A cell of several fcc cells, turned and stretched, on its shortest vectors, and its stretch."""
    rng = np.random.default_rng(seed)
    matrix = np.diag([multiple, 1, 1]) @ unimodular(rng, 2)
    random = rng.uniform(-1, 1, (3, 3))
    _, axes = np.linalg.eigh(random + random.T)
    stretch = axes @ np.diag(1 + rng.uniform(-strain, strain, 3)) @ axes.T
    return compact_cell(matrix @ FCC @ random_rotation(rng).T @ stretch)[0], stretch


@given(seed=SEEDS, multiple=st.sampled_from([1, 2, 3, 4, 6]))
@settings(max_examples=25, deadline=None)
def test_a_cell_that_was_made_to_fit_is_found(seed, multiple):
    target, stretch = made(seed, multiple, 0.05)
    found = candidate_cells(FCC, target, multiple, 0.06)
    norms = [strain_norm(stretch_of(matrix @ FCC, target)[1] - np.eye(3)) for matrix in found]
    assert min(norms) <= np.linalg.norm(stretch - np.eye(3)) + 1e-9
    assert norms == sorted(norms) or np.allclose(norms, sorted(norms), atol=1e-9)
    assert {round(abs(np.linalg.det(matrix))) for matrix in found} == {multiple}


@pytest.mark.parametrize(("multiple", "largest"), [(1, 0.2), (2, 0.1), (3, 0.12)])
def test_the_cells_are_those_of_pymatgen(multiple, largest):
    target, _ = made(multiple, multiple, 0.04)
    found = {tuple(np.rint(matrix).astype(int).ravel()) for matrix in candidate_cells(FCC, target, multiple, largest)}
    expected = set()
    mappings = Lattice(FCC).find_all_mappings(Lattice(target), ltol=largest, atol=60, skip_rotation_matrix=True)
    for _, _, matrix in mappings:
        if np.linalg.det(matrix @ FCC) * np.linalg.det(target) < 0:
            continue
        if round(abs(np.linalg.det(matrix))) == multiple:
            values = np.linalg.svd(np.linalg.solve(matrix @ FCC, target), compute_uv=False)
            if values.max() <= 1 + largest and values.min() >= 1 / (1 + largest):
                expected.add(tuple(int(x) for x in matrix.ravel()))
    assert found == expected
    assert len(found) >= 24 // multiple


def test_cells_that_differ_by_a_rotation_of_the_crystal_are_one():
    angle = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    fourfold = np.array([np.linalg.matrix_power(angle, k) for k in range(4)], dtype=float)
    cubic = np.eye(3) * 4.0
    all_cells = candidate_cells(cubic, cubic, 1, 0.01)
    assert len(all_cells) == 24  # proper rotations of a cube
    assert len(distinct_cells(all_cells, fourfold)) == 6


@given(cell=cells(), seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_rotation_and_stretch_of_two_cells(cell, seed):
    rng = np.random.default_rng(seed)
    random = rng.uniform(-0.1, 0.1, (3, 3))
    stretch, rotation = np.eye(3) + 0.5 * (random + random.T), random_rotation(rng)
    found_rotation, found_stretch = stretch_of(cell, cell @ rotation.T @ stretch)
    np.testing.assert_allclose(found_rotation, rotation, atol=1e-9)
    np.testing.assert_allclose(found_stretch, stretch, atol=1e-9)
    assert strain_norm(found_stretch - np.eye(3)) == pytest.approx(
        np.sqrt(((stretch - np.eye(3)) ** 2).sum()), abs=1e-9
    )
