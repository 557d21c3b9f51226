"""The Matbench flow: a job per fold, all modes, resumed, through JSON; and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jobflow import run_locally
from monty.json import MontyDecoder, MontyEncoder

import fieldflows
from fieldflows.errors import CheckpointError, DataError, SettingsError
from fieldflows.evaluation.matbench.files import read_task
from fieldflows.evaluation.matbench.published import flat_predictions, read_predictions
from fieldflows.flows.matbench import MatbenchDielectricMaker
from fieldflows.schemas.matbench import MatbenchReport
from fieldflows.store import get_store
from tests.cli.conftest import cli  # noqa: F401  (a fixture)
from tests.evaluation.matbench_made import RAISED, mbids, write_dataset, write_task

OPTIONS = {"inner_folds": 2, "least_rows": 5, "figures": False}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(flow, store) -> MatbenchReport:
    responses = run_locally(flow, store=store, log=False, ensure_success=True, raise_immediately=True)
    return responses[flow.jobs[-1].uuid][1].output


def test_all_modes_as_a_flow(tmp_path):
    file, index = write_task(tmp_path)
    data = write_dataset(tmp_path)
    maker = MatbenchDielectricMaker(
        model="toy",
        modes=("all",),
        training=str(tmp_path / "train.yaml"),
        folds=(2,),
        work_directory=str(tmp_path / "out"),
        settings=OPTIONS,
        resources={"_fworker": "gpu"},
    )
    flow = replace(maker, folds=(1, 2)).make(file, index)
    assert [job.metadata["task"] for job in flow.jobs] == ["dataset", "matbench_fold", "matbench_fold", "matbench"]
    assert [job.metadata.get("fold") for job in flow.jobs] == [None, 1, 2, None]
    assert [job.config.manager_config for job in flow.jobs[1:3]] == [{"_fworker": "gpu"}] * 2
    flow = maker.make(file, index)
    store = get_store(tmp_path / "s.db")
    report = run(flow, store)
    assert [(method.mode, method.verdict) for method in report.methods] == [
        ("fixed", "unknown"), ("retrained", "clean"), ("corrected", "clean"),
    ]  # fmt: skip
    assert [method.fold_honest for method in report.methods] == [False, True, True]
    entries, _ = read_task(file, index)
    assert report.rows == sum(entry.fold == 2 for entry in entries)
    # the file holds the toy's n times RAISED
    assert report.methods[0].all_rows.over_folds["mape"].mean == pytest.approx(1 - 1 / RAISED, abs=1e-3)
    store.connect()
    kept = store.query_one({"uuid": flow.jobs[-1].uuid})
    assert MatbenchReport.from_json_dict(kept["output"]) == report
    fold = store.query_one({"uuid": flow.jobs[1].uuid})["output"]
    sha256 = fold["results"][1]["training"]["checkpoint_sha256"]
    assert fieldflows.load_model(f"sha256:{sha256}").info.name == "small"
    assert (tmp_path / "out" / "report" / "results_retrained.json").is_file()
    # a second flow finds everything done: with other data it would train again
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "models").rglob("*.safetensors")}
    again = run(maker.make(file, index), store)
    assert again.methods == report.methods
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert data.is_file()


def test_mistakes_show_when_the_flow_is_made(tmp_path):
    file, index = write_task(tmp_path)

    def make(**changes):
        return MatbenchDielectricMaker(**{"model": "toy", **changes}).make(file, index)

    with pytest.raises(SettingsError, match="needs a training configuration"):
        make(modes=("retrained",))
    with pytest.raises(SettingsError, match="need a model"):
        make(model=None)
    with pytest.raises(SettingsError, match="need a model"):
        make(model=None, modes=("corrected",))
    with pytest.raises(SettingsError, match="no fold 5"):
        make(folds=(5,))
    with pytest.raises(CheckpointError, match="No model"):
        make(model="toyy")
    with pytest.raises(SettingsError, match="least_rows"):
        make(settings={"least_rows": 0})
    with pytest.raises(DataError, match="There is no file"):
        MatbenchDielectricMaker(model="toy").make(tmp_path / "none.json.gz")


def test_the_maker_survives_json():
    maker = fieldflows.MatbenchDielectricMaker(model="toy", modes=["fixed", "corrected"], settings=OPTIONS)
    again = json.loads(json.dumps(maker, cls=MontyEncoder), cls=MontyDecoder)
    assert again.settings_of() == maker.settings_of()
    assert again.settings_of().modes == ("fixed", "corrected")


def test_the_command(cli, tmp_path):  # noqa: F811
    file, index = write_task(tmp_path)
    published = tmp_path / "published.json"
    published.write_text(json.dumps({"coGN": {"fold_0": {"data": dict.fromkeys(mbids().values(), 2.0)}}}))
    words = ("matbench", "--model", "toy", "--file", file, "--index", index, "--out", "out", "--no-figures")
    answer = cli(*words, "--published", published)
    assert answer.code == 0, answer.err
    assert "unknown_training: toy counts as leaky" in answer.out
    assert "17 of the 4764 rows" in answer.out
    assert "fold 0: " in answer.err
    answer = cli(*words, "--json", "--fold", 2)
    assert "fold 2: done before" in answer.err
    found = MatbenchReport.from_json_dict(json.loads(answer.out))
    entries, _ = read_task(file, index)
    results = flat_predictions(read_predictions(tmp_path / "out" / "report" / "results_fixed.json")["toy"])
    assert set(results) == {entry.mbid for entry in entries if entry.fold == 2}
    errors = [abs(results[entry.mbid] - entry.n) for entry in entries if entry.fold == 2]
    assert found.methods[0].all_rows.over_folds["mae"].mean == pytest.approx(np.mean(errors))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--download"),
        (("--file", "none.json.gz"), "There is no file"),
        (("--file", "matbench.json.gz", "--index", "index.csv", "--mode", "fixd"), "Did you mean 'fixed'"),
        (("--file", "matbench.json.gz"), "expected is"),
        (
            ("--file", "matbench.json.gz", "--index", "index.csv", "--train", "train.yaml", "--max-minutes", "-1"),
            "must be positive",
        ),
    ],
)
def test_mistakes_of_the_command_are_one_line(cli, tmp_path, words, message):  # noqa: F811
    write_task(tmp_path)
    write_dataset(tmp_path)
    answer = cli("matbench", "--model", "toy", *words)
    assert answer.code == 2
    assert message in answer.err
    assert "Traceback" not in answer.err
