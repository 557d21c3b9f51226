"""Crystals and stores for the tests of jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk

from fieldflows.store import ResultsCollection, get_store


@pytest.fixture
def crystals() -> list[Atoms]:
    return [bulk("MgO", "rocksalt", 4.21), bulk("NaCl", "rocksalt", 5.64), bulk("GaAs", "zincblende", 5.65)]


@pytest.fixture
def results(tmp_path: Path) -> ResultsCollection:
    return ResultsCollection.of(get_store(tmp_path / "s.db"))
