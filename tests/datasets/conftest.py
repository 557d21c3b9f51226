"""Fixtures: a synthetic file, and the folder of the real data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.datasets.synthetic import FORMULAS, dielectric_text, perovskite, write


@pytest.fixture
def dielectric_file(tmp_path: Path) -> Path:
    """Eighteen perovskites in the format of the paper's dielectric files."""
    text = "".join(dielectric_text(perovskite(*spec)) for spec in FORMULAS)
    return write(tmp_path / "perovskites.extxyz.xz", text)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of the real data."""
    folder = os.environ.get("FIELDFLOWS_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FIELDFLOWS_DATA is not set: the real data are not at hand")
    return Path(folder)
