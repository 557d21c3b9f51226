"""From labels to a registered model: on one machine, on workers that share a store only, and through FireWorks."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jobflow import Flow, JobStore, run_locally
from maggma.stores import MemoryStore
from monty.json import MontyDecoder, MontyEncoder

from fieldflows import artifacts, load_model
from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import build_dataset
from fieldflows.errors import ArtifactError, DataError, SettingsError, TrainingError
from fieldflows.flows.dataset import DatasetMaker
from fieldflows.flows.evaluation import EvaluateMaker
from fieldflows.flows.training import TrainingFlowMaker, TrainMaker
from fieldflows.models.find import registry
from fieldflows.schemas.dataset import DatasetDocument
from fieldflows.schemas.model import ModelDocument
from fieldflows.schemas.training import TrainingDocument
from fieldflows.store import get_store
from fieldflows.store.artifacts import StoreArtifacts
from fieldflows.testing.mongodb import memory_mongodb
from tests.flows.test_training_maker import DATA, TRAIN, folder  # noqa: F401  (a fixture)


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return what puts the test onto another machine: other working directory, artifacts and registry."""

    def become(name: str) -> Path:
        place = tmp_path / name
        (place / "work").mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(place / "work")
        monkeypatch.setenv("FIELDFLOWS_ARTIFACTS", str(place / "artifacts"))
        monkeypatch.setenv("FIELDFLOWS_MODELS", str(place / "models"))
        return place

    become("submitter")
    return become


@pytest.fixture
def sources(folder: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A folder of configurations that may be deleted."""
    return Path(shutil.copytree(folder, tmp_path / "sources"))


@pytest.fixture(params=["sqlite", "gridfs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobStore]:
    if request.param == "sqlite":
        yield get_store(tmp_path / "shared.db")
    else:
        with memory_mongodb() as server:
            yield get_store(f"{server}/shared")


def make_flow(config: Any, runs: Path, **options: Any) -> Flow:
    maker = TrainingFlowMaker(
        training=TrainMaker(work_directory=str(runs), figures=False, resources={"_fworker": "gpu"}),
        evaluation=EvaluateMaker(splits=("train",), figures=False, identities=0, forest="off"),
        **options,
    )
    return maker.make(config)


def outputs(flow: Flow, store: JobStore) -> dict[str, dict[str, Any]]:
    """Return the stored output of each job by its task."""
    return {job.metadata["task"]: store.query_one({"uuid": job.uuid})["output"] for job in flow.jobs}


def check_chain(found: dict[str, dict[str, Any]]) -> tuple[DatasetDocument, TrainingDocument, ModelDocument]:
    """Check that every document names the one before, and return those of this chain that can be read back."""
    dataset = DatasetDocument.from_json_dict(found["dataset"])
    training = TrainingDocument.from_json_dict(found["training"])
    model = ModelDocument.from_json_dict(found["registration"])
    assert training.dataset_digest == dataset.digest == model.dataset_digest == model.model.dataset_digest
    assert training.datasets["Default"].sha256 == dataset.archive.sha256
    assert training.checkpoint_file.sha256 == training.checkpoint_sha256 == model.model.sha256
    assert found["evaluation"]["model"]["sha256"] == training.checkpoint_sha256
    assert found["evaluation"]["dataset_digest"] == dataset.digest
    assert model.configuration_digest == training.configuration_digest
    row = model.evaluations["Default"]["train"]["born_charge_diagonal"]
    assert row["unit"] == "e"
    assert row["mae"] == pytest.approx(training.metrics["train"]["born_charge_diagonal"].mae, rel=1e-6)
    return dataset, training, model


def test_on_one_machine(sources: Path, tmp_path: Path) -> None:
    store = get_store(tmp_path / "s.db")
    flow = make_flow(sources / "train.yaml", tmp_path / "runs")
    assert [job.name for job in flow.jobs] == [
        "dataset halides",
        "train halides",
        "evaluate halides",
        "register halides",
    ]
    assert [job.config.manager_config for job in flow.jobs] == [{}, {"_fworker": "gpu"}, {}, {}]
    responses = run_locally(flow, store=store, log=False, ensure_success=True, raise_immediately=True)
    dataset, training, model = check_chain(outputs(flow, store))
    assert dataset.n_frames == 7
    assert dataset.counts["train"]["frames"] == training.frames["train"]
    assert training.wall_time > 0
    assert training.started_at < training.created_at
    assert training.hardware.device == "cpu"
    assert Path(training.directory).name.endswith(dataset.digest[:8])
    assert model.model.title == "halides@1"
    for name in ("halides", "halides@1", f"sha256:{training.checkpoint_sha256}", f"sha256:{model.model.sha256[:9]}"):
        assert load_model(name).info.sha256 == training.checkpoint_sha256
    assert isinstance(responses[flow.jobs[1].uuid][1].output, TrainingDocument)
    again = json.loads(json.dumps(flow, cls=MontyEncoder), cls=MontyDecoder)
    assert [job.uuid for job in again.jobs] == [job.uuid for job in flow.jobs]


def test_on_workers_that_share_nothing_but_the_store(sources: Path, tmp_path: Path, store: JobStore, machine) -> None:
    flow = make_flow(sources / "train.yaml", tmp_path / "gpu" / "runs")
    for number, (job, _) in enumerate(flow.iterflow()):
        machine(f"worker {number}")
        job.run(store)
        if number == 0:
            shutil.rmtree(sources)
        if number > 0:
            shutil.rmtree(tmp_path / f"worker {number - 1}")
        if job.metadata["task"] == "training":
            shutil.rmtree(tmp_path / "gpu" / "runs")  # the checkpoint is in the store alone
    _, training, model = check_chain(outputs(flow, store))
    assert load_model("halides").info.sha256 == training.checkpoint_sha256
    machine("laptop")
    kept = StoreArtifacts.of(store)
    assert kept.find("model/halides") == kept.find("model/halides@1") == model.model.sha256
    with artifacts.reachable(kept):
        assert load_model(f"sha256:{model.model.sha256}").info.sha256 == model.model.sha256
        assert load_model("halides").info.name == "halides"


class WriteOnly(MemoryStore):
    """The file of a worker without database: written, and copied into the real store when the job is done."""

    def query_one(self, *words, **options):
        raise NotImplementedError


def test_on_workers_without_database(sources: Path, tmp_path: Path, machine) -> None:
    """As jobflow-remote does it: inputs are resolved before, what was written is stored after the job."""
    real = get_store(tmp_path / "real.db")
    flow = make_flow(sources / "train.yaml", tmp_path / "gpu" / "runs")
    for number, (job, _) in enumerate(flow.iterflow()):
        machine(f"worker {number}")
        job = job.resolve_args(store=real, inplace=False)
        sent = json.loads(json.dumps(job, cls=MontyEncoder), cls=MontyDecoder)
        worker = JobStore(MemoryStore(), additional_stores={"data": WriteOnly(key="blob_uuid")})
        worker.connect()
        sent.run(worker)
        for name, part in worker.additional_stores.items():
            for blob in part.query():
                blob.pop("_id", None)
                real.additional_stores[name].update(blob)
        (document,) = worker.docs_store.query()
        real.docs_store.update({key: value for key, value in document.items() if key != "_id"}, key=["uuid", "index"])
        shutil.rmtree(tmp_path / f"worker {number}" / "artifacts", ignore_errors=True)
        shutil.rmtree(tmp_path / "gpu" / "runs", ignore_errors=True)
    check_chain(outputs(flow, real))
    assert load_model("halides").info.trained_labels == ("born_effective_charges", "polarizability")


def test_a_second_attempt_on_another_machine_goes_on(sources: Path, tmp_path: Path, machine) -> None:
    store = get_store(tmp_path / "s.db")
    dataset = DatasetMaker().make(sources / "data.yaml")
    dataset.run(store)
    settings = {**_train(sources), "run": {**_train(sources)["run"], "checkpoint_steps": 1}}
    job = TrainMaker(work_directory=str(tmp_path / "runs"), figures=False).make(settings, dataset.output)
    first = TrainingDocument.from_json_dict(_run(job, store))
    shutil.rmtree(sources)
    machine("another")
    second = TrainingDocument.from_json_dict(_run(job, store))
    assert second.directory == first.directory
    assert second.checkpoint_sha256 == first.checkpoint_sha256
    events = [json.loads(line)["event"] for line in (Path(first.directory) / "log.jsonl").read_text().splitlines()]
    assert events.count("start") == 1
    assert events.count("step") == first.steps


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    sources: Path, tmp_path: Path, machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fieldflows.training import loop

    store = get_store(tmp_path / "s.db")
    dataset = DatasetMaker().make(sources / "data.yaml")
    dataset.run(store)
    shutil.rmtree(sources)
    settings = {**_train(sources), "run": {**_train(sources)["run"], "checkpoint_steps": 1, "epochs": 3}}
    jobs = [
        TrainMaker(work_directory=str(tmp_path / name), figures=False).make(settings, dataset.output)
        for name in ("whole", "stopped")
    ]
    whole = TrainingDocument.from_json_dict(_run(jobs[0], store))
    saved = 0

    def save(*words: Any) -> None:
        nonlocal saved
        saved += 1
        original(*words)
        if saved == 2:
            os.kill(os.getpid(), signal.SIGTERM)  # as a queue does before the end of the wall time

    original = loop.save_state
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_state", save)
        with pytest.raises(TrainingError, match="was stopped at step"):
            jobs[1].run(store)
    assert store.query_one({"uuid": jobs[1].uuid}) is None
    machine("another")
    ended = TrainingDocument.from_json_dict(_run(jobs[1], store))
    assert ended.steps == whole.steps
    assert ended.metrics == whole.metrics
    assert ended.checkpoint_sha256 == whole.checkpoint_sha256


def test_fireworks_runs_the_chain(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fireworks = pytest.importorskip("fireworks")
    from fireworks.core.rocket_launcher import rapidfire
    from jobflow.managers.fireworks import flow_to_workflow

    with memory_mongodb() as server:
        address = f"{server}/chain"
        launchpad = fireworks.LaunchPad(host=address, name="chain", uri_mode=True, strm_lvl="CRITICAL")
        launchpad.reset("", require_password=False, max_reset_wo_password=10)
        flow = make_flow(sources / "train.yaml", tmp_path / "runs")
        launchpad.add_wf(flow_to_workflow(flow, store=get_store(address)))
        assert [fw.spec.get("_fworker") for fw in _fireworks(launchpad)].count("gpu") == 1
        # the light worker cannot do the training; the other one does that alone
        light = fireworks.FWorker(name="light", query={"spec._fworker": {"$exists": False}})
        rapidfire(launchpad, light, strm_lvl="CRITICAL")
        assert sorted(fw.state for fw in _fireworks(launchpad)) == ["COMPLETED", "READY", "WAITING", "WAITING"]
        shutil.rmtree(sources)
        rapidfire(launchpad, fireworks.FWorker(name="gpu"), nlaunches=1, strm_lvl="CRITICAL")
        rapidfire(launchpad, light, strm_lvl="CRITICAL")
        assert {fw.state for fw in _fireworks(launchpad)} == {"COMPLETED"}
        check_chain(outputs(flow, get_store(address)))


def test_heads_have_datasets_and_evaluations_of_their_own(sources: Path, tmp_path: Path) -> None:
    (sources / "other.yaml").write_text(DATA.replace("name: halides", "name: other").replace("0.6", "0.5"))
    settings = _train(sources)
    del settings["dataset"]
    settings["heads"] = {
        "charges": {"dataset": {"config": str(sources / "data.yaml")}, "labels": {"born_effective_charges": 1.0}},
        "both": {"dataset": {"config": str(sources / "data.yaml")}},
    }
    store = get_store(tmp_path / "s.db")
    flow = make_flow(settings, tmp_path / "runs")
    assert [job.metadata["task"] for job in flow.jobs] == ["dataset", "training", *["evaluation"] * 2, "registration"]
    run_locally(flow, store=store, log=False, ensure_success=True, raise_immediately=True)
    found = outputs(flow, store)
    assert set(found["training"]["datasets"]) == {"charges", "both"}
    model = ModelDocument.from_json_dict(found["registration"])
    assert model.model.heads == ("charges", "both")
    assert set(model.evaluations) == {"charges", "both"}
    maes = [model.evaluations[head]["train"]["born_charge_diagonal"]["mae"] for head in ("charges", "both")]
    assert maes[0] != maes[1]
    assert load_model("halides", head="both").info.head == "both"


def test_stores_without_a_place_for_files(sources: Path, tmp_path: Path) -> None:
    store = JobStore(MemoryStore())
    flow = make_flow(sources / "train.yaml", tmp_path / "runs", register=None)
    run_locally(flow, store=store, log=False, ensure_success=True, raise_immediately=True)
    training = TrainingDocument.from_json_dict(outputs(flow, store)["training"])
    assert training.checkpoint_file.chunks == ()
    assert load_model(f"{training.checkpoint_file.uri}#sha256={training.checkpoint_sha256}").info.name == "halides"


def test_a_digest_that_nobody_knows_and_one_that_is_damaged(sources: Path, tmp_path: Path, machine) -> None:
    store = get_store(tmp_path / "s.db")
    dataset = DatasetMaker().make(sources / "data.yaml")
    document = DatasetDocument.from_json_dict(_run(dataset, store))
    settings = {**_train(sources), "dataset": {"digest": document.digest}}
    maker = TrainMaker(work_directory=str(tmp_path / "runs"), figures=False)
    machine("another")
    with pytest.raises(DataError, match="No place knows a dataset"):
        maker.make({**settings, "dataset": {"digest": "0" * 64}}).run(store)
    kept = StoreArtifacts.of(store)
    (blob,) = kept.blobs(document.archive.sha256, document.archive.size)
    whole = kept.store.query_one({"blob_uuid": blob["blob_uuid"]})
    kept.store.update([{**whole, "data": "AAAA"}], key="blob_uuid")
    with pytest.raises(ArtifactError, match="it is damaged"):
        maker.make(settings).run(store)
    kept.store.update([whole], key="blob_uuid")
    trained = TrainingDocument.from_json_dict(_run(maker.make(settings), store))
    assert (
        trained.dataset_digest
        == document.digest
        == build_dataset(DatasetConfig.from_yaml(sources / "data.yaml")).digest
    )


def test_mistakes_show_when_the_flow_is_made(sources: Path) -> None:
    settings = _train(sources)
    with pytest.raises(SettingsError, match="is taken: a model of that name comes with the package"):
        TrainingFlowMaker(register="dielectric").make(settings)
    with pytest.raises(SettingsError, match="cannot be the name"):
        TrainMaker(register="no/name").make(settings)
    with pytest.raises(SettingsError, match="no dataset of a head 'x'"):
        TrainMaker().make(settings, heads={"x": sources})
    with pytest.raises(SettingsError, match="does not exist"):
        DatasetMaker().make(sources / "none.yaml")
    with pytest.raises(DataError, match="holds no dataset"):
        DatasetMaker().make(sources)


def test_registering_without_the_flow(sources: Path, tmp_path: Path) -> None:
    job = TrainMaker(work_directory=str(tmp_path / "runs"), figures=False, register="mine").make(_train(sources))
    document = TrainingDocument.from_json_dict(_run(job, get_store(tmp_path / "s.db")))
    assert document.registered == "mine@1"
    assert registry().find("mine").sha256 == document.checkpoint_sha256


def _train(sources: Path) -> dict[str, Any]:
    import yaml

    return {**yaml.safe_load(TRAIN), "dataset": {"config": str(sources / "data.yaml")}}


def _run(job: Any, store: JobStore) -> dict[str, Any]:
    job.run(store)
    return store.query_one({"uuid": job.uuid})["output"]


def _fireworks(launchpad: Any) -> list[Any]:
    return [launchpad.get_fw_by_id(number) for number in launchpad.get_fw_ids()]
