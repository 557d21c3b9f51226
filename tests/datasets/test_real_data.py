"""The real files against the audit that was made of them independently; skipped without FIELDFLOWS_DATA."""

from __future__ import annotations

import csv
import json
import lzma
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Structure
from pymatgen.core.tensors import Tensor

from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import build_dataset
from fieldflows.datasets.extxyz import read_extxyz
from fieldflows.datasets.materials_project import plain_id
from fieldflows.datasets.orientation import from_ieee
from fieldflows.datasets.paths import read_paths
from fieldflows.errors import ConventionError
from tests.datasets.synthetic import EPS0

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"

AUDIT_CODES = {
    "asr": "sum_rule",
    "bec_symmetry": "charge_symmetry",
    "eps_symmetry": "epsilon_symmetry",
    "eps_ion>100": "large_epsilon_ionic",
    "n>6": "large_n",
    "zmax>10": "large_charge",
}


def rows(path: Path) -> list[dict[str, str]]:
    with lzma.open(path, "rt") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def audit(data_folder):
    return {(r["src_file"], int(r["src_index"])): r for r in rows(data_folder / "dielectric_audit_dev.csv.xz")}


@pytest.fixture(scope="module")
def dielectric(data_folder):
    return build_dataset(DatasetConfig.from_yaml(WORKFLOWS / "dataset_dielectric.yaml"))


def findings(entries):
    return {(e.source, e.source_index): {f.code for f in e.findings} for e in entries}


def test_rejects_are_those_of_the_audit(dielectric, audit):
    expected = {key: {AUDIT_CODES[c] for c in r["reject"].split(";")} for key, r in audit.items() if r["reject"]}
    assert len(expected) == 17
    assert findings(dielectric.manifest.rejects) == expected
    assert len(dielectric) == len(audit) - 17


def test_flags_are_those_of_the_audit(dielectric, audit):
    expected = {
        key: {AUDIT_CODES[c] for c in r["flags"].split(";")}
        for key, r in audit.items()
        if r["flags"] and not r["reject"]
    }
    assert findings(dielectric.manifest.flags) == expected


def test_refractive_indices_are_the_matbench_targets(dielectric, audit, data_folder):
    targets = {r["mbid"]: float(r["n"]) for r in rows(data_folder / "matbench_dielectric_targets.csv.xz")}
    compared = 0
    for frame in dielectric.frames:
        row = audit[frame.source, frame.source_index]
        assert frame.material == row["formula"]
        if row["matbench_mbid"]:
            n = np.sqrt(1 + np.trace(frame.labels["polarizability"]) / (3 * EPS0))
            assert n == pytest.approx(targets[row["matbench_mbid"]], abs=1e-6)
            compared += 1
    assert compared > 500


def test_split_never_divides_a_formula(dielectric):
    splits = defaultdict(set)
    for frame in dielectric.frames:
        splits[frame.material].add(frame.split)
    assert all(len(found) == 1 for found in splits.values())
    counts = Counter(frame.split for frame in dielectric.frames)
    assert 0.75 < counts["train"] / len(dielectric) < 0.85


@pytest.mark.parametrize(("declared", "median"), [("e_per_volt_angstrom", 46), ("susceptibility", 1.25)])
def test_the_gate_on_the_real_file(data_folder, declared, median):
    source = {
        "type": "paper_dielectric",
        "path": str(data_folder / "dielectric_valid_dev.extxyz.xz"),
        "polarizability": declared,
    }
    with pytest.raises(ConventionError, match="likely 'gaussian'") as caught:
        build_dataset(DatasetConfig.from_dict({"name": "d", "sources": [source]}))
    found = float(str(caught.value).split("median ε∞ of ")[1].split()[0])
    assert found == pytest.approx(median, rel=0.1)


def test_ieee_tensors_come_back_to_the_raw_frame(data_folder):
    with lzma.open(data_folder / "mp_api_fixture.json.xz") as handle:
        fixture = json.load(handle)
    raws = {
        f"{raw.info['src_file']}:{int(raw.info['src_index'])}": raw
        for name in ("valid", "test")
        for raw in read_extxyz(data_folder / f"dielectric_{name}_dev.extxyz.xz")
    }
    documents = {doc["material_id"]: doc for doc in fixture["GET /materials/dielectric/"]["data"]}
    summaries = fixture["GET /materials/summary/"]["data"]
    assert len(summaries) > 100
    moved = 0
    for summary in summaries[::3]:
        raw = raws[summary["_fixture_source"]]
        structure = Structure.from_dict(summary["structure"])
        epsilon = np.eye(3) + 4 * np.pi * raw.info["REF_polarisability"].reshape(3, 3)
        ieee = np.array(documents[summary["material_id"]]["electronic"])
        back = from_ieee(ieee, structure)
        np.testing.assert_allclose(back, np.array(Tensor(epsilon).fit_to_structure(structure)), atol=1e-6)
        moved += np.abs(ieee - epsilon).max() > 0.05
        assert np.abs(back - epsilon).max() < 0.2
    assert moved > 10  # otherwise nothing was rotated and nothing tested


@pytest.fixture(scope="module")
def path_audit(data_folder):
    with lzma.open(data_folder / "ferroelectric_paths_audit_dev.json.xz") as handle:
        return {entry["wfid"]: entry for entry in json.load(handle)}


def test_paths_reproduce_the_published_polarizations(data_folder, path_audit):
    paths, broken = read_paths(list(read_extxyz(data_folder / "ferroelectric_paths_dev.extxyz.xz")))
    assert broken == []
    assert len(paths) == len(path_audit) == 209
    for path in paths:
        entry = path_audit[path.wfid]
        published = path.frames[0].info["polarization_change_norm_uC_cm2"]
        assert np.linalg.norm(path.spontaneous_polarization) == pytest.approx(published, abs=1e-5)
        np.testing.assert_allclose(path.spontaneous_polarization, entry["Ps_vec_cart_uC_cm2"], atol=1e-5)
        assert path.max_step == pytest.approx(entry["max_step_quanta"], abs=1e-6)
        assert path.max_second_difference == pytest.approx(entry["max_second_difference_quanta"], abs=1e-6)


def test_ferroelectric_rejects_and_matches(data_folder, path_audit):
    paths = str(data_folder / "ferroelectric_paths_dev.extxyz.xz")
    paper = str(data_folder / "ferroelectric_paper_frames_dev.extxyz.xz")
    source = {"type": "paper_ferroelectric", "path": paper, "paths_file": paths}
    dataset = build_dataset(DatasetConfig.from_dict({"name": "p", "sources": [source]}))
    rejected = {wfid for wfid, entry in path_audit.items() if entry["reject"]}
    assert len(rejected) == 8
    assert not rejected & {frame.extra["wfid"] for frame in dataset.frames}
    # Every frame finds its path: the only reason to reject is the path itself.
    assert {f.code for r in dataset.manifest.rejects for f in r.findings} == {"path_second_difference"}
    assert len(dataset) + len(dataset.manifest.rejects) == 423
    # In Cartesian form P obeys the point group of nearly every frame; in lattice components it would not.
    flagged = [r for r in dataset.manifest.flags if any(f.code == "polarization_symmetry" for f in r.findings)]
    assert len(flagged) <= 1


def test_path_rejects(data_folder, path_audit):
    source = {"type": "ferroelectric_paths", "path": str(data_folder / "ferroelectric_paths_dev.extxyz.xz")}
    data = DatasetConfig.from_dict({"name": "f", "sources": [source]}).sources[0].read(Path(source["path"]))
    kept = {frame.extra["wfid"] for frame in data.frames}
    assert set(path_audit) - kept == {wfid for wfid, entry in path_audit.items() if entry["reject"]}
    assert len(data.frames) == 2010
    large = {frame.extra["wfid"] for frame in data.frames
             if any(f.code == "path_large_step" for f in data.flags.get(frame.source_index, []))}  # fmt: skip
    assert large == {w for w, entry in path_audit.items() if entry["flag_large_step"] and not entry["reject"]}


@pytest.mark.parametrize(("name", "frames", "median"), [("sio2", 201, 2.39), ("batio3", 59, 4.52)])
def test_trajectories(data_folder, name, frames, median):
    dataset = build_dataset(DatasetConfig.from_yaml(WORKFLOWS / f"dataset_{name}.yaml"))
    manifest = dataset.manifest
    assert manifest.rejects == []
    assert manifest.n_frames + manifest.n_gap == frames
    assert manifest.sources[0].median_epsilon_electronic == pytest.approx(median, abs=0.01)
    assert set(dataset.frames[0].labels) == {
        "energy", "forces", "stress", "polarization", "born_effective_charges", "polarizability",
    }  # fmt: skip
    assert any("slope 1.0" in note for note in manifest.sources[0].notes)


def test_saved_answers_of_the_materials_project(data_folder, audit):
    source = {"type": "mp_dielectric", "path": str(data_folder / "mp_api_fixture.json.xz")}
    dataset = build_dataset(DatasetConfig.from_dict({"name": "mp", "sources": [source]}))
    assert len(dataset) + len(dataset.manifest.rejects) + len(dataset.manifest.duplicates) == 140
    raws = {
        f"{raw.info['src_file']}:{int(raw.info['src_index'])}": raw
        for name in ("valid", "test")
        for raw in read_extxyz(data_folder / f"dielectric_{name}_dev.extxyz.xz")
    }
    with lzma.open(data_folder / "mp_api_fixture.json.xz") as handle:
        summaries = json.load(handle)["GET /materials/summary/"]["data"]
    origin = {plain_id(summary["material_id"]): summary["_fixture_source"] for summary in summaries}
    errors = []
    for frame in dataset.frames:
        raw = raws[origin[frame.extra["material_id"]]]
        chi = 4 * np.pi * raw.info["REF_polarisability"].reshape(3, 3)
        errors.append(np.abs(frame.labels["polarizability"] / EPS0 - chi).max())
    assert np.median(errors) < 1e-3
    assert max(errors) < 0.2  # what symmetrizing removes
