"""The templates in workflows/ are read by the programs that they are for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from string import Template

import pytest
import yaml

from fieldflows.campaigns.engines.fireworks import FireworksEngine
from fieldflows.campaigns.engines.project import check_project
from tests.support.engines import PLACES, ROOT, chunk_jobs, filled
from tests.support.mongodb import address  # noqa: F401  (a fixture)

FIREWORKS = ROOT / "workflows" / "fireworks"
REMOTE = ROOT / "workflows" / "remote" / "fieldflows.yaml"
CHUNK_S = 300


@pytest.mark.parametrize("path", [*FIREWORKS.iterdir(), REMOTE], ids=lambda path: path.name)
def test_no_credentials(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"\w+://\S*@", text) == []
    assert re.findall(r"^\s*(password|passphrase|username)\s*:", text, re.MULTILINE) == []
    assert set(re.findall(r"\$\{(\w+)\}", text)) <= set(PLACES)


def test_configuration_of_fireworks(tmp_path: Path) -> None:
    pytest.importorskip("fireworks")
    text = Template((FIREWORKS / "FW_config.yaml").read_text(encoding="utf-8")).substitute(PLACES)
    (tmp_path / "FW_config.yaml").write_text(text, encoding="utf-8")
    code = (
        "from fireworks import fw_config as c; import inspect, fireworks; "
        "f = inspect.signature(fireworks.LaunchPad.detect_lostruns).parameters['expiration_secs'].default; "
        "print(c.PING_TIME_SECS, c.RUN_EXPIRATION_SECS, f, c.LAUNCHPAD_LOC)"
    )
    home = {"FW_CONFIG_FILE": str(tmp_path / "FW_config.yaml"), "HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **home},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["300", "1500", "1500", "/users/me/fireworks/launchpad.yaml"]


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_workers_of_fireworks(kind: str) -> None:
    fireworks = pytest.importorskip("fireworks")
    worker = fireworks.FWorker.from_file(str(FIREWORKS / f"fworker_{kind}.yaml"))
    assert worker.query["spec._category"] == FireworksEngine().workers[kind] == kind


def test_the_slurm_job_of_fireworks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fireworks")
    from fireworks.utilities.fw_serializers import SAVED_FW_MODULES, load_object_from_file

    # else FireWorks imports all its modules, its own tests included, whose markers pytest does not know
    adapters = "fireworks.user_objects.queue_adapters.common_adapter"
    monkeypatch.setitem(SAVED_FW_MODULES, "CommonAdapter", adapters)
    text = Template((FIREWORKS / "qadapter_gpu.yaml").read_text(encoding="utf-8")).substitute(PLACES)
    (tmp_path / "qadapter.yaml").write_text(text, encoding="utf-8")
    script = load_object_from_file(str(tmp_path / "qadapter.yaml")).get_script_str("/launch")
    for line in ("#SBATCH --gres=gpu:1", "#SBATCH --time=04:00:00", ". /users/me/fireworks/worker.env"):
        assert line in script.splitlines()
    assert not re.search(r"\$\$|None|null", script)
    (words,) = [line.split() for line in script.splitlines() if line.startswith("rlaunch")]
    timeout = int(words[words.index("--timeout") + 1])
    assert 0 < timeout <= 4 * 3600 - 5 * CHUNK_S
    help_text = subprocess.run(
        [Path(sys.executable).with_name("rlaunch"), "rapidfire", "-h"], capture_output=True, text=True, check=True
    ).stdout
    assert {word for word in words[words.index("rapidfire") :] if word.startswith("--")} <= set(
        re.findall(r"--\w+", help_text)
    )


def test_the_script_for_lost_runs(address: str, tmp_path: Path) -> None:  # noqa: F811
    fireworks = pytest.importorskip("fireworks")
    settings = {"host": address, "uri_mode": True, "name": address.rsplit("/", 1)[1]}
    (tmp_path / "launchpad.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    launchpad = fireworks.LaunchPad(**settings, strm_lvl="CRITICAL")
    launchpad.reset("", require_password=False, max_reset_wo_password=10)
    engine = FireworksEngine(tmp_path / "launchpad.yaml")
    ids = engine.submit(chunk_jobs(2), name="trial", metadata={})
    launchpad.checkout_fw(fireworks.FWorker(), str(tmp_path))
    assert engine.states(ids)["running"] == 1

    (tmp_path / "FW_config.yaml").write_text("RUN_EXPIRATION_SECS: 1500\n", encoding="utf-8")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FW_CONFIG_FILE": str(tmp_path / "FW_config.yaml"),
    }
    for words, ready in (([], 1), (["0"], 2)):
        done = subprocess.run(
            [FIREWORKS / "lost_runs.sh", *words], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert f"Lost FireWorks: {ready - 1}" in done.stdout
        assert engine.states(ids)["ready"] == ready
    launchpad.connection.close()


def test_the_project_of_jobflow_remote() -> None:
    pytest.importorskip("jobflow_remote")
    from jobflow_remote.config.base import Project

    project = Project.model_validate(filled(REMOTE))
    assert set(project.workers) == {"local_worker", "cpu_worker", "gpu_worker", "gpu_batch_worker"}
    check_project(project, set(project.workers), None, chunk_jobs(1, 2))
    assert all(worker.max_jobs for worker in project.workers.values())
    runner = project.runner
    assert runner.delay_check_run_status + runner.delay_advance_status <= 0.05 * CHUNK_S
    assert sum(runner.get_delta_retry(n) for n in range(1, runner.max_step_attempts)) > 8 * 3600
    for name, worker in project.workers.items():
        script = worker.get_scheduler_io().get_submission_script("run", worker.resources or {})
        if name == "local_worker":
            continue
        assert f"#SBATCH --partition={name[:3]}" in script
        assert ("#SBATCH --gres=gpu:1" in script) == name.startswith("gpu")
        assert not re.search(r"\$\$", script)
    batch = project.workers["gpu_batch_worker"].batch
    assert batch.max_time <= 4 * 3600 - 5 * CHUNK_S
