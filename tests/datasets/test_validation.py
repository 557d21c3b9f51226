"""Every check of a dataset passes on a good one and fails where it should."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import Dataset, build_dataset
from fieldflows.datasets.encoding import dataset_digest
from fieldflows.datasets.statistics import count
from fieldflows.datasets.validation import validate, validate_place
from fieldflows.errors import DataError
from tests.datasets.synthetic import EPS0


@pytest.fixture
def dataset(dielectric_file) -> Dataset:
    source = {"type": "paper_dielectric", "path": str(dielectric_file)}
    return build_dataset(DatasetConfig.from_dict({"name": "d", "sources": [source]}))


def failing(dataset: Dataset, directory=None) -> dict[str, list[str]]:
    found = validate(dataset, directory)
    assert found.valid == all(check.passed for check in found.checks)
    return {check.code: check.where for check in found.checks if not check.passed}


def changed(dataset: Dataset, index: int, **changes) -> Dataset:
    """The dataset with one frame replaced, and a manifest that follows."""
    frames = list(dataset.frames)
    labels = frames[index].labels | changes.pop("labels", {})
    frames[index] = frames[index].with_(labels=labels, **changes)
    update = {"digest": dataset_digest(frames), "counts": count(frames)} | changes.pop("manifest", {})
    return Dataset(frames, dataset.manifest.model_copy(update=update))


def test_a_good_dataset_passes_in_memory_in_its_folder_and_as_configuration(dataset, dielectric_file, tmp_path):
    assert failing(dataset) == {}
    folder = dataset.save(tmp_path / "out")
    assert validate_place(folder).valid
    assert {"sha256", "leaks", "symmetry"} <= {check.code for check in validate_place(folder).checks}
    config = tmp_path / "d.yaml"
    config.write_text(f"name: d\nsources:\n- {{type: paper_dielectric, path: {dielectric_file.name}}}\n")
    assert validate_place(config).valid


def test_altered_files_and_counts(dataset, tmp_path):
    folder = dataset.save(tmp_path / "out")
    frames = folder / "frames.extxyz"
    frames.write_text(frames.read_text().replace("2.5", "2.6", 1))
    found = {check.code for check in validate_place(folder).checks if not check.passed}
    assert {"digest", "sha256"} <= found
    wrong = dataset.manifest.counts | {"all": dataset.manifest.counts["all"] | {"atoms": 7}}
    assert "7" in failing(Dataset(dataset.frames, dataset.manifest.model_copy(update={"counts": wrong})))["counts"][0]
    frames.write_text(frames.read_text()[:-400])
    with pytest.raises(DataError, match=r"frames\.extxyz"):
        validate_place(folder)
    frames.write_text('1\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3\nH 0 0 0\n')
    with pytest.raises(DataError, match="is not what fieldflows wrote"):
        validate_place(folder)
    frames.unlink()
    with pytest.raises(DataError, match="There is no file"):
        validate_place(folder)


def test_broken_symmetry_sum_rule_and_conventions(dataset):
    charges = dataset.frames[3].labels["born_effective_charges"]
    rotated = charges.copy()
    rotated[2:] = np.roll(rotated[2:], 1, axis=0)  # the large component of each anion on another axis
    name = dataset.frames[3].name
    broken = failing(changed(dataset, 3, labels={"born_effective_charges": rotated}))
    assert set(broken) == {"cleaning"}
    assert broken["cleaning"][0].startswith(name)
    slightly = charges.copy()
    slightly[2, 0, 0] += 0.3
    slightly -= slightly.mean(axis=0)
    assert set(failing(changed(dataset, 3, labels={"born_effective_charges": slightly}))) == {"symmetry"}
    assert set(failing(changed(dataset, 3, labels={"born_effective_charges": charges + 1e-3 * np.eye(3)}))) == {
        "sum_rule"
    }
    assert set(failing(changed(dataset, 3, labels={"polarizability": np.full((3, 3), np.nan)}))) >= {
        "shapes",
        "cleaning",
    }
    assert "stress" in failing(changed(dataset, 3, labels={"stress": 10 * np.eye(3)}))
    frames = [f.with_(labels=f.labels | {"polarizability": f.labels["polarizability"] * 30}) for f in dataset.frames]
    update = {"digest": dataset_digest(frames), "counts": count(frames)}
    broken = failing(Dataset(frames, dataset.manifest.model_copy(update=update)))
    median = 1 + 30 * np.median([np.trace(f.labels["polarizability"]) / (3 * EPS0) for f in dataset.frames])
    assert float(broken["epsilon"][0].split(" is ")[1].split(",")[0]) == pytest.approx(median, rel=5e-3)


def test_leaks_twins_and_licenses(dataset):
    first = dataset.frames[0]
    other = "test" if first.split == "train" else "train"
    frames = [*dataset.frames, first.with_(split=other, source_index=99)]
    update = {"digest": dataset_digest(frames), "counts": count(frames)}
    broken = failing(Dataset(frames, dataset.manifest.model_copy(update=update)))
    assert set(broken) == {"leaks", "twins", "hash"}
    assert broken["leaks"][0].startswith("CaTiO3")
    assert set(failing(changed(dataset, 0, split="holdout"))) == {"subsets", "hash"}
    sources = [source.model_copy(update={"license": "not stated"}) for source in dataset.manifest.sources]
    unlicensed = dataclasses.replace(dataset, manifest=dataset.manifest.model_copy(update={"sources": sources}))
    assert set(failing(unlicensed)) == {"licenses"}


def test_settings_of_another_version_are_named(dataset):
    config = dataset.manifest.config | {"cleaning": {"reject_spin": 1}}
    with pytest.raises(DataError, match="reject_spin"):
        validate(Dataset(dataset.frames, dataset.manifest.model_copy(update={"config": config})))
