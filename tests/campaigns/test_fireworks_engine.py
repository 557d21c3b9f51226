"""Chunk jobs through FireWorks, over TCP: against the server in memory, and a real one where there is one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pymongo import MongoClient

from fieldflows.campaigns.engines.fireworks import FireworksEngine
from fieldflows.campaigns.engines.launchpad import find_launchpad, open_launchpad
from fieldflows.errors import SettingsError, StoreError
from fieldflows.store import ResultsCollection, get_store
from fieldflows.store.select import mongo_job_store
from tests.support.engines import SECRET, broken_job, chunk_jobs, everything_in, summary_job
from tests.support.mongodb import address  # noqa: F401  (a fixture)

fireworks = pytest.importorskip("fireworks")

NONE = dict.fromkeys(("waiting", "ready", "running", "done", "failed", "canceled", "missing"), 0)


@pytest.fixture
def launchpad(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:  # noqa: F811
    """A LaunchPad in the working directory, and a worker's store in a database of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FW_CONFIG_FILE", raising=False)
    secret = f"{address}?appName={SECRET}"
    monkeypatch.setenv("FIELDFLOWS_STORE", secret)
    settings = {"host": secret, "uri_mode": True, "name": address.rsplit("/", 1)[1]}
    Path("launchpad.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    made = fireworks.LaunchPad(**settings, strm_lvl="CRITICAL")
    made.reset("", require_password=False, max_reset_wo_password=10)
    yield made
    made.connection.close()


def work(launchpad, category: str = "") -> None:
    from fireworks.core.rocket_launcher import rapidfire

    rapidfire(launchpad, fireworks.FWorker(category=category), strm_lvl="CRITICAL")


def number_of(launchpad, uuid: str) -> int:
    return launchpad.fireworks.find_one({"spec.job_uuid": uuid})["fw_id"]


def test_workers_take_their_category_and_failures_stay_alone(launchpad, address: str, tmp_path, capsys) -> None:  # noqa: F811
    engine = FireworksEngine(workers={"gpu": "a100", "cpu": "milan"})
    jobs = [*chunk_jobs(2, 2), broken_job(), *chunk_jobs(1, 3, "gpu", 4.5)]
    jobs[1].metadata["priority"] = 7
    ids = engine.submit(jobs, name="trial", metadata={"campaign": "trial"})
    assert engine.states(ids) == NONE | {"ready": 4}
    assert engine.states([*ids, "999"]) == NONE | {"ready": 4, "missing": 1}
    assert launchpad.get_fw_by_id(number_of(launchpad, ids[1])).spec["_priority"] == 7

    work(launchpad, "milan")
    assert engine.states(ids) == NONE | {"done": 2, "failed": 1, "ready": 1}
    results = ResultsCollection.of(get_store())
    assert results.count() == 4
    work(launchpad, "a100")
    assert engine.states(ids) == NONE | {"done": 3, "failed": 1}
    assert results.count() == 7
    order = sorted(launchpad.launches.find(), key=lambda launch: launch["launch_id"])
    assert order[0]["fw_id"] == number_of(launchpad, ids[1])

    assert engine.rerun(ids) == 1
    assert engine.states(ids) == NONE | {"done": 3, "ready": 1}
    assert engine.cancel(ids) == 1
    assert engine.states(ids) == NONE | {"done": 3, "canceled": 1}

    Path("launchpad.yaml").unlink()
    texts = dict.fromkeys(everything_in(address, tmp_path))
    assert {"fireworks", "launches", "workflows", "outputs", "results"} <= {name for name, _ in texts}
    assert any("CheckpointError" in text for name, text in texts if name == "launches")
    assert any(name.endswith("FW.json") for name, _ in texts)
    assert [name for name, text in texts if SECRET in text] == []
    assert SECRET not in "".join(capsys.readouterr())


def test_the_search_for_passwords_finds_one(launchpad, address: str, tmp_path) -> None:  # noqa: F811
    from jobflow.managers.fireworks import flow_to_workflow

    launchpad.add_wf(flow_to_workflow(chunk_jobs(1)[0], store=mongo_job_store(os.environ["FIELDFLOWS_STORE"])))
    assert "fireworks" in [name for name, text in everything_in(address, tmp_path) if SECRET in text]


def test_a_killed_worker_is_found_and_its_chunk_finished(launchpad) -> None:
    engine = FireworksEngine()
    ids = engine.submit(chunk_jobs(1, 64), name="trial", metadata={})
    results = ResultsCollection.of(get_store())
    program = Path(sys.executable).with_name("rlaunch")
    words = [program, "-l", "launchpad.yaml", "singleshot"]
    worker = subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not results.count() and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    kept = results.count()
    assert 0 < kept < 64
    assert engine.states(ids) == NONE | {"running": 1}

    assert engine.lost(ids) == []
    assert engine.lost(["999"], silent_s=0) == []
    assert engine.lost(ids, silent_s=0) == ids
    assert engine.states(ids) == NONE | {"running": 1}
    assert engine.lost(ids, silent_s=0, rerun=True) == ids
    assert engine.states(ids) == NONE | {"ready": 1}
    work(launchpad)
    assert engine.states(ids) == NONE | {"done": 1}
    assert results.count() == 64
    (output,) = get_store().query({"metadata.campaign": "trial"}, properties=["output"])
    assert (output["output"]["n_reused"], output["output"]["n_computed"]) == (kept, 64 - kept)


def test_what_runs_when_it_is_canceled_or_taken_for_lost_does_no_harm(launchpad, tmp_path: Path) -> None:
    engine = FireworksEngine()
    ids = engine.submit(chunk_jobs(2), name="trial", metadata={})
    launches = dict(launchpad.checkout_fw(fireworks.FWorker(), str(tmp_path))[::-1] for _ in ids)
    assert engine.states(ids) == NONE | {"running": 2}
    numbers = {firework.spec["job_uuid"]: launch for launch, firework in launches.items()}

    assert engine.cancel(ids[:1]) == 1
    assert engine.lost(ids, silent_s=0, rerun=True) == ids[1:]
    assert engine.states(ids) == NONE | {"canceled": 1, "ready": 1}
    launchpad.complete_launch(numbers[ids[0]], state="COMPLETED")
    assert engine.states(ids) == NONE | {"canceled": 1, "ready": 1}
    work(launchpad)
    launchpad.complete_launch(numbers[ids[1]], state="FIZZLED")
    assert engine.states(ids) == NONE | {"canceled": 1, "done": 1}
    assert engine.cancel(ids) == 0


def test_many_jobs_are_cut_into_workflows_and_added_once(launchpad) -> None:
    engine = FireworksEngine()
    jobs = chunk_jobs(250)
    first = engine.submit(jobs[:3], name="trial", metadata={})
    for made in jobs[:3]:
        made.hosts = []
    ids = engine.submit(jobs, name="trial", metadata={"campaign": "trial"})
    assert ids[:3] == first
    assert len(set(ids)) == 250 == launchpad.fireworks.count_documents({})
    assert sorted(len(row["nodes"]) for row in launchpad.workflows.find()) == [3, 50, 197]
    assert {row["metadata"].get("campaign") for row in launchpad.workflows.find()} == {None, "trial"}
    assert {row["spec"]["job_uuid"] for row in launchpad.fireworks.find()} == {made.uuid for made in jobs} == set(ids)
    assert engine.cancel(ids[200:210]) == 10
    assert engine.states(ids) == NONE | {"ready": 240, "canceled": 10}
    assert engine.cancel(ids[205:215]) == 5


def test_a_summary_runs_after_all_even_failed_ones(launchpad) -> None:
    engine = FireworksEngine()
    jobs = [broken_job(), *chunk_jobs(2)]
    ids = engine.submit(jobs, name="trial", metadata={}, summary=(summary := summary_job()))
    assert engine.states(ids) == NONE | {"ready": 3, "waiting": 1}
    work(launchpad)
    assert engine.states(ids) == NONE | {"done": 3, "failed": 1}
    assert get_store().get_output(summary.uuid) == 2

    with pytest.raises(SettingsError, match="after 2 jobs does not fit into one workflow of at most 2"):
        FireworksEngine(width=2).submit(chunk_jobs(2), name="trial", metadata={}, summary=summary_job())


def test_jobs_say_what_they_need(launchpad) -> None:
    (made,) = chunk_jobs(1, worker="quantum")
    with pytest.raises(SettingsError, match=r"asks for the worker 'quantum'.*Known: cpu, gpu"):
        FireworksEngine().submit([made], name="trial", metadata={})
    made.metadata = {"worker": "cpu"}
    with pytest.raises(SettingsError, match="which campaign"):
        FireworksEngine().submit([made], name="trial", metadata={})
    assert launchpad.fireworks.count_documents({}) == 0


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FW_CONFIG_FILE", raising=False)
    monkeypatch.setattr("fireworks.fw_config.LAUNCHPAD_LOC", None)
    return tmp_path


def test_which_launchpad(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"There is no LaunchPad.*FW_CONFIG_FILE is not set"):
        find_launchpad()
    monkeypatch.setattr("fireworks.fw_config.LAUNCHPAD_LOC", str(empty / "of_fireworks.yaml"))
    (empty / "of_fireworks.yaml").touch()
    assert find_launchpad() == empty / "of_fireworks.yaml"
    (empty / "launchpad.yaml").touch()
    assert find_launchpad().resolve() == empty / "launchpad.yaml"
    (empty / "config.yaml").write_text(f"LAUNCHPAD_LOC: {empty / 'other.yaml'}\n", encoding="utf-8")
    monkeypatch.setenv("FW_CONFIG_FILE", str(empty / "config.yaml"))
    with pytest.raises(SettingsError, match=r"LAUNCHPAD_LOC of .*config.yaml names .*other.yaml, which is no file"):
        find_launchpad()
    (empty / "other.yaml").touch()
    assert find_launchpad() == empty / "other.yaml"
    assert find_launchpad("launchpad.yaml").name == "launchpad.yaml"
    with pytest.raises(SettingsError, match="which is no file"):
        find_launchpad("nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("host: [", SettingsError, r"is no valid YAML \(line"),
        ("- host", SettingsError, "holds list, not a mapping"),
        ("name: x", SettingsError, "names no host"),
        ("host: 127.0.0.1\nport: many", SettingsError, "describes no LaunchPad"),
        ("host: mongodb://me:hunter2@[/x\nuri_mode: true\nname: x", SettingsError, "describes no LaunchPad"),
        ("host: mongodb://me:hunter2@127.0.0.1:1/x\nuri_mode: true\nname: x", StoreError, "does not answer"),
        ("host: 127.0.0.1\nport: 1\nname: x\nusername: me\npassword: hunter2", StoreError, "does not answer"),
    ],
)
def test_a_launchpad_that_cannot_be_used(empty: Path, monkeypatch, text: str, kind: type, message: str) -> None:
    monkeypatch.setattr("fieldflows.campaigns.engines.launchpad.SERVER_TIMEOUT_S", 0.3)
    (empty / "launchpad.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(kind, match=message) as caught:
        FireworksEngine().states(["1"])
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.hint


def test_a_launchpad_that_was_never_set_up(launchpad, address: str) -> None:  # noqa: F811
    MongoClient(address).drop_database(launchpad.name)
    with pytest.raises(SettingsError, match=r"never set up.*lpad -l launchpad.yaml reset"):
        open_launchpad(find_launchpad())


def test_without_fireworks(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fireworks", None)
    with pytest.raises(SettingsError, match=r"needs FireWorks.*pip install fieldflows\[fireworks\]"):
        FireworksEngine().states(["1"])
