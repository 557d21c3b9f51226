"""Chunk jobs through jobflow-remote, over TCP: against the server in memory, and a real one where there is one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fieldflows.campaigns.engines.project import find_project
from fieldflows.campaigns.engines.remote import RemoteEngine
from fieldflows.errors import FieldflowsError, SettingsError, StoreError
from fieldflows.store import ResultsCollection, get_store, publish
from tests.support.engines import ROOT, SECRET, broken_job, chunk_jobs, everything_in, filled, summary_job
from tests.support.mongodb import address  # noqa: F401  (a fixture)

pytest.importorskip("jobflow_remote")

NONE = dict.fromkeys(("waiting", "ready", "running", "done", "failed", "canceled", "missing"), 0)
DELAYS = ("delay_checkout", "delay_check_run_status", "delay_advance_status", "delay_update_batch")


def project_of(place: str, folder: Path) -> dict[str, Any]:
    """Return the project of workflows/remote with three local workers; the one named gpu has a store of its own."""
    content = filled(ROOT / "workflows/remote/fieldflows.yaml", FIELDFLOWS_QUEUE=place, FIELDFLOWS_STORE=place)
    local = content["workers"]["local_worker"] | {"work_dir": str(folder / "work")}
    batch = content["workers"]["gpu_batch_worker"]["batch"] | {"max_wait": 5, "sleep_time": 1}
    batch |= {key: str(folder / key) for key in ("jobs_handle_dir", "work_dir")}
    content["workers"] = {
        "cpu_worker": local | {"pre_run": "unset FIELDFLOWS_STORE"},
        "gpu_worker": local | {"pre_run": f"export FIELDFLOWS_STORE={folder}/results.db"},
        "batch_worker": local | {"pre_run": None, "batch": batch, "max_jobs": 1},
    }
    content["runner"] |= dict.fromkeys(DELAYS, 1)
    stores = [content["jobstore"]["docs_store"], *content["jobstore"]["additional_stores"].values()]
    for store in (content["queue"]["store"], *stores):
        store["database"] = place.rsplit("/", 1)[1].partition("?")[0]
    return content | {"name": "trial"}


@pytest.fixture
def projects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of projects."""
    from jobflow_remote import SETTINGS

    folder = tmp_path / "projects"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SETTINGS, "projects_folder", str(folder))
    monkeypatch.setattr(SETTINGS, "project", None)
    monkeypatch.setenv("JFREMOTE_PROJECTS_FOLDER", str(folder))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def write(projects: Path, address: str, tmp_path: Path) -> Callable[..., None]:  # noqa: F811
    def written(**changes: Any) -> None:
        content = project_of(f"{address}?appName={SECRET}", tmp_path) | changes
        (projects / "trial.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")

    written()
    return written


@pytest.fixture
def engine(write) -> RemoteEngine:
    from jobflow_remote.jobs.jobcontroller import JobController

    controller = JobController.from_project_name("trial")
    assert controller.reset()
    controller.close()
    return RemoteEngine()


def runner() -> subprocess.Popen[bytes]:
    code = "from jobflow_remote.jobs.runner import Runner; Runner().run_all_jobs(max_seconds=100)"
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", code])


def kill_job(part: str) -> int:
    """Kill the processes whose command line holds a uuid or folder, at once, and return how many there were."""
    found = 0
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_text().split("\0")
        except OSError:
            continue
        if any(part in word for word in words) and "execution" in words:
            os.kill(int(entry.parent.name), signal.SIGKILL)
            found += 1
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the process of a job in /proc")
def test_chunks_run_fail_are_killed_and_run_again(engine, address: str, tmp_path: Path) -> None:  # noqa: F811
    long = chunk_jobs(1, 96, "gpu", 4.5)
    jobs = [*long, *chunk_jobs(1, 2), broken_job()]
    ids = engine.submit(jobs, name="trial", metadata={"campaign": "trial"})
    assert ids == [made.uuid for made in jobs]
    assert engine.states([*ids, "none"]) == NONE | {"ready": 3, "missing": 1}

    at_worker = ResultsCollection.of(get_store(tmp_path / "results.db"))
    process = runner()
    try:
        deadline = time.monotonic() + 60
        while not at_worker.count() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert kill_job(ids[0]) >= 1
        kept = at_worker.count()
        assert 0 < kept < 96
        assert process.wait(100) == 0
    finally:
        process.kill()
    assert engine.states(ids) == NONE | {"done": 1, "failed": 2}

    in_project = get_store(address)
    assert ResultsCollection.of(in_project).count() == 0
    assert publish(in_project) == 2
    assert engine.lost(ids) == [ids[0]]
    assert engine.lost(ids, rerun=True) == [ids[0]]
    assert engine.states(ids) == NONE | {"done": 1, "failed": 1, "ready": 1}
    assert runner().wait(100) == 0
    assert engine.states(ids) == NONE | {"done": 2, "failed": 1}
    assert at_worker.count() == 96
    assert publish(in_project) == 98 == ResultsCollection.of(in_project).count()
    output = in_project.get_output(ids[0])
    assert (output["n_reused"], output["n_computed"]) == (kept, 96 - kept)
    assert engine.rerun(ids) == 1
    assert engine.cancel(ids) == 1
    assert engine.states(ids) == NONE | {"done": 2, "canceled": 1}

    texts = dict.fromkeys(everything_in(address, tmp_path / "work"))
    assert {"jobs", "flows", "outputs"} <= {name for name, _ in texts}
    assert any(name.endswith("jfremote_in.json") for name, _ in texts)
    assert [name for name, text in texts if SECRET in text] == []


def test_jobs_are_cut_into_flows_and_added_once(engine) -> None:
    from jobflow_remote.jobs.jobcontroller import JobController

    jobs = [*chunk_jobs(20), *chunk_jobs(1, worker="gpu", first=4.4)]
    jobs[4].metadata["priority"] = 3
    first = engine.submit(jobs[:3], name="trial", metadata={})
    for made in jobs[:3]:
        made.hosts = []
    ids = RemoteEngine(width=10).submit(jobs, name="trial", metadata={"campaign": "trial"})
    assert ids[:3] == first
    assert ids == engine.submit(jobs, name="trial", metadata={})
    controller = JobController.from_project_name()
    assert sorted(len(row["jobs"]) for row in controller.flows.find()) == [1, 3, 7, 10]
    rows = {row["uuid"]: row for row in controller.jobs.find()}
    assert [rows[uuid]["worker"] for uuid in ids] == ["cpu_worker"] * 20 + ["gpu_worker"]
    assert [rows[uuid]["priority"] for uuid in ids[3:6]] == [0, 3, 0]
    controller.close()
    assert engine.cancel(ids[:4]) == 4
    assert engine.cancel(ids[:5]) == 1
    assert engine.states(ids) == NONE | {"ready": 16, "canceled": 5}


def test_a_summary_waits_for_all(engine) -> None:
    from jobflow_remote.jobs.jobcontroller import JobController

    ids = engine.submit(chunk_jobs(3), name="trial", metadata={}, summary=summary_job())
    assert engine.states(ids) == NONE | {"ready": 3, "waiting": 1}
    controller = JobController.from_project_name()
    row = controller.jobs.find_one({"uuid": ids[3]})
    controller.close()
    assert sorted(row["parents"]) == sorted(ids[:3])
    assert row["job"]["config"]["on_missing_references"] == "none"
    assert engine.cancel(ids) == 4
    assert engine.states(ids) == NONE | {"canceled": 4}


def refused(action: Callable[[], Any], kind: type[FieldflowsError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.hint


def test_what_a_project_must_have(engine, write, address: str) -> None:  # noqa: F811
    def submit(**settings: Any) -> Callable[[], Any]:
        return lambda: RemoteEngine(**settings).submit(chunk_jobs(1), name="trial", metadata={})

    refused(submit(workers={"cpu": "cpu_workr"}), SettingsError, "no worker 'cpu_workr'.*mean 'cpu_worker'.*gpu_worker")
    refused(submit(workers={"gpu": "gpu_worker"}), SettingsError, "asks for the worker 'cpu'")
    refused(submit(exec_config="modules"), SettingsError, "no exec_config 'modules'")
    write(workers={})
    refused(submit(), SettingsError, "no worker 'cpu_worker'. It has none")
    stores = project_of(address, Path("/"))["jobstore"]
    write(jobstore={"docs_store": stores["docs_store"]})
    refused(submit(workers={"cpu": "gpu_worker"}), SettingsError, "no additional store data")
    write(jobstore={"docs_store": {"type": "MemoryStore"}, "additional_stores": {"data": {"type": "MemoryStore"}}})
    refused(submit(), SettingsError, "outputs would be lost")
    stores["additional_stores"]["results"] = stores["docs_store"] | {"collection_name": "results"}
    write(jobstore=stores)
    refused(submit(), SettingsError, "additional store 'results'.*Take it out")


def test_which_project(write, projects: Path) -> None:
    assert find_project().name == find_project("trial").name == "trial"
    refused(lambda: find_project("tral"), SettingsError, "no project 'tral'.*Did you mean 'trial'")
    refused(lambda: RemoteEngine().states([]), SettingsError, "never set up.*jf -p trial admin reset")
    text = (projects / "trial.yaml").read_text(encoding="utf-8")
    (projects / "second.yaml").write_text(text.replace("name: trial", "name: second"), encoding="utf-8")
    refused(find_project, SettingsError, "should be defined.*second.*trial|should be defined.*trial.*second")
    (projects / "second.yaml").unlink()
    content = yaml.safe_load(text)
    content["queue"]["store"]["password"] = {SECRET: SECRET}
    content["runner"]["delay_checkout"] = f"soon {SECRET}"
    (projects / "trial.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    refused(lambda: find_project("trial"), SettingsError, "trial.yaml is wrong at runner.delay_checkout")
    template = (ROOT / "workflows/remote/fieldflows.yaml").read_text(encoding="utf-8")
    (projects / "trial.yaml").write_text(template, encoding="utf-8")
    refused(lambda: find_project("fieldflows"), SettingsError, r"absolute path; \$\{HOME\} is not filled in")
    (projects / "trial.yaml").write_text("name: [", encoding="utf-8")
    refused(lambda: find_project("trial"), SettingsError, "trial.yaml cannot be read")
    (projects / "trial.yaml").unlink()
    refused(find_project, SettingsError, "No project of jobflow-remote is selected")


def test_a_database_that_does_not_answer(projects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fieldflows.campaigns.engines.project.SERVER_TIMEOUT_S", 0.3)
    content = project_of("mongodb://me:hunter2@127.0.0.1:1/trial", tmp_path)
    (projects / "trial.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    refused(lambda: RemoteEngine().states(["x"]), StoreError, "database of the project 'trial' does not answer")


def test_without_jobflow_remote(projects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jobflow_remote", None)
    refused(lambda: RemoteEngine().states(["x"]), SettingsError, r"jobflow-remote.*pip install fieldflows\[remote\]")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the process of a job in /proc")
def test_what_is_killed_early_or_in_a_batch(engine) -> None:
    in_batch = RemoteEngine(workers={"gpu": "gpu_worker", "cpu": "batch_worker"})
    ids = in_batch.submit([*chunk_jobs(1, 400), *chunk_jobs(1, 1, "gpu", 4.5)], name="trial", metadata={})
    process = runner()
    try:
        deadline = time.monotonic() + 60
        while not kill_job(ids[1]) and time.monotonic() < deadline:
            time.sleep(0.005)
        while not engine.states(ids[:1])["running"] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert kill_job("jobs_handle_dir") >= 1  # the batch, before it can say that the job has ended
        while not kill_job(ids[0]) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert process.wait(100) == 0
    finally:
        process.kill()
    assert engine.states(ids) == NONE | {"failed": 2}
    assert sorted(engine.lost(ids, rerun=True)) == sorted(ids)
    assert engine.states(ids) == NONE | {"ready": 2}
    assert runner().wait(100) == 0
    assert engine.states(ids) == NONE | {"done": 2}
