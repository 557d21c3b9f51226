"""A dataset as one file: the same bytes, the same dataset, and nothing unpacked that does not belong there."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from fieldflows import artifacts
from fieldflows.artifacts import FileArtifacts, file_sha256
from fieldflows.datasets.archive import keep, load_by_digest, pack, unpack
from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import Dataset, build_dataset
from fieldflows.errors import ArtifactError, DataError
from fieldflows.training.config import TrainingConfig
from fieldflows.training.setup import load_dataset
from tests.flows.test_training_maker import folder  # noqa: F401  (a fixture)


@pytest.fixture(autouse=True)
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDFLOWS_ARTIFACTS", str(tmp_path / "local"))
    monkeypatch.delenv("FIELDFLOWS_ARTIFACT_SOURCES", raising=False)


@pytest.fixture
def dataset(folder: Path) -> Dataset:  # noqa: F811
    return build_dataset(DatasetConfig.from_yaml(folder / "data.yaml"))


def test_there_and_back(dataset: Dataset, tmp_path: Path) -> None:
    first, second = pack(dataset, tmp_path / "a.tar.gz"), pack(dataset, tmp_path / "b.tar.gz")
    assert file_sha256(first) == file_sha256(second)
    again = unpack(first, dataset.digest)
    assert again.digest == dataset.digest
    assert again.manifest.frames_sha256 is not None
    assert again.manifest.model_copy(update={"frames_sha256": None}) == dataset.manifest
    assert [frame.split for frame in again.frames] == [frame.split for frame in dataset.frames]
    np.testing.assert_array_equal(again.frames[0].labels["polarizability"], dataset.frames[0].labels["polarizability"])
    with tarfile.open(first) as tar:
        assert tar.getnames() == ["manifest.json", "frames.extxyz"]
        assert {(member.mtime, member.uid, member.mode) for member in tar.getmembers()} == {(0, 0, 0o644)}


def test_by_digest_here_and_from_elsewhere(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainingConfig(dataset={"digest": dataset.digest})
    with pytest.raises(DataError, match="No place knows a dataset"):
        load_dataset(config)
    sha256 = keep(dataset)
    assert keep(dataset) == sha256
    assert load_dataset(config).digest == dataset.digest

    monkeypatch.setenv("FIELDFLOWS_ARTIFACTS", str(tmp_path / "another machine"))
    monkeypatch.setenv("FIELDFLOWS_ARTIFACT_SOURCES", (tmp_path / "local").as_uri())
    assert load_dataset(config).digest == dataset.digest
    monkeypatch.delenv("FIELDFLOWS_ARTIFACT_SOURCES")
    assert load_by_digest(dataset.digest).digest == dataset.digest  # kept on this machine


def test_damage_and_mistaken_labels(dataset: Dataset, tmp_path: Path) -> None:
    sha256 = keep(dataset)
    path = artifacts.local().path(sha256)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(ArtifactError, match="damaged"):
        load_by_digest(dataset.digest)
    assert keep(dataset) == sha256  # packed anew in place of the damaged file
    assert load_by_digest(dataset.digest).digest == dataset.digest
    artifacts.local().label("dataset/" + "0" * 64, sha256)
    with pytest.raises(DataError, match="asked for 00000000"):
        load_by_digest("0" * 64)
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"damaged|no packed dataset"):
        unpack(tmp_path / "cut.tar.gz")
    (tmp_path / "text.tar.gz").write_text("no archive")
    with pytest.raises(DataError, match="no packed dataset"):
        unpack(tmp_path / "text.tar.gz")


def test_a_hostile_archive_writes_nothing(dataset: Dataset, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    for name, kind in (
        ("../../victim", tarfile.REGTYPE),
        (str(victim), tarfile.REGTYPE),
        ("frames.extxyz", tarfile.SYMTYPE),
    ):
        with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as tar:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, str(victim), 4 if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(b"evil"))
            manifest = tarfile.TarInfo("manifest.json")
            manifest.size = 2
            tar.addfile(manifest, io.BytesIO(b"{}"))
        with pytest.raises(DataError, match="no packed dataset"):
            unpack(tmp_path / "evil.tar.gz")
        assert not victim.exists()


def test_a_full_disk(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        pack(dataset, tmp_path / "taken" / "a.tar.gz")


def test_exactly_one_origin() -> None:
    for section in ({}, {"digest": "0" * 64, "path": "x"}, {"digest": "abc"}):
        with pytest.raises(ValueError, match=r"exactly one|pattern"):
            TrainingConfig(dataset=section)
    assert FileArtifacts("x").find("dataset/none") is None
