"""Splits: by formula, stable under additions, and by blocks with a gap."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from ase import Atoms
from ase.data import chemical_symbols
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from pymatgen.core import Composition

from fieldflows.datasets.frame import LabeledFrame
from fieldflows.datasets.splits import SplitConfig, assign_splits, chemical_system, split_blocks, split_of_formula
from fieldflows.errors import SettingsError

ELEMENTS = chemical_symbols[1:60]
NAMES = [f"A{i}B{j}" for i in range(60) for j in range(60)]


def test_fractions_are_met():
    counts = Counter(split_of_formula(name, SplitConfig()) for name in NAMES)
    for name, fraction in (("train", 0.8), ("valid", 0.1), ("test", 0.1)):
        assert counts[name] / len(NAMES) == pytest.approx(fraction, abs=0.02)


@pytest.mark.parametrize(
    ("formula", "split"),
    # First digits of `printf fieldflows:FORMULA | sha256sum`: 706a, cc6b, dd9b as fractions of ffff.
    [("BaTiO3", "train"), ("SiO2", "train"), ("MgO", "valid")],
)
def test_known_answers(formula, split):
    assert split_of_formula(formula, SplitConfig()) == split


def test_another_salt_is_another_split_and_growing_train_moves_nobody_out_of_it():
    first = {name: split_of_formula(name, SplitConfig()) for name in NAMES}
    other = {name: split_of_formula(name, SplitConfig(salt="x")) for name in NAMES}
    assert first != other
    grown = {name: split_of_formula(name, SplitConfig(train=0.9, valid=0.05, test=0.05)) for name in NAMES}
    assert all(grown[name] == "train" for name in NAMES if first[name] == "train")


@pytest.mark.parametrize("bad", [{"train": 0.8, "valid": 0.3, "test": 0.1}, {"train": 1.2, "valid": 0, "test": -0.2}])
def test_fractions_must_sum_to_one(bad):
    with pytest.raises(ValidationError):
        SplitConfig(**bad)


@given(n=st.integers(0, 300), gap=st.integers(0, 9), shuffle=st.randoms())
def test_blocks_are_contiguous_disjoint_and_separated(n, gap, shuffle):
    indices = list(range(n))
    shuffle.shuffle(indices)
    result = split_blocks(indices, SplitConfig(strategy="blocks", gap=gap))
    by_index = dict(zip(indices, result, strict=True))
    sequence = [by_index[i] for i in range(n)]
    kept = [name for name in sequence if name is not None]
    assert kept == sorted(kept, key=["train", "valid", "test"].index)
    for k in range(n - 1):
        if gap and sequence[k] is not None and sequence[k + 1] is not None:
            assert sequence[k] == sequence[k + 1]
    if n >= 100:
        assert len(kept) == n - 2 * gap
        assert {"train", "valid", "test"} == set(kept)


@given(n=st.integers(200, 400), gap=st.integers(0, 3), segments=st.integers(2, 4))
def test_segments_are_divided_one_by_one(n, gap, segments):
    result = split_blocks(range(n), SplitConfig(strategy="blocks", gap=gap, segments=segments))
    for k in range(n - 1):
        if gap and result[k] is not None and result[k + 1] is not None:
            assert result[k] == result[k + 1]
    ends = [round(n * k / segments) for k in range(segments + 1)]
    for begin, end in itertools.pairwise(ends):
        kept = [name for name in result[begin:end] if name is not None]
        assert kept == sorted(kept, key=["train", "valid", "test"].index)
        assert set(kept) >= {"train", "test"}


def test_segments_are_for_blocks():
    with pytest.raises(ValueError, match="segments belongs to strategy: blocks"):
        SplitConfig(segments=2)


def test_block_sizes():
    assert Counter(split_blocks(range(100), SplitConfig(strategy="blocks"))) == {"train": 80, "valid": 10, "test": 10}
    assert Counter(split_blocks(range(100), SplitConfig(strategy="blocks", gap=4))) == {
        "train": 78,
        "valid": 6,
        "test": 8,
        None: 8,
    }


SYSTEMS = {
    "BaTiO3": "Ba-O-Ti",
    "Ba2TiO4": "Ba-O-Ti",
    "BaTi2O5": "Ba-O-Ti",
    "Ba(NO3)2": "Ba-N-O",
    "Co": "Co",
    "CO": "C-O",
}


def frame(formula: str, source: str = "a") -> LabeledFrame:
    return LabeledFrame(Atoms(), {}, formula, source, 0)


@pytest.mark.parametrize(("formula", "system"), SYSTEMS.items())
def test_chemical_systems_are_those_of_pymatgen(formula, system):
    assert chemical_system(formula) == system == Composition(formula).chemical_system


def test_compounds_of_the_same_elements_stay_together():
    way = SplitConfig(strategy="chemical_system")
    frames = assign_splits([frame(name) for name in SYSTEMS], {"a": way})
    places = {f.material: f.split for f in frames}
    assert places["BaTiO3"] == places["Ba2TiO4"] == places["BaTi2O5"]
    # First digits of `printf fieldflows:Ba-O-Ti | sha256sum`: 4f42, a fraction 0.31 of ffff.
    assert places["BaTiO3"] == "train"
    counts = Counter(split_of_formula(f"{a}{b}", way) for a, b in itertools.product(ELEMENTS, ELEMENTS) if a != b)
    for name, fraction in (("train", 0.8), ("valid", 0.1), ("test", 0.1)):
        assert counts[name] / counts.total() == pytest.approx(fraction, abs=0.04)


def test_additions_move_no_chemical_system():
    way = SplitConfig(strategy="chemical_system")
    before = {f.material: f.split for f in assign_splits([frame(name) for name in SYSTEMS], {"a": way})}
    more = ["Ba3Ti", "NO", *SYSTEMS, "SrTiO3"]
    after = {f.material: f.split for f in assign_splits([frame(name) for name in reversed(more)], {"a": way})}
    assert {name: after[name] for name in before} == before
    assert after["Ba3Ti"] == split_of_formula("BaTi", way)


def test_a_system_that_one_source_keeps_together_is_not_divided_by_another():
    by_system, by_formula = SplitConfig(strategy="chemical_system"), SplitConfig()
    frames = [frame("BaTiO3"), frame("Ba2TiO4", "b")]
    with pytest.raises(SettingsError, match="Ba-O-Ti occurs in the sources 'a' and 'b'"):
        assign_splits(frames, {"a": by_system, "b": by_formula})
    assert len(assign_splits(frames, {"a": by_formula, "b": SplitConfig(salt="x")})) == 2  # no formula in both
    assert len(assign_splits(frames, {"a": by_system, "b": by_system})) == 2
    with pytest.raises(SettingsError, match="BaTiO3 occurs"):
        assign_splits([frame("BaTiO3"), frame("BaTiO3", "b")], {"a": by_formula, "b": SplitConfig(salt="x")})
