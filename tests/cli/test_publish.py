"""``fieldflows publish`` and ``fieldflows store migrate``: counts, exit codes, nothing done in vain."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from fieldflows.store import ResultsCollection, get_store
from fieldflows.testing.mongodb import memory_mongodb


@pytest.fixture
def filled(cli, crystals: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # other tests of this process may have let jobflow log everything to standard output
    monkeypatch.setattr(logging.root, "handlers", [])
    assert cli("screen", crystals, "--model", "toy", "--store", "s.db").code == 0
    return Path("s.db")


def test_there_and_back(cli, filled: Path) -> None:
    with memory_mongodb() as server:
        dry = cli("publish", filled, f"{server}/x", "--dry-run", "--json")
        assert json.loads(dry.out)["results"]["new"] == 3
        assert ResultsCollection.of(get_store(f"{server}/x")).count() == 0
        answer = cli("publish", filled, f"{server}/x")
        assert answer.code == 0
        assert "Published" in answer.out
        again = json.loads(cli("publish", filled, f"{server}/x", "--json").out)
        assert (again["results"]["new"], again["results"]["unchanged"]) == (0, 3)
        assert cli("publish", f"{server}/x", "copy.db", "--where", "formula == 'MgO'").code == 0
    rows = list(ResultsCollection.of(get_store("copy.db")).query())
    assert rows == list(ResultsCollection.of(get_store("s.db")).query({"formula_pretty": "MgO"}))


def test_results_of_job_outputs(cli, filled: Path) -> None:
    ResultsCollection.of(get_store(filled)).store.remove_docs({})
    answer = cli("publish", filled, "--from-outputs")
    assert answer.code == 0
    assert "of job outputs are in the results now" in answer.out
    both = json.loads(cli("publish", filled, "t.db", "--from-outputs", "--json").out)
    assert both["from_outputs"] == ResultsCollection.of(get_store(filled)).count() == both["results"]["new"]


def test_errors(cli, filled: Path) -> None:
    for words, message in (
        (["missing.db", "t.db"], "no store"),
        ([filled], "needs a TARGET"),
        ([filled, filled], "same store"),
        ([filled, "t.db", "--where", "nn > 2"], "nn"),
        ([filled, "t.db", "--from-outputs", "--dry-run"], "exclude each other"),
    ):
        answer = cli("publish", *words)
        assert answer.code == 2, words
        assert message in answer.err
    assert not Path("t.db").exists()


def test_unreadable_results_are_said(cli, filled: Path) -> None:
    results = ResultsCollection.of(get_store(filled))
    results.put([{"key": "k", "task": "dielectric", "schema_version": 1}])
    answer = cli("publish", filled, "t.db")
    assert answer.code == 1
    assert "k: This is no valid DielectricDocument" in answer.err
    assert ResultsCollection.of(get_store("t.db")).count() == 3
    answer = cli("store", "migrate", "--store", filled, "--json")
    assert answer.code == 1
    assert json.loads(answer.out)["results"]["unreadable"] == 1
    assert results.count() == 4


def test_migrate(cli, filled: Path) -> None:
    assert "Brought up to date" in cli("store", "migrate", "--store", filled).out
    found = json.loads(cli("store", "migrate", "--store", filled, "--dry-run", "--json").out)
    assert found["results"] == {"migrated": 0, "merged": 0, "unreadable": 0, "problems": []}
