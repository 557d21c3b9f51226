"""``fieldflows dev-db`` as a process: what it prints works, it ends cleanly, and it runs commands."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from jobflow import Flow, JobStore, job, run_locally
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from fieldflows.cli.dev_db import DATABASE, PORT, announcement, launchpad_yaml


@pytest.fixture
def server(launch) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and all that it says at the start."""
    process = launch("dev-db", "--port", 0)
    lines = []
    while "Ctrl-C" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
        lines.append(line)
    yield process, "".join(lines)
    if process.poll() is None:
        process.kill()
        process.wait()


def printed(text: str, title: str) -> dict:
    """Return the YAML below a heading of the announcement."""
    part = text.split(f"\n{title}", 1)[1].split("\n", 1)[1]
    return yaml.safe_load(part.split("\n\n")[0])


def address(text: str) -> str:
    return text.split("Address: ")[1].split()[0]


@job(data=["large"])
def compute(n: int) -> dict:
    return {"n": n, "large": list(range(n))}


def test_jobflow_takes_what_is_printed(server) -> None:
    _, text = server
    store = JobStore.from_dict_spec(printed(text, "jobflow,")["JOB_STORE"])
    flow = Flow([compute(1000)])
    run_locally(flow, store=store, log=False, ensure_success=True)
    store.connect()
    raw = store.query_one({"uuid": flow.jobs[0].uuid})["output"]
    assert (raw["n"], raw["large"]["store"]) == (1000, "data")
    assert store.get_output(flow.jobs[0].uuid, load=True)["large"] == list(range(1000))
    with MongoClient(address(text)) as client:
        database = client.get_default_database()
        assert database.name == DATABASE
        assert database["outputs"].count_documents({}) == database["data.files"].count_documents({}) == 1


def test_fireworks_takes_what_is_printed(server, tmp_path: Path) -> None:
    fireworks = pytest.importorskip("fireworks")

    _, text = server
    (tmp_path / "launchpad.yaml").write_text(yaml.safe_dump(printed(text, "FireWorks,")))
    launchpad = fireworks.LaunchPad.from_file(str(tmp_path / "launchpad.yaml"))
    launchpad.reset("", require_password=False, max_reset_wo_password=10)
    launchpad.add_wf(fireworks.Firework(fireworks.ScriptTask.from_str("true")))
    assert launchpad.get_fw_ids() == [1]
    with MongoClient(address(text)) as client:
        assert client.get_default_database()["fireworks"].find_one({"fw_id": 1})["state"] == "READY"


def test_jobflow_remote_takes_what_is_printed(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jobflow_remote")
    from jobflow_remote import ConfigManager, submit_flow
    from jobflow_remote.config import settings
    from jobflow_remote.jobs.jobcontroller import JobController
    from jobflow_remote.jobs.runner import Runner

    worker = {
        "type": "local",
        "scheduler_type": "shell",
        "work_dir": str(tmp_path / "work"),
        "pre_run": f"export PATH={Path(sys.executable).parent}:$PATH",
    }
    project = {"name": "dev", "workers": {"here": worker}, **printed(server[1], "jobflow-remote,")}
    delays = dict.fromkeys(("delay_checkout", "delay_check_run_status", "delay_advance_status"), 1)
    project |= {"base_dir": str(tmp_path / "base"), "log_level": "error", "runner": delays}
    (tmp_path / "work").mkdir()
    (tmp_path / "projects").mkdir()
    (tmp_path / "projects" / "dev.yaml").write_text(yaml.safe_dump(project))
    monkeypatch.setenv("JFREMOTE_PROJECTS_FOLDER", str(tmp_path / "projects"))
    monkeypatch.setattr("jobflow_remote.SETTINGS", settings.JobflowRemoteSettings())
    monkeypatch.setattr("jobflow_remote.config.manager.SETTINGS", settings.JobflowRemoteSettings(), raising=False)
    assert ConfigManager().get_project("dev").name == "dev"
    controller = JobController.from_project_name("dev")
    assert controller.reset()
    from jobflow_remote.testing import add

    first = add(1, 2)
    second = add(first.output, 3)
    submit_flow(Flow([first, second]), worker="here", project="dev")
    again = add(1, 2)
    again.set_uuid(first.uuid)
    with pytest.raises(PyMongoError, match="E11000"):
        submit_flow(again, worker="here", project="dev")
    Runner(project_name="dev").run_all_jobs(max_seconds=60)
    assert {info.state.name for info in controller.get_jobs_info()} == {"COMPLETED"}
    store = controller.jobstore
    store.connect()
    assert store.get_output(second.uuid) == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_with_clients_connected(server, number: signal.Signals) -> None:
    process, text = server
    assert "All data are lost when it stops." in text
    assert "It has no password" in text
    client = MongoClient(address(text), serverSelectionTimeoutMS=300)
    client.admin.command("ping")
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, "")
    assert "has stopped; its data are lost" in out
    client.close()


def test_a_port_that_is_taken_and_hosts_that_are_refused(cli) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        answer = cli("dev-db", "--port", port)
    assert (answer.code, answer.out) == (2, "")
    assert f"port {port} of 127.0.0.1" in answer.err
    assert "choose another port" in answer.err
    for host in ("0.0.0.0", "example.org"):
        answer = cli("dev-db", "--host", host, "--port", 0)
        assert (answer.code, answer.out) == (2, "")
        assert f"does not listen on '{host}'" in answer.err


def test_the_port_is_not_that_of_a_real_server() -> None:
    assert MongoClient.PORT != PORT
    assert f"mongodb://127.0.0.1:{PORT}/{DATABASE}" in announcement(f"mongodb://127.0.0.1:{PORT}")
    assert yaml.safe_load(launchpad_yaml("mongodb://127.0.0.1:1"))["uri_mode"] is True


WRITES = """
import os, sys
from pymongo import MongoClient
from pymongo.errors import PyMongoError
client = MongoClient(os.environ["FIELDFLOWS_STORE"])
assert os.environ["FIELDFLOWS_STORE"].startswith(os.environ["FIELDFLOWS_DEV_DB"] + "/")
client.get_default_database().c.insert_one({"a": 1})
print("stored", client.get_default_database().c.count_documents({}))
sys.exit(7)
"""


def test_run_gives_the_status_of_the_command(launch, tmp_path: Path) -> None:
    (tmp_path / "writes.py").write_text(WRITES)
    process = launch("dev-db", "--port", 0, "--run", f"{sys.executable} writes.py")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (7, "stored 1\n"), err
    assert "All data are lost when it stops." in err
    assert "its data are lost" in err.splitlines()[-1]


def test_run_ends_the_command_with_itself(launch, tmp_path: Path) -> None:
    process = launch("dev-db", "--port", 0, "--run", "bash -c 'touch there; exec sleep 60'")
    wait_for(lambda: (tmp_path / "there").exists())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=15)
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("command", "reason"),
    [("no-such-command-at-all x", "cannot be run"), ("echo 'x", "cannot be read"), (" ", "names no command")],
)
def test_run_with_a_command_that_is_none(cli, command: str, reason: str) -> None:
    answer = cli("dev-db", "--port", 0, "--run", command)
    assert (answer.code, answer.out) == (2, "")
    assert reason in answer.err


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_results_of_a_screening_can_be_queried_over_it(server, cli, crystals, monkeypatch) -> None:
    monkeypatch.setenv("FIELDFLOWS_STORE", address(server[1]))
    assert cli("screen", crystals, "--model", "toy").code == 0
    answer = cli("query", "'Na' in elements", "--csv", "--columns", "formula,n")
    formula, n = answer.out.splitlines()[1].split(",")
    assert formula == "NaCl"
    assert np.isfinite(float(n))
