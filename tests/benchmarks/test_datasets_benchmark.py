"""The benchmark of the dataset layer: crystals are of the variety that it claims, and the build is measured."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import spglib

from benchmarks.__main__ import main
from benchmarks.crystals import CHARGES, PROTOTYPES, labeled_crystals
from fieldflows.datasets.frame import reduced_formula
from fieldflows.structures import closest_pair


@pytest.fixture(scope="module")
def crystals():
    return list(labeled_crystals(400))


def test_crystals_are_various_and_physical(crystals):
    sizes = [len(raw) for raw in crystals]
    assert min(sizes) == 2
    assert 80 <= max(sizes) <= 100
    formulas = Counter(reduced_formula(raw.numbers) for raw in crystals)
    assert len(formulas) > 250
    assert formulas.most_common(1)[0][1] > 1
    assert len({symbol for raw in crystals for symbol in raw.numbers.tolist()}) > 50
    assert all(closest_pair(raw.atoms())[0] > 1.0 for raw in crystals)
    wrong = [raw for raw in crystals if np.abs(raw.arrays[CHARGES].sum(axis=0)).max() > 1]
    assert 0 < len(wrong) < 20
    groups = {
        spglib.get_spacegroup((raw.cell, raw.positions @ np.linalg.inv(raw.cell), raw.numbers), 0.01)
        for raw in crystals[:80]
    }
    assert len(groups) > 8


def test_another_seed_makes_other_crystals_and_the_same_one_the_same(crystals):
    again = list(labeled_crystals(5))
    for one, two in zip(again, crystals, strict=False):
        np.testing.assert_array_equal(one.positions, two.positions)
    other = next(labeled_crystals(1, seed=1))
    assert len(other) != len(again[0]) or (other.numbers != again[0].numbers).any()
    assert {prototype.group for prototype in PROTOTYPES.values()} <= set(range(1, 231))


def test_a_build_is_measured_stage_by_stage(tmp_path, capsys):
    output = tmp_path / "speed.json"
    assert main(["datasets", "--count", "40", "--output", str(output)]) == 0
    result = json.loads(output.read_text())["datasets"]["result"]
    assert result["frames"]["read"] == 40
    assert result["frames"]["kept"] + result["frames"]["rejected"] + result["frames"]["copies"] == 40
    assert {"reading", "cleaning", "comparing", "writing", "drawing"} <= set(result["stages"])
    for key in ("seconds", "processor_seconds"):
        assert sum(stage[key] for stage in result["stages"].values()) == pytest.approx(result[key], rel=1e-6)
    assert result["processor_seconds"] > 0.5
    assert 50 < result["peak_megabytes"] < 2000
    assert "cleaning" in capsys.readouterr().out
