"""An empty registry and an empty folder of artifacts for every test."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def empty_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDFLOWS_MODELS", str(tmp_path / "registry"))
    monkeypatch.setenv("FIELDFLOWS_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.delenv("FIELDFLOWS_ARTIFACT_SOURCES", raising=False)
