from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jobflow import JobStore

from fieldflows.store import get_store


@pytest.fixture(autouse=True)
def journals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of journals for each test."""
    folder = tmp_path / "journals"
    monkeypatch.setenv("FIELDFLOWS_JOURNALS", str(folder))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    made = get_store(tmp_path / "campaign.db")
    yield made
    made.close()
