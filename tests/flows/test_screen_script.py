"""``workflows/screen.py``: dry run, run here, and hand over to FireWorks."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from ase.build import bulk
from ase.io import write

from fieldflows.store import ResultsCollection, get_store

SCRIPT = Path(__file__).parents[2] / "workflows" / "screen.py"


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    monkeypatch.chdir(tmp_path)
    write("two.extxyz", [bulk("MgO", "rocksalt", 4.21), bulk("NaCl", "rocksalt", 5.64)], format="extxyz")
    Path("empty.cif").write_text("")
    return runpy.run_path(str(SCRIPT))["main"]


def test_dry_run_stores_nothing(main, capsys) -> None:
    main(["two.extxyz", "empty.cif", "--model", "toy", "--store", "s.db", "--dry-run"])
    out = capsys.readouterr().out
    assert "2 structures in 1 jobs" in out
    assert "left out empty.cif" in out
    assert not Path("s.db").exists()


def test_runs_here(main) -> None:
    main(["two.extxyz", "--model", "toy", "--store", "s.db"])
    assert ResultsCollection.of(get_store("s.db")).count() == 2


def test_hands_over_to_fireworks(main, monkeypatch: pytest.MonkeyPatch) -> None:
    fireworks = pytest.importorskip("fireworks")
    added = []

    class Pad:
        def add_wf(self, workflow) -> None:
            added.append(workflow)

    monkeypatch.setattr(fireworks.LaunchPad, "from_file", lambda path: Pad())
    main(["two.extxyz", "--model", "toy", "--store", "s.db", "--fireworks", "my_launchpad.yaml"])
    (workflow,) = added
    assert len(workflow.fws) == 1
    assert ResultsCollection.of(get_store("s.db")).count() == 0
