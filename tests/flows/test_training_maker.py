"""The training Maker: early errors, a run, and a job that is run again after it was killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ase.build import bulk
from ase.io import write
from jobflow import run_locally
from monty.json import MontyDecoder, MontyEncoder

from fieldflows import load_model
from fieldflows.errors import DataError, SettingsError
from fieldflows.flows.training import TrainMaker
from fieldflows.schemas.training import TrainingDocument
from fieldflows.store import get_store
from fieldflows.units import POLARIZABILITY_GAUSSIAN_TO_INTERNAL

TRAIN = """
dataset: {config: data.yaml}
model:
  name: halides
  architecture: {channels: 2, max_ell: 1, correlation: 1, cutoff: 3.4, radial_MLP: [4], num_bessel: 3}
run: {epochs: 2, batch_structures: 4, threads: 1, dtype: float64}
"""
DATA = """
name: halides
sources:
  - {type: extxyz, path: halides.extxyz,
     labels: {polarizability: gaussian, born_effective_charges: polarization_displacement}}
split: {train: 0.6, valid: 0.2, test: 0.2}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    toy = load_model("toy")
    frames = []
    for formula, a in (
        ("LiF", 4.0),
        ("NaF", 4.6),
        ("NaCl", 5.6),
        ("KF", 5.3),
        ("KCl", 6.3),
        ("LiCl", 5.1),
        ("KBr", 6.6),
    ):
        crystal = bulk(formula, "rocksalt", a=a)
        found = toy.evaluate(crystal, observables=("born_effective_charges", "polarizability"))
        crystal.info["REF_polarisability"] = found.polarizability.ravel() / POLARIZABILITY_GAUSSIAN_TO_INTERNAL
        crystal.arrays["REF_becs"] = found.born_effective_charges.reshape(-1, 9)
        frames.append(crystal)
    write(folder / "halides.extxyz", frames)
    (folder / "data.yaml").write_text(DATA)
    (folder / "train.yaml").write_text(TRAIN)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(job, store):
    responses = run_locally(job, store=store, log=False, ensure_success=True, raise_immediately=True)
    return responses[job.uuid][1].output


def test_a_job_trains_and_a_second_attempt_goes_on(folder: Path, tmp_path: Path) -> None:
    store = get_store(tmp_path / "s.db")
    maker = TrainMaker(work_directory=str(tmp_path / "runs"), figures=False)
    job = maker.make(folder / "train.yaml")
    document = run(job, store)
    assert isinstance(document, TrainingDocument)
    assert document.status == "epochs"
    assert Path(document.directory).parent == tmp_path / "runs"
    assert load_model(document.checkpoint).info.sha256 == document.checkpoint_sha256
    stored = store.query_one({"metadata.task": "training"})
    assert stored["output"]["checkpoint_sha256"] == document.checkpoint_sha256
    assert stored["metadata"]["configuration_digest"] == document.configuration_digest
    assert TrainingDocument.from_json_dict(stored["output"]).metrics == document.metrics

    again = maker.make(folder / "train.yaml")
    second = run(again, get_store(tmp_path / "other.db"))
    assert second.directory == document.directory
    assert second.steps == document.steps
    log = [json.loads(line)["event"] for line in (Path(document.directory) / "log.jsonl").read_text().splitlines()]
    assert log.count("start") == 1
    assert log.count("step") == document.steps
    assert second.metrics == document.metrics


def test_the_maker_and_the_job_survive_json(folder: Path) -> None:
    maker = TrainMaker(work_directory="somewhere", resources={"_fworker": "gpu"})
    again = json.loads(json.dumps(maker, cls=MontyEncoder), cls=MontyDecoder)
    assert again == maker
    job = maker.make(folder / "train.yaml")
    assert job.config.manager_config == {"_fworker": "gpu"}
    copy = json.loads(json.dumps(job, cls=MontyEncoder), cls=MontyDecoder)
    assert copy.uuid == job.uuid
    assert list(copy.function_args) == list(job.function_args)


def test_the_run_directory_depends_on_the_settings_alone(folder: Path, tmp_path: Path, monkeypatch) -> None:
    maker = TrainMaker(work_directory=str(tmp_path / "runs"))
    first = maker.make(folder / "train.yaml").function_args[1]
    monkeypatch.chdir(folder)
    assert maker.make("train.yaml").function_args[1] == first
    (tmp_path / "other.yaml").write_text(
        TRAIN.replace("data.yaml", str(folder / "data.yaml")).replace("epochs: 2", "epochs: 3")
    )
    assert maker.make(tmp_path / "other.yaml").function_args[1] != first


def test_mistakes_show_when_the_job_is_made(folder: Path, tmp_path: Path) -> None:
    maker = TrainMaker()
    with pytest.raises(SettingsError, match="does not exist"):
        maker.make({"dataset": {"path": str(tmp_path / "nowhere")}})
    with pytest.raises(SettingsError, match="Did you mean 'model'"):
        maker.make({"dataset": {"path": str(tmp_path)}, "modell": {}})
    with pytest.raises(SettingsError, match="Cannot read"):
        maker.make(tmp_path / "none.yaml")


def test_a_dataset_may_come_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    job = TrainMaker(work_directory=str(tmp_path), figures=False).make(
        folder / "train.yaml", dataset=tmp_path / "built"
    )
    assert job.function_kwargs["dataset"] == str(tmp_path / "built")
    with pytest.raises((DataError, SettingsError)):
        run(job, get_store(tmp_path / "s.db"))
