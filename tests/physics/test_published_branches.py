"""P_s of the 209 published paths from their polarizations; skipped without FIELDFLOWS_DATA."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fieldflows.datasets.extxyz import read_extxyz
from fieldflows.datasets.paths import NORM_KEY, POLARIZATION_KEY, PathLimits, judge_path, read_paths
from fieldflows.physics.branches import follow_branch, polarization_of
from fieldflows.units import E_PER_A2_TO_UC_PER_CM2

TABLE = {"BaTiO3": 45.90, "LiNbO3": 84.53, "KNbO3": 48.67, "PbTiO3": 116.76, "BiFeO3": 124.53, "AlN": 133.01,
         "HfO2": 53.42}  # fmt: skip
"""P_s of Smidt et al. (2020) in µC/cm²."""


@pytest.fixture(scope="module")
def paths():
    folder = os.environ.get("FIELDFLOWS_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FIELDFLOWS_DATA is not set: the real data are not at hand")
    found, broken = read_paths(list(read_extxyz(Path(folder) / "ferroelectric_paths_dev.extxyz.xz")))
    assert not broken
    return found


def norm(fractions, path) -> float:
    changes = follow_branch(fractions).changes[-1]
    return float(np.linalg.norm(polarization_of(changes, path.frames[-1].cell))) * E_PER_A2_TO_UC_PER_CM2


def test_all_published_norms_are_met(paths):
    assert len(paths) == 209
    errors = [abs(norm(path.fractions, path) - path.frames[-1].info[NORM_KEY]) for path in paths]
    assert max(errors) < 0.01


def test_random_quanta_change_nothing(paths):
    """200 draws of whole quanta for every frame of every path that is not rejected; all kinds of cells."""
    rng = np.random.default_rng(0)
    kept = [path for path in paths if not judge_path(path, PathLimits())[0]]
    assert len(kept) == 201
    skewed = 0
    for path in kept:
        cell, expected = path.frames[-1].cell, path.frames[-1].info[NORM_KEY]
        metric = cell @ cell.T
        skewed += bool(np.abs(metric[np.triu_indices(3, 1)]).min() > 1e-3)
        assert POLARIZATION_KEY in path.frames[0].info
        for _ in range(200):
            given = path.fractions + rng.integers(-5, 6, path.fractions.shape)
            assert norm(given, path) == pytest.approx(expected, abs=0.01)
    assert skewed == 5  # no two lattice vectors at right angles; 96 more have a pair that is oblique


def test_the_table_of_well_known_crystals(paths):
    found = {name: [] for name in TABLE}
    for path in paths:
        formula = path.frames[0].atoms().get_chemical_formula(mode="hill", empirical=True)
        for name in TABLE:
            if formula == {"BiFeO3": "BiFeO3", "KNbO3": "KNbO3"}.get(name) or sorted(formula) == sorted(name):
                found[name].append(norm(path.fractions, path))
    for name, value in TABLE.items():
        assert min(abs(item - value) for item in found[name]) < 0.01
