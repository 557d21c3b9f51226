"""The Maker of dielectric datasets, and the command that does the same, against a service on loopback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jobflow import run_locally
from monty.json import MontyDecoder, MontyEncoder

from fieldflows.cli.main import run as command
from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import Dataset
from fieldflows.errors import SettingsError
from fieldflows.flows.mp_dataset import MPDielectricDatasetMaker
from fieldflows.schemas.dataset import DatasetDocument
from fieldflows.store import get_store
from tests.datasets.mp_made import IDS, documents, task
from tests.support.materials_project import KEY, serve

WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "dataset_mp_dielectric.yaml"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIELDFLOWS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MP_API_KEY", KEY)
    with serve(documents(tasks=[task(name) for name in IDS])) as made:
        monkeypatch.setenv("MP_API_ENDPOINT", made.url)
        yield made


def test_ids_become_a_document(server, tmp_path: Path) -> None:
    maker = MPDielectricDatasetMaker(directory=str(tmp_path / "out"), options={"batch": 2})
    job = maker.make(list(IDS.values()))
    assert server.count() == 0  # the worker asks, not whoever makes the job
    text = json.dumps(job, cls=MontyEncoder)
    assert KEY not in text
    job = json.loads(text, cls=MontyDecoder)
    store = get_store(tmp_path / "s.db")
    responses = run_locally(job, store=store, log=False, ensure_success=True, raise_immediately=True)
    document = responses[job.uuid][1].output
    assert isinstance(document, DatasetDocument)
    assert (document.n_frames, document.name) == (3, "mp_dielectric")
    assert document.counts["all"]["born_effective_charges"] == 3
    assert Dataset.load(tmp_path / "out").digest == document.digest
    store.connect()
    assert KEY not in json.dumps(store.query_one({"uuid": job.uuid}), default=str)


def test_a_filter_or_saved_answers(server, tmp_path: Path) -> None:
    by_filter = MPDielectricDatasetMaker().make(filter={"chemsys": "Ga-N"})
    (source,) = by_filter.function_args[0]["sources"]
    assert source["filter"]["chemsys"] == "Ga-N"
    saved = MPDielectricDatasetMaker(dataset="mine").make(answers="saved.json")
    assert saved.metadata["dataset"] == "mine"
    with pytest.raises(SettingsError, match="the whole collection is never downloaded"):
        MPDielectricDatasetMaker().make()
    with pytest.raises(SettingsError, match="found several of them"):
        MPDielectricDatasetMaker().make("mp-1", filter={"chemsys": "Ga-N"})


def test_the_command(server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "mp.yaml"
    config.write_text(
        f"name: mp\nsources: [{{type: mp_dielectric, material_ids: [{', '.join(IDS.values())}], born_charges: []}}]\n"
    )

    def build(*options: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            command(["dataset", "build", str(config), "--out", "out", "--no-figure", *options])
        return int(caught.value.code or 0), capsys.readouterr().err

    code, said = build("--offline")
    assert code != 0
    assert "not all documents of materials/dielectric are kept" in " ".join(said.split())
    assert server.count() == 0
    assert build()[0] == 0
    first = Dataset.load("out")
    assert len(first) == 3
    assert server.count("/materials/dielectric/") == 1
    assert build("--offline", "--force")[0] == 0
    assert server.count("/materials/dielectric/") == 1
    assert build("--refresh", "--force")[0] == 0
    assert server.count("/materials/dielectric/") == 2
    assert Dataset.load("out").digest == first.digest
    code, said = build("--refresh", "--offline", "--force")
    assert code != 0
    assert "Choose one of refresh and offline" in " ".join(said.split())


def test_the_workflow_file_is_valid() -> None:
    (source,) = DatasetConfig.from_yaml(WORKFLOW).sources
    assert source.filter.criteria()["num_sites"] == [1, 10]
