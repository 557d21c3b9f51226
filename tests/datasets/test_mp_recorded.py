"""Recorded answers of the Materials Project through the real client, against the labels that they were made from."""

from __future__ import annotations

import csv
import json
import lzma

import numpy as np
import pytest
from pymatgen.core import Structure
from pymatgen.core.tensors import Tensor

from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import build_dataset
from fieldflows.datasets.extxyz import read_extxyz
from fieldflows.datasets.sources.mp_dielectric import MPDielectric
from tests.datasets.synthetic import EPS0
from tests.support.materials_project import KEY, serve


@pytest.fixture(scope="module")
def recorded(data_folder):
    with lzma.open(data_folder / "mp_api_fixture.json.xz") as handle:
        answers = json.load(handle)
    return {name: answers[f"GET /materials/{name}/"]["data"] for name in ("dielectric", "summary")}


@pytest.fixture(scope="module")
def raws(data_folder):
    return {
        f"{raw.info['src_file']}:{int(raw.info['src_index'])}": raw
        for name in ("valid", "test")
        for raw in read_extxyz(data_folder / f"dielectric_{name}_dev.extxyz.xz")
    }


def with_tasks(recorded, raws, wanted=140):
    """Add tasks that hold the Born charges of the same crystals in the paper's files.

    Built from the schema: there are no recorded answers of that route.
    """
    tasks = [
        {
            "task_id": document["origins"][0]["task_id"],
            "task_type": "DFPT Dielectric",
            "structure": item["structure"],
            "output": {
                "dielectric_properties": {
                    "born_charges": raws[item["_fixture_source"]].arrays["REF_becs"].reshape(-1, 3, 3).tolist()
                }
            },
        }
        for document, item in zip(recorded["dielectric"], recorded["summary"], strict=True)
    ]
    return recorded | {"tasks": tasks[:wanted]}


def test_the_labels_are_the_fitted_raw_tensors(recorded, raws, data_folder, tmp_path, monkeypatch):
    """ε∞ and ε_ion to 1e-10 of pymatgen's fit of the raw tensor, Z* to 1e-6, n to 1e-6 of Matbench."""
    with lzma.open(data_folder / "dielectric_audit_dev.csv.xz", "rt") as handle:
        audit = {f"{row['src_file']}:{row['src_index']}": row for row in csv.DictReader(handle)}
    with lzma.open(data_folder / "matbench_dielectric_targets.csv.xz", "rt") as handle:
        targets = {row["mbid"]: float(row["n"]) for row in csv.DictReader(handle)}
    monkeypatch.setenv("FIELDFLOWS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MP_API_KEY", KEY)
    with serve(with_tasks(recorded, raws)) as server:
        monkeypatch.setenv("MP_API_ENDPOINT", server.url)
        source = MPDielectric(material_ids=tuple(item["material_id"] for item in recorded["dielectric"]), batch=140)
        data = source.read(source.locate(None, lambda *_: None))
        assert server.count("/materials/dielectric/") == 1
        assert server.count("/materials/tasks/") == 2  # a page there holds 100
    origin = {item["formula_pretty"] + str(item["volume"]): item for item in recorded["summary"]}
    assert len(data.frames) == len(origin) == 140
    n_compared = 0
    for frame in data.frames:
        item = next(x for x in origin.values() if abs(x["volume"] - frame.atoms.get_volume()) < 1e-6)
        raw, structure = raws[item["_fixture_source"]], Structure.from_dict(item["structure"])
        epsilon = np.eye(3) + frame.labels["polarizability"] / EPS0
        expected = np.eye(3) + 4 * np.pi * raw.info["REF_polarisability"].reshape(3, 3)
        np.testing.assert_allclose(epsilon, Tensor(expected).fit_to_structure(structure), atol=1e-10)
        if frame.source_index % 4 == 0:  # the same operations; fitting takes its time
            ionic = Tensor(raw.info["REF_dielectric_ionic"].reshape(3, 3)).fit_to_structure(structure)
            np.testing.assert_allclose(frame.labels["epsilon_ionic"], ionic, atol=1e-10)
        np.testing.assert_allclose(
            frame.labels["born_effective_charges"], raw.arrays["REF_becs"].reshape(-1, 3, 3), atol=1e-6
        )
        row = audit[item["_fixture_source"]]
        assert (frame.extra["charge_symmetry_residual"] > 1.0) == ("bec_symmetry" in row["reject"])
        mbid = row["matbench_mbid"]
        if mbid:
            assert np.sqrt(np.trace(epsilon) / 3) == pytest.approx(targets[mbid], abs=1e-6)
            n_compared += 1
    assert n_compared > 60


def test_saved_and_fetched_answers_give_the_same_dataset(recorded, raws, tmp_path, monkeypatch):
    some = {name: items[:20] for name, items in with_tasks(recorded, raws).items()}
    monkeypatch.setenv("FIELDFLOWS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MP_API_KEY", KEY)

    def build(**source):
        config = {"name": "mp", "sources": [{"type": "mp_dielectric", "name": "mp"} | source]}
        return build_dataset(DatasetConfig.from_dict(config))

    with serve(some) as server:
        monkeypatch.setenv("MP_API_ENDPOINT", server.url)
        fetched = build(material_ids=[item["material_id"] for item in some["dielectric"]])
    (file,) = (tmp_path / "cache").rglob("sources/*.json.gz")
    saved = build(path=str(file))
    assert saved.digest == fetched.digest
    assert saved.manifest.sources[0].sha256 == fetched.manifest.sources[0].sha256
