"""MongoDB through the real client: against a real server where there is one, and against the one in memory."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from ase.build import bulk
from ase.io import write
from jobflow import JobStore, run_locally
from pymongo import MongoClient

from fieldflows.flows.screening import DielectricMaker
from fieldflows.store import ResultsCollection, get_store, publish
from fieldflows.testing.mongodb import memory_mongodb
from tests.support.mongodb import address  # noqa: F401  (a fixture)

CRYSTALS = [bulk("MgO", "rocksalt", 4.21), bulk("NaCl", "rocksalt", 5.64)]


def run(flow, store: JobStore) -> None:
    run_locally(flow, store=store, log=False, ensure_success=True, raise_immediately=True)


def test_screening_into_mongodb(address: str) -> None:  # noqa: F811
    store = get_store(address)
    maker = DielectricMaker(model="toy", keep_hessians=True)
    flow = maker.make(CRYSTALS)
    run(flow, store)
    results = ResultsCollection.of(store)
    assert sorted(doc["formula_pretty"] for doc in results.query({"n": {"$gt": 1.0}})) == ["MgO", "NaCl"]
    (one,) = results.query({"formula_pretty": "MgO"})
    assert "_id" not in one
    small = store.query_one({"uuid": flow.jobs[0].uuid})["output"]["hessians"]
    assert {item["hessian"]["store"] for item in small} == {"data"}
    large = store.query_one({"uuid": flow.jobs[0].uuid}, load=True)["output"]["hessians"]
    assert [len(item["hessian"]) for item in large] == [6, 6]

    again = maker.make(CRYSTALS)
    run(again, store)
    output = store.query_one({"uuid": again.jobs[0].uuid})["output"]
    assert (output["n_reused"], output["n_computed"]) == (2, 0)
    assert results.count() == 2

    results.store.remove_docs({})
    assert publish(store) == 4
    assert results.count() == 2
    published = results.get(one["key"])
    # MongoDB keeps dates in UTC, to the millisecond.
    dates = [datetime.fromisoformat(doc["provenance"].pop("created_at")) for doc in (published, one)]
    assert abs(dates[0] - dates[1]) < timedelta(milliseconds=2)
    assert published == one


def test_a_jobstore_without_results_gets_them_beside(address: str) -> None:  # noqa: F811
    from maggma.stores import MongoStore

    store = JobStore(MongoStore.from_uri(address, "my_outputs"))
    run(DielectricMaker(model="toy").make(CRYSTALS[:1]), store)
    server, name = address.rsplit("/", 1)
    database = MongoClient(server)[name]
    assert database["results"].count_documents({}) == database["my_outputs"].count_documents({}) == 1


def test_the_same_documents_as_in_the_embedded_store(address: str, tmp_path: Path) -> None:  # noqa: F811
    documents = []
    for store in (get_store(address), get_store(tmp_path / "s.db")):
        run(DielectricMaker(model="toy").make(CRYSTALS), store)
        rows = sorted(ResultsCollection.of(store).query(), key=lambda doc: doc["key"])
        for row in rows:
            assert row["provenance"].pop("created_at")
        documents.append(rows)
    assert documents[0] == documents[1]


def test_the_command_line(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # noqa: F811
    from fieldflows.cli.main import run as call

    def answer(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            call(words)
        assert not stop.value.code
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIELDFLOWS_STORE", address)
    write("two.extxyz", CRYSTALS, format="extxyz")
    assert "MgO" in answer("screen", "two.extxyz", "--model", "toy")
    assert json.loads(answer("screen", "two.extxyz", "--model", "toy", "--dry-run", "--json"))["stored"] == 2
    found = json.loads(answer("query", "n > 1 and 'Na' in elements", "--json"))
    assert [doc["formula_pretty"] for doc in found] == ["NaCl"]
    assert answer("query", "--csv", "--sort", "n", "--columns", "formula,n").count("\n") == 3


def test_fireworks_runs_the_flow(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    fireworks = pytest.importorskip("fireworks")
    from fireworks.core.rocket_launcher import rapidfire
    from jobflow.managers.fireworks import flow_to_workflow

    monkeypatch.chdir(tmp_path)
    launchpad = fireworks.LaunchPad(host=address, name=address.rsplit("/", 1)[1], uri_mode=True, strm_lvl="CRITICAL")
    launchpad.reset("", require_password=False, max_reset_wo_password=10)
    flow = DielectricMaker(model="toy", chunk_structures=1).make(CRYSTALS)
    launchpad.add_wf(flow_to_workflow(flow, store=get_store(address)))
    rapidfire(launchpad, strm_lvl="CRITICAL")
    assert {launchpad.get_fw_by_id(i).state for i in launchpad.get_fw_ids()} == {"COMPLETED"}
    assert ResultsCollection.of(get_store(address)).count() == 2


def test_a_server_that_goes_away_is_named_without_password() -> None:
    from fieldflows.errors import StoreError

    with memory_mongodb() as server:
        store = get_store(f"{server}/x")
        assert ResultsCollection.of(store).count() == 0
    with pytest.raises(StoreError, match="cannot be reached") as caught:
        get_store("mongodb://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(caught.value)
