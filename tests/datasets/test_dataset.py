"""Building, saving and loading: same inputs, same digest; all or nothing on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import Dataset, build_dataset
from fieldflows.errors import ConventionError, DataError, LabelError, SettingsError
from tests.datasets.synthetic import EPS0, FORMULAS, dielectric_text, extxyz_text, gaussian, perovskite, write


def settings(path, **more) -> DatasetConfig:
    data = {"name": "d", "sources": [{"type": "paper_dielectric", "path": str(path)}]} | more
    return DatasetConfig.from_dict(data)


def test_build_converts_splits_and_counts(dielectric_file):
    stages = []
    dataset = build_dataset(settings(dielectric_file), lambda stage, done, total: stages.append((stage, done, total)))
    assert len(dataset) == len(FORMULAS)
    frame = dataset.frames[0]
    assert frame.material == "CaTiO3"
    assert (frame.source, frame.source_index) == ("perovskites", 0)
    np.testing.assert_allclose(frame.labels["polarizability"], (FORMULAS[0][4] - 1) * EPS0 * np.eye(3), rtol=1e-12)
    assert sum(len(dataset.subset(name)) for name in ("train", "valid", "test")) == len(dataset)
    manifest = dataset.manifest
    assert manifest.counts["all"]["frames"] == len(dataset)
    assert manifest.counts["all"]["polarizability"] == len(dataset)
    assert manifest.elements == sorted({"Ca", "Sr", "Ba", "Ti", "Zr", "Hf", "O", "S"})
    assert any("gaussian" in line for line in manifest.sources[0].conversions)
    row = next(r for r in manifest.statistics if r.label == "epsilon_electronic" and r.split == "all")
    assert row.mean == pytest.approx(np.mean([spec[4] for spec in FORMULAS]))
    assert ("cleaning", len(FORMULAS), len(FORMULAS)) in stages
    with pytest.raises(SettingsError, match="Did you mean 'valid'"):
        dataset.subset("val")


def test_the_digest_knows_content_and_nothing_else(dielectric_file, tmp_path):
    first = build_dataset(settings(dielectric_file))
    moved = tmp_path / "elsewhere" / dielectric_file.name
    moved.parent.mkdir()
    shutil.copy(dielectric_file, moved)
    assert build_dataset(settings(moved)).digest == first.digest
    assert build_dataset(settings(dielectric_file, split={"salt": "x"})).digest != first.digest
    crystal = perovskite(*FORMULAS[0])
    changed = gaussian(crystal)
    changed[0, 0] += 1e-9
    text = dielectric_text(crystal, REF_polarisability=changed)
    text += "".join(dielectric_text(perovskite(*spec)) for spec in FORMULAS[1:])
    other = write(tmp_path / "perovskites.extxyz", text)
    assert build_dataset(settings(other)).digest != first.digest


def test_adding_frames_moves_nobody(dielectric_file, tmp_path):
    before = {f.material: f.split for f in build_dataset(settings(dielectric_file)).frames}
    text = "".join(dielectric_text(perovskite(*s)) for s in [("Na", "Ta", "O", 3.9, 4.0), *reversed(FORMULAS)])
    after = {f.material: f.split for f in build_dataset(settings(write(tmp_path / "b.extxyz", text))).frames}
    assert len(after) == len(before) + 1
    assert {name: after[name] for name in before} == before


def test_save_and_load_give_the_same_dataset(dielectric_file, tmp_path):
    dataset = build_dataset(settings(dielectric_file))
    folder = dataset.save(tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["frames.extxyz", "manifest.json"]
    loaded = Dataset.load(folder)
    assert loaded.digest == dataset.digest
    written = hashlib.sha256((folder / "frames.extxyz").read_bytes()).hexdigest()
    assert loaded.manifest == dataset.manifest.model_copy(update={"frames_sha256": written})
    for one, two in zip(dataset.frames, loaded.frames, strict=True):
        assert one.labels.keys() == two.labels.keys()
        for name in one.labels:
            np.testing.assert_array_equal(one.labels[name], two.labels[name])
        assert (one.split, one.flags, one.material) == (two.split, two.flags, two.material)
        assert one.extra.keys() == two.extra.keys()
        np.testing.assert_array_equal(one.extra["sum_rule_residual"], two.extra["sum_rule_residual"])
        assert two.atoms.calc is None


def test_nothing_is_overwritten_unasked(dielectric_file, tmp_path):
    dataset = build_dataset(settings(dielectric_file))
    folder = dataset.save(tmp_path / "out")
    with pytest.raises(DataError, match="already holds a dataset"):
        dataset.save(folder)
    dataset.save(folder, overwrite=True)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="no dataset"):
        dataset.save(foreign, overwrite=True)
    assert (foreign / "thesis.tex").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_failed_write_leaves_the_old_dataset(dielectric_file, tmp_path, monkeypatch):
    dataset = build_dataset(settings(dielectric_file))
    folder = dataset.save(tmp_path / "out")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fieldflows.datasets.dataset.write_extxyz", full_disk)
    with pytest.raises(DataError, match="No space left"):
        dataset.save(folder, overwrite=True)
    assert Dataset.load(folder).digest == dataset.digest
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_altered_truncated_and_foreign_datasets_are_refused(dielectric_file, tmp_path):
    folder = build_dataset(settings(dielectric_file)).save(tmp_path / "out")
    frames, manifest = folder / "frames.extxyz", folder / "manifest.json"
    text = frames.read_text()
    frames.write_text(text.replace("2.5", "2.6", 1))
    with pytest.raises(DataError, match="was altered"):
        Dataset.load(folder)
    lines = text.splitlines(keepends=True)
    frames.write_text("".join(lines[:-7]))
    with pytest.raises(DataError, match="was altered"):
        Dataset.load(folder)
    frames.write_text(text)
    data = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(data | {"schema_version": 99}))
    with pytest.raises(DataError, match="schema version 99"):
        Dataset.load(folder)
    manifest.write_text(json.dumps(data | {"surprise": 1}))
    with pytest.raises(DataError, match="surprise"):
        Dataset.load(folder)
    manifest.write_text(json.dumps(data)[:300])
    with pytest.raises(DataError, match=r"no manifest of a dataset: Invalid JSON.*half-written"):
        Dataset.load(folder)
    with pytest.raises(DataError, match="holds no dataset"):
        Dataset.load(tmp_path / "nothing")


def test_rejects_flags_and_copies_are_listed(tmp_path):
    bad, odd = perovskite("Ba"), perovskite("Ca")
    bad.charges[0] += np.eye(3)
    odd.charges[0] += 0.2 * np.eye(3)
    text = dielectric_text(perovskite()) + dielectric_text(bad) + dielectric_text(odd) + dielectric_text(perovskite())
    manifest = build_dataset(settings(write(tmp_path / "a.extxyz", text))).manifest
    assert [(r.formula, r.source_index) for r in manifest.rejects] == [("BaTiO3", 1)]
    assert manifest.rejects[0].findings[0].value == pytest.approx(1.0)
    assert [(r.formula, r.findings[0].code) for r in manifest.flags] == [("CaTiO3", "sum_rule")]
    assert [(d.source_index, d.kept_source_index, d.kind) for d in manifest.duplicates] == [(3, 0, "exact")]
    assert manifest.sources[0].n_frames == 4
    assert manifest.sources[0].n_kept == 2


def test_one_malformed_label_or_molecule_stops_nobody(tmp_path):
    molecule = dielectric_text(perovskite("Mg")).replace('pbc="T T T"', 'pbc="F F F"')
    text = dielectric_text(perovskite()) + dielectric_text(perovskite("Ba"), REF_polarisability=[1.0, 2.0]) + molecule
    dataset = build_dataset(settings(write(tmp_path / "a.extxyz", text)))
    assert [frame.material for frame in dataset.frames] == ["SrTiO3"]
    found = {r.formula: r.findings[0] for r in dataset.manifest.rejects}
    assert found["BaTiO3"].code == "malformed"
    assert "(2,)" in found["BaTiO3"].message
    assert found["MgTiO3"].code == "not_periodic"
    only = write(tmp_path / "b.extxyz", dielectric_text(perovskite("Ba"), REF_polarisability=[1.0, 2.0]))
    with pytest.raises(LabelError, match=r"shape \(2,\)"):
        build_dataset(settings(only))


def test_an_unwritable_place_is_said_before_the_work(dielectric_file, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    dataset = build_dataset(settings(dielectric_file))
    with pytest.raises(DataError, match="no folder that you may write to"):
        dataset.save(file / "out")


def test_nothing_left_is_an_error(tmp_path):
    bad = perovskite()
    bad.charges[0] += np.eye(3)
    with pytest.raises(DataError, match="1 were rejected"):
        build_dataset(settings(write(tmp_path / "a.extxyz", dielectric_text(bad))))


def test_a_field_is_refused_or_ignored_as_declared(tmp_path):
    path = write(tmp_path / "a.extxyz", dielectric_text(perovskite(), REF_electric_field="0.3 0 0"))
    with pytest.raises(LabelError, match=r"up to 0\.3"):
        build_dataset(settings(path))
    source = {"type": "extxyz", "path": str(path), "labels": {"polarizability": "gaussian"}, "field": "ignore"}
    dataset = build_dataset(DatasetConfig.from_dict({"name": "d", "sources": [source]}))
    assert any("0.3 was ignored" in note for note in dataset.manifest.sources[0].notes)


def test_the_2026_files_are_read_by_declaration(tmp_path):
    crystal = perovskite()
    text = extxyz_text(crystal, {"REF_polarizability": crystal.epsilon - np.eye(3)}, charges_key="REF_bec")
    source = {"type": "paper_dielectric", "path": str(write(tmp_path / "a.extxyz", text))}
    with pytest.raises(ConventionError, match="'susceptibility'"):
        build_dataset(DatasetConfig.from_dict({"name": "d", "sources": [source]}))
    dataset = build_dataset(
        DatasetConfig.from_dict({"name": "d", "sources": [source | {"polarizability": "susceptibility"}]})
    )
    np.testing.assert_allclose(dataset.frames[0].labels["polarizability"], 5 * EPS0 * np.eye(3))
    np.testing.assert_allclose(dataset.frames[0].labels["born_effective_charges"], crystal.charges, atol=1e-12)


def md_text(n: int = 20, name: str = "SiO2") -> str:
    """A trajectory as the SiO2 file has it: everything per cell."""
    rng = np.random.default_rng(0)
    text = ""
    for _ in range(n):
        crystal = perovskite()
        u = 0.02 * rng.normal(size=(5, 3))
        dipole = np.einsum("kij,kj->i", crystal.charges, u)
        crystal = crystal.copy(scaled=crystal.scaled + u @ np.linalg.inv(crystal.cell))
        info = {
            "polarization": dipole,
            "polarizability": (crystal.epsilon - np.eye(3)) * EPS0 * crystal.volume,
            "total_energy": "-100.0",
            "stress": np.diag([0.01, 0.02, 0.03]),
        }
        text += extxyz_text(crystal, info, "born_charge", {"forces": np.zeros((5, 3))})
    return text


def test_a_trajectory_is_split_in_blocks(tmp_path):
    path = write(tmp_path / "md.extxyz", md_text())
    data = {
        "name": "md",
        "sources": [{"type": "sio2_md", "path": str(path)}],
        "split": {"strategy": "blocks", "train": 0.5, "valid": 0.25, "test": 0.25, "gap": 2},
    }
    dataset = build_dataset(DatasetConfig.from_dict(data))
    assert [f.source_index for f in dataset.subset("train")] == list(range(9))
    assert [f.source_index for f in dataset.subset("valid")] == list(range(11, 14))
    assert [f.source_index for f in dataset.subset("test")] == list(range(16, 20))
    assert dataset.manifest.n_gap == 4
    frame = dataset.frames[0]
    assert set(frame.labels) == {
        "energy", "forces", "stress", "polarization", "born_effective_charges", "polarizability",
    }  # fmt: skip
    np.testing.assert_allclose(frame.labels["stress"], np.diag([0.01, 0.02, 0.03]))
    np.testing.assert_allclose(frame.labels["polarizability"], 5 * EPS0 * np.eye(3))
    assert any("slope 1.000" in note for note in dataset.manifest.sources[0].notes)
    loaded = Dataset.load(dataset.save(tmp_path / "out"))
    assert loaded.digest == dataset.digest
    assert loaded.frames[0].labels["energy"].shape == ()


def batio3_text(n: int = 12) -> tuple[str, list[tuple[np.ndarray, np.ndarray]]]:
    """A trajectory as the BaTiO3 file has it: P in e/Å², wrapped to half a quantum, a tagged field, doubled keys."""
    rng = np.random.default_rng(3)
    text, truth = "", []
    for _ in range(n):
        crystal = perovskite("Ba")
        charges = crystal.charges + 0.3 * rng.normal(size=(5, 3, 3))
        crystal.charges[:] = charges - charges.mean(axis=0)
        u = 0.02 * rng.normal(size=(5, 3))
        quantum = crystal.cell / crystal.volume
        p = np.einsum("kij,kj->i", perovskite().charges, u) / crystal.volume + 0.5 * quantum[2]
        p -= np.round(p @ np.linalg.inv(quantum)) @ quantum
        truth.append((p, crystal.charges))
        crystal = crystal.copy(scaled=crystal.scaled + u @ np.linalg.inv(crystal.cell))
        info = {
            "REF_energy": "-100.0",
            "REF_stress": [0.01, 0.02, 0.03, 0.04, 0.05, 0.06],
            "REF_polarisation": p,
            "REF_polarisability": (crystal.epsilon - np.eye(3)) * EPS0,
            "REF_electric_field": "0.3, 0.3, 0.3",
            "polarization": p * crystal.volume,
            "stress": np.zeros(9),
        }
        text += extxyz_text(crystal, info, arrays={"REF_forces": np.ones((5, 3)), "forces": np.zeros((5, 3))})
    return text, truth


def test_batio3_labels_come_from_the_reference_keys_and_the_field_is_ignored(tmp_path):
    text, truth = batio3_text()
    source = {"type": "batio3_md", "path": str(write(tmp_path / "md.extxyz", text))}
    data = {
        "name": "b",
        "sources": [source],
        "split": {"strategy": "blocks", "train": 0.5, "valid": 0.25, "test": 0.25},
    }
    dataset = build_dataset(DatasetConfig.from_dict(data))
    assert len(dataset) == 12
    for frame, (p, charges) in zip(dataset.frames, truth, strict=True):
        np.testing.assert_allclose(frame.labels["polarization"], p, atol=1e-15)
        np.testing.assert_allclose(frame.labels["born_effective_charges"], charges, atol=1e-12)
        np.testing.assert_allclose(frame.labels["polarizability"], 5 * EPS0 * np.eye(3))
        np.testing.assert_array_equal(frame.labels["forces"], np.ones((5, 3)))
        np.testing.assert_allclose(
            frame.labels["stress"], [[0.01, 0.06, 0.05], [0.06, 0.02, 0.04], [0.05, 0.04, 0.03]], atol=1e-15
        )
    notes = dataset.manifest.sources[0].notes
    assert "0.3 V/Å is not physical" in notes[0]
    assert "forces of the first frame reach 1.00" in notes[0]
    assert any("ΔP against Z*Δu/Ω has slope" in note for note in notes)


def test_evaluation_labels_of_the_dielectric_files(tmp_path):
    vasp = np.arange(18.0).reshape(3, 6)  # xx yy zz xy yz zx
    ionic = np.array([[10.0, 1.0, 0.0], [1.0, 11.0, 2.0], [0.0, 2.0, 12.0]])
    text = dielectric_text(perovskite(), REF_piezoelectric=vasp, REF_dielectric_ionic=ionic)
    frame = build_dataset(settings(write(tmp_path / "a.extxyz", text))).frames[0]
    np.testing.assert_allclose(frame.labels["piezoelectric"][0], [0, 1, 2, 4, 5, 3])  # xx yy zz yz xz xy
    np.testing.assert_allclose(frame.labels["epsilon_ionic"], ionic)


def test_splits_that_would_leak_are_refused(tmp_path):
    md = write(tmp_path / "md.extxyz", md_text())
    blocks = {"strategy": "blocks"}
    one = write(tmp_path / "one.extxyz", dielectric_text(perovskite()))
    both = [
        {"type": "sio2_md", "path": str(md), "split": blocks},
        {"type": "paper_dielectric", "path": str(one)},
    ]
    with pytest.raises(SettingsError, match="trained on and tested on"):
        build_dataset(DatasetConfig.from_dict({"name": "d", "sources": both}))
    two = write(tmp_path / "two.extxyz", dielectric_text(perovskite()) + dielectric_text(perovskite("Ba")))
    with pytest.raises(SettingsError, match="holds 2 materials"):
        build_dataset(settings(two, split=blocks))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sources": []}, "name"),
        ({"name": "d", "sources": []}, "sources"),
        (
            {"name": "d", "sources": [{"type": "extxzy", "path": "x"}]},
            "no type of source 'extxzy'. Did you mean 'extxyz'",
        ),
        ({"name": "d", "sources": [{"path": "x"}]}, "discriminator 'type'"),
        ({"name": "d", "sources": [{"type": "sio2_md", "path": "x", "unit": "kbar"}]}, "unit"),
        ({"name": "d", "sources": [{"type": "sio2_md", "path": "x"}] * 2}, "two sources are called x"),
        ({"name": "d", "sources": [{"type": "sio2_md", "path": "x"}], "split": {"train": 0.7}}, "must be 1"),
        (
            {"name": "d", "sources": [{"type": "extxyz", "path": "x", "labels": {"polarizability": "gausian"}}]},
            "Did you mean 'gaussian'",
        ),
        ({"name": "d", "sources": [{"type": "extxyz", "path": "x", "labels": {"gap": "eV"}}]}, "no label 'gap'"),
    ],
)
def test_wrong_configurations_are_named(data, message):
    with pytest.raises(SettingsError, match=message):
        DatasetConfig.from_dict(data)


def test_paths_are_relative_to_the_file_and_variables_are_replaced(dielectric_file, tmp_path, monkeypatch):
    config = tmp_path / "d.yaml"
    text = "name: d\nsources:\n- type: paper_dielectric\n  path: "
    config.write_text(text + dielectric_file.name)
    monkeypatch.chdir("/")
    digest = build_dataset(DatasetConfig.from_yaml(config)).digest
    config.write_text(text + "${SOME_FOLDER}/" + dielectric_file.name)
    monkeypatch.setenv("SOME_FOLDER", str(tmp_path))
    dataset = build_dataset(DatasetConfig.from_yaml(config))
    assert dataset.digest == digest
    assert dataset.manifest.sources[0].path == "${SOME_FOLDER}/" + dielectric_file.name
    assert str(tmp_path) not in dataset.manifest.model_dump_json()
    monkeypatch.delenv("SOME_FOLDER")
    with pytest.raises(SettingsError, match="SOME_FOLDER"):
        build_dataset(DatasetConfig.from_yaml(config))


def test_a_declared_key_that_is_missing_is_named(tmp_path):
    path = write(tmp_path / "a.extxyz", dielectric_text(perovskite()))
    labels = {"polarization": {"convention": "e_per_angstrom2", "key": "dipole"}}
    source = {"type": "extxyz", "path": str(path), "labels": labels}
    with pytest.raises(LabelError, match=r"under dipole.*REF_polarisability"):
        build_dataset(DatasetConfig.from_dict({"name": "d", "sources": [source]}))


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "workflows").glob("dataset_*.yaml")), ids=lambda path: path.name
)
def test_shipped_configurations_are_valid(path):
    config = DatasetConfig.from_yaml(path)
    assert path.stem == f"dataset_{config.name}"
    assert all("${FIELDFLOWS_DATA}" in source.path or not source.path for source in config.sources)


@pytest.mark.parametrize(("a", "x"), [("In", "F"), ("Na", "N")])
def test_formulas_and_names_that_look_like_numbers_survive(tmp_path, a, x):
    """float("InF") is infinite and float("NaN") no number, and a file may be called 2025."""
    crystal = perovskite()
    salt = crystal.copy(
        symbols=[a, x],
        scaled=np.array([[0, 0, 0], [0.5, 0.5, 0.5]]),
        charges=np.array([np.eye(3), -np.eye(3)]),
    )
    path = write(tmp_path / "2025.extxyz", dielectric_text(salt, src_file='a "b" \\'))
    dataset = build_dataset(settings(path))
    loaded = Dataset.load(dataset.save(tmp_path / "out"))
    assert (loaded.frames[0].material, loaded.frames[0].source) == (a + x, "2025")
    assert loaded.frames[0].extra["origin"] == dataset.frames[0].extra["origin"]
    assert loaded.digest == dataset.digest
