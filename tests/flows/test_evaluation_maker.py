"""The evaluation Maker: early errors, chained after a training, and what the document promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jobflow import Flow, run_locally
from monty.json import MontyDecoder, MontyEncoder

from fieldflows.errors import CheckpointError, SettingsError
from fieldflows.flows.evaluation import EvaluateMaker
from fieldflows.flows.training import TrainMaker
from fieldflows.jobs.evaluation import model_opener
from fieldflows.schemas.evaluation import EvaluationDocument
from fieldflows.store import get_store
from tests.flows.test_training_maker import folder  # noqa: F401  (a fixture)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIELDFLOWS_DATA_HOME", str(tmp_path / "data"))


def test_an_evaluation_follows_a_training(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    training = TrainMaker(work_directory=str(tmp_path / "runs"), figures=False).make(folder / "train.yaml")
    maker = EvaluateMaker(splits=("all",), figures=False, forest="off", identities=1, resources={"_fworker": "cpu"})
    evaluation = maker.make(training.output, folder / "data.yaml", tmp_path / "report")
    by_path = EvaluateMaker(splits=("test", "train"), figures=False, forest="off", identities=0).make(
        training.output.checkpoint, folder / "data.yaml"
    )
    assert evaluation.config.manager_config == {"_fworker": "cpu"}
    store = get_store(tmp_path / "s.db")
    flow = Flow([training, evaluation, by_path])
    responses = run_locally(flow, store=store, log=False, ensure_success=True, raise_immediately=True)
    trained, found, again = (responses[made.uuid][1].output for made in (training, evaluation, by_path))
    assert found.model.sha256 == trained.checkpoint_sha256
    assert found.dataset_digest == trained.dataset_digest
    for split, subset in found.subsets.items():
        assert subset.seen_materials == (0 if split == "test" else subset.materials)
        for name, values in trained.metrics[split].items():
            assert subset.quantities[name].model.mae == pytest.approx(values.mae, rel=1e-5), (split, name)
    assert again.subsets["train"].quantities == found.subsets["train"].quantities
    assert found.obeys_identities
    assert {check.frames for check in found.identities} == {1}
    assert found.directory == str(tmp_path / "report")
    stored = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert EvaluationDocument.from_json_dict(stored) == found
    assert (tmp_path / "evaluation" / "metrics.json").is_file()  # where no directory is given
    store.connect()
    kept = EvaluationDocument.from_json_dict(store.query_one({"uuid": evaluation.uuid})["output"])
    assert kept == found


def test_mistakes_are_found_when_the_job_is_made(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(CheckpointError, match="No model"):
        EvaluateMaker().make("toyy", folder / "data.yaml")
    with pytest.raises(SettingsError, match="does not exist"):
        EvaluateMaker().make("toy", tmp_path / "nothing")
    with pytest.raises(SettingsError, match="Did you mean 'test'"):
        EvaluateMaker(splits=("tset",)).make("toy", folder / "data.yaml")
    with pytest.raises(SettingsError, match="forest"):
        EvaluateMaker(forest="maybe").make("toy", folder / "data.yaml")
    with pytest.raises(SettingsError, match="found int"):
        model_opener(3)


def test_maker_and_job_survive_json(folder: Path) -> None:  # noqa: F811
    maker = EvaluateMaker(splits=["test"], labels=["polarizability"], seed=4)
    assert json.loads(json.dumps(maker, cls=MontyEncoder), cls=MontyDecoder) == maker
    job = maker.make("toy", folder / "data.yaml")
    again = json.loads(json.dumps(job, cls=MontyEncoder), cls=MontyDecoder)
    assert again.function_args[0] == job.function_args[0]
    assert again.function_kwargs["settings"]["labels"] == ["polarizability"]
    assert job.metadata["model_sha256"] == job.function_args[0].sha256
