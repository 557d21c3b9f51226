"""The benchmark of campaigns works, and counts what it should."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.campaign import made_crystals, timed_campaign
from fieldflows.schemas.identity import structure_hash


def test_the_crystals_are_distinct() -> None:
    assert len({structure_hash(atoms) for atoms in made_crystals(300)}) == 300
    assert made_crystals(3, 1)[2] == made_crystals(3, 1)[2]


def test_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDFLOWS_JOURNALS", str(tmp_path / "journals"))
    result = timed_campaign(12, 0, tmp_path)
    assert result["crystals"] == 12
    assert 0 < result["computing_s"] < result["seconds"]["work"]
    assert result["overhead_s"] > 0
    assert result["stages"][0]["done"] == 12
    assert result["stages"][1]["done"] + result["stages"][1]["rejected"] == 12


@pytest.mark.slow
def test_the_word(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    assert main(["campaign", "--count", "100", "--output", str(output)]) in (0, 1)
    assert report.load(output)["campaign"]["result"]["crystals"] == 100
