"""Training jobs on several processes: the result of one, errors with their reason, signals passed on."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from fieldflows.errors import SettingsError, TrainingError
from fieldflows.flows.training import TrainMaker
from fieldflows.jobs import processes
from fieldflows.schemas.training import TrainingDocument
from fieldflows.store import get_store
from fieldflows.training.config import TrainingConfig
from tests.flows.test_training_maker import folder  # noqa: F401  (a fixture)


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    store = get_store(tmp_path / "s.db")
    documents = []
    for count in (1, 2):
        maker = TrainMaker(work_directory=str(tmp_path / f"runs{count}"), figures=False, processes=count)
        job = maker.make(folder / "train.yaml")
        job.run(store)
        documents.append(TrainingDocument.from_json_dict(store.query_one({"uuid": job.uuid})["output"]))
    one, two = documents
    assert (two.steps, two.epochs, two.status) == (one.steps, one.epochs, one.status)
    for key, errors in one.metrics["train"].items():
        assert two.metrics["train"][key].mae == pytest.approx(errors.mae, rel=1e-6, abs=1e-10)


def stand_in(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let a small program stand for torchrun."""
    start = processes.subprocess.Popen

    def popen(words, **options):
        assert words[1:3] == ["-m", "torch.distributed.run"]
        return start([sys.executable, "-c", code], **options)

    monkeypatch.setattr(processes.subprocess, "Popen", popen)


def test_a_failing_process_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "import sys; print('Error: No frame has a label.'); print('ChildFailedError'); sys.exit(1)")
    with pytest.raises(TrainingError, match=r"One of 2 processes .* failed: No frame has a label\."):
        processes.train_in_processes(TrainingConfig(dataset={"path": "x"}), tmp_path / "run", 2)
    assert TrainingConfig.from_yaml(tmp_path / "run" / "job.yaml").dataset.path == "x"


def test_a_request_to_stop_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import signal, sys, time\n"
        "def stop(*_):\n    print('state saved', flush=True)\n    sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, stop)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    stand_in(monkeypatch, code)
    log = tmp_path / "run" / "processes.log"

    def terminate() -> None:
        while not (log.is_file() and "ready" in log.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    with pytest.raises(TrainingError, match=r"was stopped.*same job again"):
        processes.train_in_processes(TrainingConfig(dataset={"path": "x"}), tmp_path / "run", 2)
    thread.join()
    assert "state saved" in log.read_text()


def test_a_wrong_number_of_processes(folder: Path) -> None:  # noqa: F811
    with pytest.raises(SettingsError, match="processes must be 1 or more"):
        TrainMaker(processes=0).make(folder / "train.yaml")
