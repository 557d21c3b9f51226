"""Formal charges, and the branch of nonpolar crystals that follows: by hand, and against Berry phases."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fieldflows.physics.formal_charges import formal_charges, formal_fractions
from fieldflows.testing.structures import rocksalt_mgo
from tests.physics.pairs import PAIRS, cubic


def test_oxidation_states():
    np.testing.assert_array_equal(formal_charges(cubic("BaTiO3", 4.0).numbers), [2, 4, -2, -2, -2])
    np.testing.assert_array_equal(formal_charges(rocksalt_mgo().numbers), [2, -2])
    assert formal_charges([29, 79]) is None  # CuAu


def test_cubic_perovskites_of_2_4_and_1_5():
    """BaTiO3: 4/2 − 2 (½ + ½ + 0) = 0; KNbO3: 5/2 − 2 = ½ along each axis."""
    for formula, expected in (("BaTiO3", 0.0), ("KNbO3", 0.5)):
        crystal = cubic(formula, 4.0)
        found = formal_fractions(crystal.numbers, crystal.get_scaled_positions())
        np.testing.assert_allclose(np.abs(found), expected, atol=1e-12)


def test_periodic_images_and_the_origin_do_not_matter():
    crystal = PAIRS["LiNbO3"]()[0]
    fractions = crystal.get_scaled_positions()
    before = formal_fractions(crystal.numbers, fractions)
    moved = fractions + np.random.default_rng(0).integers(-2, 3, fractions.shape) + [0.1, 0.2, 0.3]
    after = formal_fractions(crystal.numbers, moved)
    np.testing.assert_allclose(after - before - np.round(after - before), 0, atol=1e-9)


def test_published_nonpolar_ends_lie_where_formal_charges_say():
    """Berry phases of 197 nonpolar crystals: 195 on the branch of formal charges, all 16 of half a quantum too."""
    folder = os.environ.get("FIELDFLOWS_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FIELDFLOWS_DATA is not set: the real data are not at hand")
    from fieldflows.datasets.extxyz import read_extxyz
    from fieldflows.datasets.paths import read_paths

    paths, _ = read_paths(list(read_extxyz(Path(folder) / "ferroelectric_paths_dev.extxyz.xz")))
    known = met = halves = halves_met = 0
    for path in paths:
        raw = path.frames[0]
        found = formal_fractions(raw.numbers, raw.positions @ np.linalg.inv(raw.cell))
        if found is None:
            continue
        apart = found - path.fractions[0]
        good = bool(np.abs(apart - np.round(apart)).max() < 0.02)
        half = abs(path.nonpolar_offset - 0.5) < 0.02
        known, met, halves, halves_met = known + 1, met + good, halves + half, halves_met + (half and good)
    assert (known, met) == (197, 195)
    assert halves == halves_met == 16
