"""The journal: nothing that was written is lost, a line that was cut off harms nothing, deaths are counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fieldflows.campaigns.journal import Journal
from fieldflows.errors import StoreError


def row(name: str) -> dict[str, str]:
    return {"key": name, "value": "x" * 50}


def test_what_was_not_acknowledged_is_there_again(journals: Path) -> None:
    with Journal.opened("c", "1") as journal:
        journal.append([row("a")], [{"failure_key": "f", "message": "m"}])
        journal.acknowledged()
        journal.append([row("b")], [])
    with Journal.opened("c", "1") as journal:
        assert list(journal.results) == ["b"]
        assert journal.failures == {}
        journal.acknowledged()
    assert list(journals.rglob("*.jsonl")) == []


@pytest.mark.parametrize("cut", [2, 20, 40])
def test_a_line_that_was_cut_off_is_dropped(journals: Path, cut: int) -> None:
    with Journal.opened("c", "1") as journal:
        journal.append([row("a"), row("b")], [])
        path = journal.path
        text = path.read_bytes()
    lines = text.splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:-cut])
    with Journal.opened("c", "1") as journal:
        assert list(journal.results) == ["a"]
        journal.append([row("c")], [])
    with Journal.opened("c", "1") as journal:
        assert list(journal.results) == ["a", "c"]


def test_deaths_are_counted_by_crystal_and_forgotten_when_it_is_done(journals: Path) -> None:
    script = (
        "import os, signal\nfrom fieldflows.campaigns.journal import Journal\n"
        "with Journal.opened('c', '1') as journal:\n"
        "    journal.append([{'key': 'done'}], [])\n    journal.start(['k', 'l'])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for deaths in (1, 2):
        assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
        with Journal.opened("c", "1") as journal:
            assert journal.deaths == {"k": deaths, "l": deaths}
            assert list(journal.results) == ["done"]
    with Journal.opened("c", "1") as journal:
        journal.append([row("k")], [])
        journal.forget(["k"])
        journal.acknowledged()
    with Journal.opened("c", "1") as journal:
        assert journal.deaths == {"l": 2}


def test_an_error_is_no_death(journals: Path) -> None:
    def fail() -> None:
        with Journal.opened("c", "1") as journal:
            journal.append([row("a")], [])
            journal.start(["k"])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with Journal.opened("c", "1") as journal:
        assert journal.deaths == {}
        assert list(journal.results) == ["a"]


def test_two_processes_have_two_files_and_one_heir(journals: Path) -> None:
    with Journal.opened("c", "1") as first:
        with Journal.opened("c", "1") as second:
            assert first.path != second.path
            second.append([row("b")], [])
        first.append([row("a")], [])
    with Journal.opened("c", "1") as heir:
        assert sorted(heir.results) == ["a", "b"]
        heir.acknowledged()
    assert list(journals.rglob("*.jsonl")) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(journals: Path) -> None:
    journals.mkdir()
    journals.chmod(0o500)
    with pytest.raises(StoreError, match="cannot be written"), Journal.opened("c", "1"):
        pass


def test_a_file_in_place_of_the_folder(journals: Path) -> None:
    journals.write_text("")
    with pytest.raises(StoreError, match=r"cannot be written.*FIELDFLOWS_JOURNALS"), Journal.opened("c", "1"):
        pass
