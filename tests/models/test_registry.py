"""The registry: names, versions, clashes, damage, several processes."""

from __future__ import annotations

import errno
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fieldflows.errors import ArtifactError, CheckpointError, SettingsError
from fieldflows.models.find import registry
from fieldflows.models.registry import INDEX_NAME, ModelRegistry
from tests.models.checkpoints import METRICS, alter, write_checkpoint


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    for seed in (0, 1):
        write_checkpoint(tmp_path / f"m{seed}.safetensors", seed)
    return tmp_path / "m0.safetensors", tmp_path / "m1.safetensors"


def test_an_entry_says_what_the_checkpoint_says(files) -> None:
    entry = registry().register(files[0], "oxide")
    assert (entry.title, entry.model_name, entry.license) == ("oxide@1", "oxide 0", "MIT")
    assert entry.elements == ("O", "Mg")
    assert entry.trained_labels == ("born_effective_charges", "polarizability")
    assert entry.heads == ("Default",)
    assert entry.cutoff == 3.0
    assert entry.dataset_digest == "d" * 64
    assert entry.metrics == METRICS
    assert entry.size == files[0].stat().st_size
    assert registry().path(entry).read_bytes() == files[0].read_bytes()
    assert registry().entries() == [entry]


def test_versions(files) -> None:
    own = registry()
    first = own.register(files[0], "oxide")
    assert own.register(files[0], "oxide") == first
    with pytest.raises(SettingsError, match=r"taken by another model.*--new-version"):
        own.register(files[1], "oxide")
    second = own.register(files[1], "oxide", new_version=True)
    assert second.version == 2
    assert own.register(files[1], "oxide", new_version=True) == second
    assert own.find("oxide") == second
    assert own.find("oxide@1") == first
    assert own.find("other") is None
    with pytest.raises(CheckpointError, match=r"no version '3'.*Known versions: 1, 2"):
        own.find("oxide@3")
    with pytest.raises(CheckpointError, match=r"is a head: give head='Default'"):
        own.find("oxide@Default")
    # an old model becomes the current one again
    third = own.register(files[0], "oxide", new_version=True)
    assert (third.version, own.find("oxide").sha256) == (3, first.sha256)


def test_removing(files) -> None:
    own = registry()
    own.register(files[0], "oxide")
    own.register(files[1], "oxide", new_version=True)
    own.register(files[1], "other")
    assert [entry.title for entry in own.remove("oxide@2")] == ["oxide@2"]
    assert own.find("oxide").version == 1
    own.remove("oxide")
    assert own.names() == ["other"]
    assert not (own.folder / "oxide").exists()
    with pytest.raises(CheckpointError, match="Did you mean 'other'"):
        own.remove("othr")


@pytest.mark.parametrize("name", ["", ".x", "a/b", "../x", "a@b", "sha256:x", "a b", "x" * 81])
def test_names_that_cannot_be(files, name: str) -> None:
    with pytest.raises(SettingsError, match="cannot be the name"):
        registry().register(files[0], name)


@pytest.mark.parametrize("name", ["dielectric", "toy", "mace_field"])
def test_names_that_are_taken(files, name: str) -> None:
    with pytest.raises(SettingsError, match="is taken"):
        registry().register(files[0], name)


def test_a_file_that_was_altered_or_lost_is_not_given_out(files) -> None:
    own = registry()
    entry = own.register(files[0], "oxide")
    alter(own.folder / entry.file)
    with pytest.raises(CheckpointError, match="it was altered"):
        own.path(entry)
    assert own.register(files[0], "oxide") == entry  # heals it
    assert own.path(entry).is_file()
    (own.folder / entry.file).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        own.path(entry)


@pytest.mark.parametrize(
    "content",
    [
        None, b"", b"{", b"[]", b"\xff\xfe", b'{"format": "fieldflows-models", "models": 3}',
        b'{"format": "fieldflows-models", "models": [{"name": "x"}]}',
        b'{"format": "fieldflows-models", "models": [{"name": "x", "version": 1, "sha256": "", "size": 1, '
        b'"file": "../../x"}]}',
    ],
)  # fmt: skip
def test_a_damaged_index_is_made_anew(files, content, caplog: pytest.LogCaptureFixture) -> None:
    own = registry()
    before = [own.register(files[0], "oxide"), own.register(files[1], "oxide", new_version=True)]
    index = own.folder / INDEX_NAME
    if content is None:
        index.unlink()
    else:
        index.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert own.entries() == before
    assert "anew from 2 files" in caplog.text
    assert json.loads(index.read_text())["models"][1]["version"] == 2


def test_an_index_of_a_newer_program(files) -> None:
    own = registry()
    own.register(files[0], "oxide")
    (own.folder / INDEX_NAME).write_text('{"format": "fieldflows-models", "format_version": 99, "models": []}')
    with pytest.raises(CheckpointError, match="newer fieldflows"):
        own.entries()


def test_an_empty_registry_is_no_error_and_makes_no_folder(tmp_path: Path) -> None:
    assert registry().entries() == []
    assert registry().find("x") is None
    assert not (tmp_path / "registry").exists()


def test_a_full_disk_changes_nothing(files, monkeypatch: pytest.MonkeyPatch) -> None:
    own = registry()
    first = own.register(files[0], "oxide")

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ArtifactError, match="disk is full"):
            own.register(files[1], "oxide", new_version=True)
    assert own.entries() == [first]
    assert own.path(own.find("oxide")).is_file()
    assert own.register(files[1], "oxide", new_version=True).version == 2


def _register(task: tuple[str, str, str]) -> int:
    folder, path, name = task
    return ModelRegistry(folder).register(path, name, new_version=True).version


def test_several_register_at_once(files, tmp_path: Path) -> None:
    tasks = [(str(tmp_path / "r"), str(files[i % 2]), f"m{i % 3}") for i in range(6)]
    with ThreadPoolExecutor(4) as pool:  # a lock belongs to an open file, so threads exclude each other like processes
        versions = list(pool.map(_register, tasks))
    own = ModelRegistry(tmp_path / "r")
    assert sorted(versions) == [1, 1, 1, 2, 2, 2]
    assert len(own.entries()) == 6
    assert all(own.path(entry).is_file() for entry in own.entries())
