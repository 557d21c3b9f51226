"""Results and failures between stores: word for word, once, in both directions, also after an interruption."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from ase.build import bulk
from jobflow import JobStore
from maggma.stores import MemoryStore

from fieldflows.backends.toy import ToyModel
from fieldflows.errors import QueryError, SettingsError, StoreError
from fieldflows.properties.dielectric import DielectricProperty
from fieldflows.properties.run import run_property
from fieldflows.schemas.failure import FailureDocument
from fieldflows.schemas.identity import document_key, settings_hash
from fieldflows.store import FailuresCollection, ResultsCollection, get_store, publish_results, transfer, versions
from fieldflows.store.query import parse_query
from fieldflows.store.versions import created_at, in_present_version, is_better, migrate
from fieldflows.testing.mongodb import memory_mongodb
from tests.support.mongodb import address  # noqa: F401  (a fixture)
from tests.support.stores import job_store  # noqa: F401  (a fixture)

GOLDEN = Path(__file__).parents[1] / "schemas" / "golden"


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    """Results as a screening leaves them; times to the microsecond, which MongoDB would cut."""
    crystals = [bulk("MgO", "rocksalt", 4.21), bulk("NaCl", "rocksalt", 5.64), bulk("GaAs", "zincblende", 5.65)]
    found = [document.to_json_dict() for document in run_property(DielectricProperty(), crystals, ToyModel())]
    for number, document in enumerate(found):
        document["provenance"]["created_at"] = f"2026-11-29T09:30:00.12345{number}Z"
    return found


def many(documents: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return as many results, all different."""
    made = []
    for number in range(count):
        row = copy.deepcopy(documents[number % len(documents)])
        made.append(row | {"key": str(uuid.UUID(int=number)), "material_id": f"mp-{number}"})
    return made


def failures() -> list[FailureDocument]:
    return [
        FailureDocument.from_error(MemoryError("full"), "evaluate", source="a.cif", index=number, task="dielectric")
        for number in range(5)
    ]


def text(rows: Any) -> list[str]:
    """Return rows as texts, in which 1 and 1.0 differ, and the order of fields counts."""
    return sorted(json.dumps(row) for row in rows)


def counts(found: Any) -> tuple[int, ...]:
    return found.new, found.replaced, found.unchanged, found.kept, found.unreadable


def stored(spec: Any) -> tuple[list[str], list[str]]:
    opened = get_store(spec) if isinstance(spec, str | Path) else spec
    return text(ResultsCollection.of(opened).query()), text(FailuresCollection.of(opened).query())


@pytest.mark.parametrize("towards", ["mongodb", "file"])
def test_word_for_word_in_both_directions(
    documents,
    address: str,  # noqa: F811
    tmp_path: Path,
    towards: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfer, "PORTION", 40)
    places = [tmp_path / "s.db", address]
    source, target = places if towards == "mongodb" else places[::-1]
    rows, failed = many(documents, 90), failures()
    ResultsCollection.of(get_store(source)).put(rows)
    FailuresCollection.of(get_store(source)).put(failed)
    FailuresCollection.of(get_store(source)).put([failed[0].model_copy(update={"created_at": datetime.now(UTC)})])
    seen: list[tuple[int, int]] = []
    done = publish_results(source, target, progress=lambda *numbers: seen.append(numbers))
    assert (counts(done.results), counts(done.failures)) == ((90, 0, 0, 0, 0), (5, 0, 0, 0, 0))
    assert seen == [(40, 90), (80, 90), (90, 90), (5, 5)]
    before = stored(source)
    assert before[0] == text(rows)
    assert stored(target) == before
    again = publish_results(source, target)
    assert (counts(again.results), counts(again.failures)) == ((0, 0, 90, 0, 0), (0, 0, 5, 0, 0))
    back = publish_results(target, source)
    assert (counts(back.results), counts(back.failures)) == ((0, 0, 90, 0, 0), (0, 0, 5, 0, 0))
    assert stored(target) == stored(source) == before


def test_the_later_document_stays(documents, job_store: JobStore, tmp_path: Path) -> None:  # noqa: F811
    source, target = get_store(tmp_path / "source.db"), job_store
    rows = many(documents, 5)
    old = copy.deepcopy(rows)
    ResultsCollection.of(source).put(rows[:4])
    for number, days in ((0, -1), (1, 1)):
        moment = datetime.fromisoformat(rows[number]["provenance"]["created_at"]) + timedelta(days=days)
        old[number]["provenance"]["created_at"] = moment.isoformat()
    old[2]["material_id"] = "other"  # the same time: what the target has stays
    ResultsCollection.of(target).put([old[0], old[1], old[2], old[4]])
    dry = publish_results(source, target, dry_run=True)
    assert ResultsCollection.of(target).count() == 4
    done = publish_results(source, target)
    assert counts(done.results) == counts(dry.results) == (1, 1, 0, 2, 0)
    assert stored(target)[0] == text([rows[0], old[1], old[2], rows[3], old[4]])
    assert counts(publish_results(source, target).results) == (0, 0, 2, 2, 0)


def test_a_result_with_the_ionic_part_stays() -> None:
    def row(status: str, day: int, version: int = 2) -> dict[str, Any]:
        made = {"status_ionic": status, "schema_version": version}
        return made | {"provenance": {"created_at": f"2026-11-{day:02}T00:00:00Z"}}

    assert is_better(row("ok", 1), row("not_requested", 2))
    assert is_better(row("unstable", 1), row("no_energy_surface", 2))
    assert not is_better(row("not_requested", 2), row("ok", 1))
    assert is_better(row("ok", 2), row("unstable", 1))
    assert is_better(row("ok", 1, 2), row("ok", 1, 1))
    assert not is_better(row("ok", 1), row("ok", 1))
    assert is_better({"created_at": datetime(2026, 1, 2)}, {"created_at": "2026-01-01T23:59:59.999Z"})
    assert created_at({}) == created_at({"created_at": "yesterday"}) < created_at(row("ok", 1))


def test_expressions_and_what_stays_behind(documents, tmp_path: Path) -> None:
    source = get_store(tmp_path / "source.db")
    ResultsCollection.of(source).put(documents)
    FailuresCollection.of(source).put(failures())
    target = JobStore(MemoryStore())
    done = publish_results(source, target, parse_query('"O" in elements'))
    assert (done.results.new, done.failures.new) == (1, 0)
    assert [row["formula_pretty"] for row in ResultsCollection.of(target).query()] == ["MgO"]
    with pytest.raises(SettingsError, match="same store"):
        publish_results(tmp_path / "source.db", source)
    with pytest.raises(StoreError, match="no store"):
        publish_results(tmp_path / "missing.db", target)
    assert not (tmp_path / "missing.db").exists()
    assert publish_results(source, tmp_path / "new.db", dry_run=True).results.new == 3
    assert not (tmp_path / "new.db").exists()


def of_version_1(document: dict[str, Any]) -> dict[str, Any]:
    """Return a result as version 1 wrote it, when ``ionic`` belonged to the key."""
    facts = document["provenance"]
    whole = {"settings": facts["settings"], "extra": {}, "dtype": facts["model"]["dtype"], "hessian_model": None}
    digest = settings_hash(whole)
    key = document_key("dielectric", facts["input_structure_hash"], facts["model"]["sha256"], digest, 1)
    old = {**document, "schema_version": 1, "key": key, "provenance": {**facts, "settings_hash": digest}}
    del old["reference"]
    return old


def test_older_documents_are_brought_up_to_date_on_the_way(documents, job_store: JobStore, tmp_path: Path) -> None:  # noqa: F811
    source = get_store(tmp_path / "source.db")
    old = [of_version_1(document) for document in documents]
    broken = {**old[0], "key": "broken", "n": "many"}
    foreign, future = {"key": "foreign", "x": 1}, {**documents[0], "key": "future", "schema_version": 99}
    ResultsCollection.of(source).put([*old, broken, foreign, future])
    failure = json.loads((GOLDEN / "failure_1.json").read_text())
    FailuresCollection.of(source).put([{**failure, "failure_key": "old key"}])
    before = stored(source)
    done = publish_results(source, job_store)
    assert (counts(done.results), counts(done.failures)) == ((5, 0, 0, 0, 1), (1, 0, 0, 0, 0))
    assert "broken: This is no valid DielectricDocument: n" in done.results.problems[0]
    assert stored(job_store)[0] == text([*documents, foreign, future])
    assert stored(source) == before
    again = publish_results(source, job_store)
    assert (counts(again.results), counts(again.failures)) == ((0, 0, 5, 0, 1), (0, 0, 1, 0, 0))


def test_dates_of_other_programs_become_texts(documents) -> None:
    row = copy.deepcopy(documents[0])
    row["provenance"]["created_at"] = datetime(2026, 11, 29, 9, 30, 0, 123000)
    assert in_present_version({**row, "_id": 1})["provenance"]["created_at"] == "2026-11-29T09:30:00.123000Z"


def test_migration_in_place(documents, job_store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(versions, "PORTION", 2)
    results = ResultsCollection.of(job_store)
    old = [of_version_1(document) for document in documents]
    electronic = of_version_1({**documents[0], "status_ionic": "not_requested"}) | {"key": "electronic"}
    broken = {**old[0], "key": "broken", "n": "many"}
    future = {**documents[0], "key": "future", "schema_version": 99}
    results.put([electronic, *old, broken, future, {"key": "foreign", "schema_version": 1}])
    before = stored(job_store)
    counted = migrate(results, dry_run=True)
    assert stored(job_store) == before
    done = migrate(results)
    assert (done.migrated + done.merged, done.unreadable) == (4, 1)
    assert counted.unreadable == 1
    assert stored(job_store)[0] == text([*documents, broken, future, {"key": "foreign", "schema_version": 1}])
    again = migrate(results)
    assert (again.migrated, again.merged, again.unreadable) == (0, 0, 1)
    # a result that today's code has computed meanwhile, and a rest of an interruption
    newer = copy.deepcopy(documents[1])
    newer["provenance"]["created_at"] = "2027-01-01T00:00:00Z"
    results.put([newer, old[1], old[2]])
    done = migrate(results)
    assert (done.migrated, done.merged) == (0, 2)
    assert stored(job_store)[0] == text(
        [documents[0], newer, documents[2], broken, future, {"key": "foreign", "schema_version": 1}]
    )


def test_failures_are_migrated(job_store: JobStore) -> None:  # noqa: F811
    collection = FailuresCollection.of(job_store)
    failure = json.loads((GOLDEN / "failure_1.json").read_text())
    new = FailureDocument.from_json_dict(failure)
    collection.put([{**failure, "failure_key": new.failure_key}])
    assert migrate(collection).migrated == 1
    assert collection.get(new.failure_key) == new.to_json_dict()


COPY = """
import sys
from fieldflows.store import publish_results, transfer
transfer.PORTION = 10
publish_results(sys.argv[1], sys.argv[2], progress=lambda done, total: print(done, flush=True))
"""


@pytest.mark.parametrize("kind", ["file", "mongodb"])
def test_a_copy_that_was_killed_goes_on(documents, tmp_path: Path, kind: str) -> None:
    rows = many(documents, 150)
    ResultsCollection.of(get_store(tmp_path / "source.db")).put(rows)
    with memory_mongodb() as server:
        target = str(tmp_path / "target.db") if kind == "file" else f"{server}/test"
        words = [sys.executable, "-c", COPY, str(tmp_path / "source.db"), target]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "10\n"
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        there = ResultsCollection.of(get_store(target)).count()
        assert 10 <= there < 150
        done = publish_results(tmp_path / "source.db", target)
        assert counts(done.results) == (150 - there, 0, there, 0, 0)
        assert stored(target)[0] == text(rows)


def test_a_server_that_is_away_for_a_while_is_waited_for(documents, tmp_path: Path, monkeypatch) -> None:
    from pymongo.errors import AutoReconnect

    from fieldflows.store import patience

    monkeypatch.setattr(patience, "RETRY_DELAYS", (0.0,) * 5)
    monkeypatch.setattr(transfer, "PORTION", 10)
    source, target = get_store(tmp_path / "source.db"), JobStore(MemoryStore())
    ResultsCollection.of(source).put(many(documents, 30))
    kept = ResultsCollection.of(target)
    calls = []
    update = kept.store.update

    def flaky(*words, **options):
        calls.append(1)
        update(*words, **options)
        if len(calls) % 2:
            raise AutoReconnect("gone after it was written")

    monkeypatch.setattr(kept.store, "update", flaky)
    assert counts(publish_results(source, target).results) == (30, 0, 0, 0, 0)
    assert len(calls) == 6
    assert kept.count() == 30


def test_wrong_expressions(tmp_path: Path) -> None:
    with pytest.raises(QueryError):
        publish_results(tmp_path / "s.db", tmp_path / "t.db", parse_query("nn > 2"))
