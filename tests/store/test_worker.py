"""The store that is chosen where a job runs."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from ase.build import bulk
from jobflow import JobStore, run_locally
from monty.json import MontyDecoder, MontyEncoder

from fieldflows.errors import StoreError
from fieldflows.flows.screening import DielectricMaker
from fieldflows.store import ResultsCollection, get_store
from fieldflows.store.worker import WorkerStore


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIELDFLOWS_STORE", str(tmp_path / "here.db"))
    return tmp_path / "here.db"


def test_nothing_of_the_store_is_written_down(here: Path) -> None:
    store = WorkerStore()
    store.connect()
    store.update({"uuid": "a", "index": 1, "output": 1}, key=["uuid", "index"])
    text = json.dumps({"store": store}, cls=MontyEncoder)
    assert set(json.loads(text)["store"]) == {"@module", "@class", "@version"}
    assert "here" not in text
    for copy in (json.loads(text, cls=MontyDecoder)["store"], pickle.loads(pickle.dumps(store))):
        assert isinstance(copy, WorkerStore)
        assert copy == store
        with pytest.raises(StoreError, match="not connected yet"):
            copy.count()
        copy.connect()
        assert copy.query_one({"uuid": "a"})["output"] == 1


def test_a_description_cannot_lead_elsewhere(here: Path, tmp_path: Path) -> None:
    other = get_store(tmp_path / "other.db").as_dict() | WorkerStore().as_dict()
    store = MontyDecoder().process_decoded(other)
    store.connect()
    assert Path(store.docs_store.path) == here
    assert isinstance(store, JobStore)


def test_jobs_run_with_it_and_results_are_found(here: Path) -> None:
    job = DielectricMaker(model="toy").make(bulk("MgO", "rocksalt", 4.21))
    run_locally(job, store=WorkerStore(), log=False, ensure_success=True)
    assert get_store(here).query_one({"uuid": job.uuid})["output"]["formula_pretty"] == "MgO"
    assert ResultsCollection.of(get_store(here)).count() == 1


def test_it_is_chosen_when_it_connects(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = WorkerStore()
    assert store.name == "JobStore of the worker"
    store.connect()
    monkeypatch.setenv("FIELDFLOWS_STORE", str(tmp_path / "there.db"))
    store.connect()
    assert Path(store.docs_store.path) == here
    store.close()
    store.connect()
    assert Path(store.docs_store.path).name == "there.db"
    with pytest.raises(AttributeError):
        _ = store.no_such_thing


def test_a_worker_that_nobody_told_where_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("JOBFLOW_CONFIG_FILE", raising=False)
    monkeypatch.setenv("FIELDFLOWS_STORE", str(tmp_path / "here.db"))
    WorkerStore().connect()
    assert "not set here" not in caplog.text
    monkeypatch.delenv("FIELDFLOWS_STORE")
    store = WorkerStore()
    store.connect()
    assert str(store.docs_store.path).startswith(str(tmp_path))
    assert "FIELDFLOWS_STORE is not set here" in caplog.text


def test_an_outage_at_the_end_of_a_job_costs_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pymongo.errors import AutoReconnect

    from fieldflows.store import patience

    waited: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", waited.append)
    store = WorkerStore()
    store.connect()
    update = store.docs_store.update

    def flaky(*args: object, **kwargs: object) -> None:
        if len(waited) < 2:
            raise AutoReconnect("gone")
        update(*args, **kwargs)

    monkeypatch.setattr(store.docs_store, "update", flaky)
    store.update({"uuid": "a", "index": 1, "output": {"n": 2}}, key=["uuid", "index"])
    assert waited == list(patience.RETRY_DELAYS[:2])
    assert get_store(here).query_one({"uuid": "a"})["output"] == {"n": 2}

    def dead(*args: object, **kwargs: object) -> None:
        raise AutoReconnect("gone")

    monkeypatch.setattr(store.docs_store, "update", dead)
    with pytest.raises(StoreError, match="does not answer"):
        store.update({"uuid": "b", "index": 1, "output": 1}, key=["uuid", "index"])
