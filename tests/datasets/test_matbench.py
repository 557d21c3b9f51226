"""The Matbench task: checked by hash, plain JSON, n by row, official identifiers and folds."""

from __future__ import annotations

import csv
import gzip
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from fieldflows.datasets import matbench
from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import Dataset, build_dataset
from fieldflows.datasets.extxyz import file_sha256, read_extxyz
from fieldflows.datasets.frame import EVALUATION_ONLY
from fieldflows.datasets.matbench import (
    OFFICIAL_ROWS,
    OFFICIAL_SHA256,
    official_folds,
    official_mbid,
    read_matbench,
    read_rows,
)
from fieldflows.datasets.sources.matbench import MatbenchDielectric
from fieldflows.errors import DataError
from fieldflows.structures import as_structure
from fieldflows.testing.structures import cesium_chloride, perovskite_srtio3, rocksalt_mgo, wurtzite_zno

CRYSTALS = {"MgO": (rocksalt_mgo(), 1.74), "ZnO": (wurtzite_zno(), 2.0), "SrTiO3": (perovskite_srtio3(), 2.39),
            "CsCl": (cesium_chloride(), 1.63)}  # fmt: skip


def content(rows: list | None = None, columns: tuple[str, ...] = ("structure", "n")) -> dict:
    """What pandas' ``to_json(orient="split")`` makes of structures and numbers."""
    if rows is None:
        rows = [[as_structure(atoms).as_dict(), n] for atoms, n in CRYSTALS.values()]
    return {"columns": list(columns), "index": list(range(len(rows))), "data": rows}


def write(folder: Path, data: object, name: str = "matbench_dielectric.json.gz") -> Path:
    path = folder / name
    with gzip.open(path, "wt") as handle:
        json.dump(data, handle)
    return path


def test_rows_become_frames(tmp_path):
    path = write(tmp_path, content())
    source = {"type": "matbench_dielectric", "path": str(path), "sha256": file_sha256(path)}
    dataset = build_dataset(DatasetConfig.from_dict({"name": "m", "sources": [source]}))
    assert [frame.material for frame in dataset.frames] == list(CRYSTALS)
    for frame, (atoms, n) in zip(dataset.frames, CRYSTALS.values(), strict=True):
        assert frame.labels["refractive_index"] == n
        assert set(frame.labels) <= EVALUATION_ONLY
        np.testing.assert_allclose(frame.atoms.cell[:], atoms.cell[:], atol=1e-12)
        np.testing.assert_allclose(frame.atoms.positions, atoms.positions, atol=1e-9)
    assert "no identifier" in dataset.manifest.sources[0].notes[0]
    again = Dataset.load(dataset.save(tmp_path / "out"))
    assert [float(frame.labels["refractive_index"]) for frame in again.frames] == [n for _, n in CRYSTALS.values()]


def test_columns_in_another_order(tmp_path):
    path = write(tmp_path, content([[row[1], row[0]] for row in content()["data"]], ("n", "structure")))
    assert [entry.n for entry in read_matbench(path, sha256="")] == [n for _, n in CRYSTALS.values()]


def test_another_file_is_refused(tmp_path):
    path = write(tmp_path, content())
    with pytest.raises(DataError, match=f"expected is {OFFICIAL_SHA256[:16]}"):
        read_matbench(path)
    with pytest.raises(DataError, match="There is no file"):
        read_matbench(tmp_path / "nothing.json.gz")
    with pytest.raises(ValidationError):
        MatbenchDielectric(path="x", sha256="abc")


def test_official_rows_have_identifiers_and_folds(tmp_path, monkeypatch):
    path = write(tmp_path, content())
    monkeypatch.setattr(matbench, "OFFICIAL_SHA256", file_sha256(path))
    entries = read_matbench(path, file_sha256(path))
    assert [entry.mbid for entry in entries] == [f"mb-dielectric-000{k}" for k in (1, 2, 3, 4)]
    assert [entry.fold for entry in entries] == official_folds()[:4].tolist()
    source = MatbenchDielectric(path=str(path), sha256=file_sha256(path))
    frames = source.read(path).frames
    assert frames[2].extra == {"mbid": "mb-dielectric-0003", "matbench_fold": f"fold_{official_folds()[2]}"}


def test_an_index_names_the_rows_of_another_file(tmp_path):
    path = write(tmp_path, content())
    index = tmp_path / "index.csv"
    index.write_text("row,mbid\n" + "".join(f"{row},mb-dielectric-{row + 4001:04d}\n" for row in range(4)))
    source = MatbenchDielectric(path=str(path), sha256="", index="index.csv")
    data = source.read(path, tmp_path)
    assert [frame.extra["mbid"] for frame in data.frames] == [official_mbid(row) for row in range(4000, 4004)]
    assert [frame.extra["matbench_fold"] for frame in data.frames] == [f"fold_{k}" for k in official_folds()[4000:4004]]
    index.write_text("row,mbid\n0,mb-dielectric-0001\n")
    with pytest.raises(DataError, match="names 1 rows, the data have 4"):
        read_matbench(path, "", index)
    index.write_text("row;mbid\n")
    with pytest.raises(DataError, match="names 0 rows"):
        read_matbench(path, "", index)
    index.write_text("number,mbid\n0,a\n")
    with pytest.raises(DataError, match="no index with the columns"):
        read_matbench(path, "", index)
    with pytest.raises(DataError, match="There is no index"):
        read_matbench(path, "", tmp_path / "other.csv")


def test_folds_are_those_of_scikit_learn():
    selection = pytest.importorskip("sklearn.model_selection")
    for n_rows in (OFFICIAL_ROWS, 23):
        folds = np.empty(n_rows, dtype=int)
        split = selection.KFold(5, shuffle=True, random_state=18012019).split(np.arange(n_rows))
        for fold, (_, test) in enumerate(split):
            folds[test] = fold
        np.testing.assert_array_equal(official_folds(n_rows), folds)


def test_bad_rows_are_listed_and_the_others_stay(tmp_path):
    rows = content()["data"]
    partial = json.loads(json.dumps(rows[0][0]))
    partial["sites"][0]["species"][0]["occu"] = 0.5
    bad = [[{"sites": []}, 2.0], [rows[0][0], 0.5], [rows[0][0], None], [rows[0][0], "NaN"], [1], [partial, 1.5]]
    path = write(tmp_path, content(rows + bad))
    data = MatbenchDielectric(path="x", sha256="").read(path)
    assert len(data.frames) == 4
    assert data.n_frames == 10
    assert [item.source_index for item in data.rejects] == [4, 5, 6, 7, 8, 9]
    reasons = [item.findings[0].message for item in data.rejects]
    assert "n is 0.5" in reasons[1]
    assert "no fully occupied element" in reasons[5]
    with pytest.raises(DataError, match=r"no row of .* can be used"):
        MatbenchDielectric(path="x", sha256="").read(write(tmp_path, content(bad)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2], "no columns"),
        ({"columns": ["structure", "gap"], "data": []}, r"the columns \['structure', 'gap'\]"),
        ({"columns": ["structure", "n"]}, "pandas"),
    ],
)
def test_other_forms_are_named(tmp_path, data, message):
    with pytest.raises(DataError, match=message):
        read_rows(write(tmp_path, data), "")


def test_a_truncated_file_is_named(tmp_path):
    path = write(tmp_path, content())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_rows(path, "")


def test_official_folds_and_mini_file(data_folder):
    with lzma.open(data_folder / "matbench_dielectric_targets.csv.xz", "rt") as handle:
        targets = list(csv.DictReader(handle))
    assert [row["mbid"] for row in targets] == [official_mbid(row) for row in range(OFFICIAL_ROWS)]
    np.testing.assert_array_equal(official_folds(), [int(row["fold"]) for row in targets])
    by_name = {row["mbid"]: row for row in targets}
    index = data_folder / "matbench_dielectric_mini_index.csv.xz"
    entries = read_matbench(data_folder / "matbench_dielectric_mini.json.gz", "", index)
    assert len(entries) == 543
    with lzma.open(index, "rt") as handle:
        origin = {int(row["row"]): (row["src_file"], int(row["src_index"])) for row in csv.DictReader(handle)}
    raws = {
        (raw.info["src_file"], int(raw.info["src_index"])): raw
        for name in ("valid", "test")
        for raw in read_extxyz(data_folder / f"dielectric_{name}_dev.extxyz.xz")
    }
    for entry in entries:
        target, raw = by_name[entry.mbid], raws[origin[entry.row]]
        assert entry.n == pytest.approx(float(target["n"]), abs=1e-6)
        assert entry.fold == int(target["fold"])
        np.testing.assert_array_equal(entry.atoms.numbers, raw.numbers)
        np.testing.assert_allclose(entry.atoms.cell[:], raw.cell, atol=1e-6)
        # n of the permittivity that belongs to the same crystal, in the raw convention of its file
        epsilon = np.eye(3) + 4 * np.pi * raw.info["REF_polarisability"].reshape(3, 3)
        assert entry.n == pytest.approx(np.sqrt(np.trace(epsilon) / 3), abs=1e-6)
