"""The Maker of polarization paths: from a service, from files, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jobflow import run_locally
from monty.json import MontyDecoder, MontyEncoder

from fieldflows.datasets.dataset import Dataset
from fieldflows.errors import SettingsError
from fieldflows.flows.ferroelectric_dataset import FerroelectricDatasetMaker
from fieldflows.schemas.dataset import DatasetDocument
from fieldflows.store import get_store
from tests.datasets.test_ferroelectric import fractions, path_text
from tests.support.contribs import KEY, answers, object_id, server, workflow


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIELDFLOWS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MPCONTRIBS_API_KEY", KEY)


def run(job, tmp_path: Path) -> tuple[DatasetDocument, str]:
    store = get_store(tmp_path / "s.db")
    responses = run_locally(job, store=store, log=False, ensure_success=True, raise_immediately=True)
    store.connect()
    return responses[job.uuid][1].output, json.dumps(store.query_one({"uuid": job.uuid}), default=str)


def test_contributions_and_files_become_one_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "paths.extxyz").write_text(path_text(fractions()))
    saved = answers(
        workflow("wfid_1", "SrTiO3"), workflow("wfid_2", "BaZrO3"), workflow("wfid_3", workflow_status="RUNNING")
    )
    (tmp_path / "more.json").write_text(json.dumps(answers(workflow("wfid_4", "SrZrO3"))))
    maker = FerroelectricDatasetMaker(
        options={"flag_small": 0.2, "stresses": False},
        config={"split": {"salt": "s"}},
        directory="out",
        resources={"_fworker": "net"},
    )
    job = maker.make(["paths.extxyz", tmp_path / "more.json"], ids=[object_id(0), "wfid_2", "wfid_3"])
    assert job.metadata["dataset"] == "ferroelectric"
    assert job.config.manager_config == {"_fworker": "net"}
    assert KEY not in json.dumps(job, cls=MontyEncoder)
    with server(saved) as service:
        monkeypatch.setenv("MPCONTRIBS_API_HOST", service.url)
        document, stored = run(job, tmp_path)
    assert KEY not in stored
    assert document.n_frames == 40
    assert document.n_rejects == 1
    assert set(document.licenses) == {"paths", "more", "mpcontribs_ferroelectrics"}
    dataset = Dataset.load(tmp_path / "out")
    assert dataset.digest == document.digest
    assert {frame.material for frame in dataset.frames} == {"BaTiO3", "SrTiO3", "BaZrO3", "SrZrO3"}
    assert dataset.manifest.config["split"]["salt"] == "s"
    assert all(source["flag_small"] == 0.2 for source in dataset.manifest.config["sources"])
    assert [source.get("stresses") for source in dataset.manifest.config["sources"]] == [None, False, False]
    assert not any("stress" in frame.labels for frame in dataset.frames)


def test_a_filter_or_the_whole_project_on_explicit_wish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = FerroelectricDatasetMaker(project="ferroelectrics_ext", dataset="ext")
    (source,) = maker.make(whole_project=True).function_args[0]["sources"]
    assert (source["project"], source["whole_project"], source["ids"]) == ("ferroelectrics_ext", True, [])
    (source,) = maker.make(filter={"formula": "BaTiO3"}).function_args[0]["sources"]
    assert (source["filter"], source["whole_project"]) == ({"formula": "BaTiO3"}, False)
    monkeypatch.setenv("MPCONTRIBS_API_HOST", "http://127.0.0.1:9")  # making a job asks nobody
    job = maker.make(ids="wfid_1")
    assert job.metadata["dataset"] == "ext"
    assert job.function_args[0]["sources"][0]["ids"] == ["wfid_1"]


def test_mistakes_are_found_when_the_job_is_made() -> None:
    with pytest.raises(SettingsError, match=r"something to build from.*whole_project"):
        FerroelectricDatasetMaker().make()
    with pytest.raises(SettingsError, match="no known ending"):
        FerroelectricDatasetMaker().make("paths.csv")
    with pytest.raises(SettingsError, match="leave ids and filter out"):
        FerroelectricDatasetMaker().make(ids=["a"], whole_project=True)
    with pytest.raises(SettingsError, match="flag_smal"):
        FerroelectricDatasetMaker(options={"flag_smal": 0.2}).make("paths.extxyz.xz")
    with pytest.raises(SettingsError, match="project"):
        FerroelectricDatasetMaker(project="ferro").make(ids=["a"])


def test_maker_and_job_survive_json() -> None:
    maker = FerroelectricDatasetMaker(options={"stresses": False})
    assert json.loads(json.dumps(maker, cls=MontyEncoder), cls=MontyDecoder) == maker
    job = maker.make(ids=["wfid_1"])
    again = json.loads(json.dumps(job, cls=MontyEncoder), cls=MontyDecoder)
    assert again.function_args[0]["sources"][0]["stresses"] is False
