"""Artifacts in additional stores: SQLite, GridFS on the wire, memory; damage and stores without a place for them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from jobflow import JobStore
from maggma.stores import MemoryStore

from fieldflows import artifacts
from fieldflows.errors import ArtifactError
from fieldflows.store import get_store
from fieldflows.store.artifacts import CHUNK_BYTES, StoreArtifacts, chunk_id, joined
from fieldflows.testing.mongodb import memory_mongodb


@pytest.fixture(autouse=True)
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDFLOWS_ARTIFACTS", str(tmp_path / "local"))


@pytest.fixture(params=["sqlite", "gridfs", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobStore]:
    if request.param == "sqlite":
        yield get_store(tmp_path / "s.db")
    elif request.param == "memory":
        made = JobStore(MemoryStore(), additional_stores={"artifacts": MemoryStore(key="blob_uuid")})
        made.connect()
        yield made
    else:
        with memory_mongodb() as server:
            yield get_store(f"{server}/test")


@pytest.fixture
def large(tmp_path: Path) -> tuple[Path, str]:
    """A file of two chunks."""
    content = np.random.default_rng(1).bytes(CHUNK_BYTES + 1000)
    (tmp_path / "large.bin").write_bytes(content)
    return tmp_path / "large.bin", hashlib.sha256(content).hexdigest()


def test_a_file_comes_back_byte_by_byte(store: JobStore, large) -> None:
    path, sha256 = large
    kept = StoreArtifacts.of(store)
    assert kept.put(path, label="dataset/abc") == sha256
    before = kept.store.count()
    assert kept.put(path) == sha256
    assert kept.store.count() == before == 4  # two chunks, the entry, the label
    assert kept.find("dataset/abc") == sha256
    assert kept.find("dataset/abd") is None
    assert kept.get(sha256).read_bytes() == path.read_bytes()
    assert artifacts.fetch(sha256).read_bytes() == path.read_bytes()  # now on this machine


def test_jobflow_loads_the_chunks_by_reference(store: JobStore, large) -> None:
    path, sha256 = large
    kept = StoreArtifacts.of(store)
    kept.put(path)
    output = {"file": {"chunks": list(kept.blobs(sha256, path.stat().st_size))}}
    store.update({"uuid": "u", "index": 1, "output": output})
    (raw,) = store.query({"uuid": "u"})
    assert [chunk["blob_uuid"] for chunk in raw["output"]["file"]["chunks"]] == [
        chunk_id(sha256, 0),
        chunk_id(sha256, 1),
    ]
    assert joined(tuple(raw["output"]["file"]["chunks"])) is None
    loaded = store.get_output("u", load=True)["file"]["chunks"]
    assert b"".join(joined(tuple(loaded))) == path.read_bytes()


def test_damage_is_noticed(store: JobStore, large) -> None:
    path, sha256 = large
    kept = StoreArtifacts.of(store)
    kept.put(path)
    for data, message in (("AAAA", "it is damaged"), ("no base64!", "no base64")):
        kept.store.update([{"blob_uuid": chunk_id(sha256, 1), "data": data}], key="blob_uuid")
        with pytest.raises(ArtifactError, match=message):
            kept.get(sha256)
        assert not artifacts.local().path(sha256).exists()


def test_a_missing_part_is_noticed(tmp_path: Path, large) -> None:
    path, sha256 = large
    kept = StoreArtifacts.of(get_store(tmp_path / "s.db"))
    kept.put(path)
    kept.store.remove_docs({"blob_uuid": chunk_id(sha256, 0)})
    with pytest.raises(ArtifactError, match="Part 1 of 2"):
        kept.get(sha256)


def test_stores_without_a_place() -> None:
    assert StoreArtifacts.of(None) is None
    assert StoreArtifacts.of(JobStore(MemoryStore())) is None


def test_a_worker_without_database_writes_and_finds_nothing(large) -> None:
    class Written(MemoryStore):
        """As the file of a worker that only collects what is to be stored later."""

        def query_one(self, *words, **options):
            raise NotImplementedError

    path, sha256 = large
    kept = StoreArtifacts(Written(key="blob_uuid"), "data")
    assert kept.put(path, label="dataset/x") == sha256
    assert kept.find("dataset/x") is None
    with pytest.raises(ArtifactError, match="No place knows"):
        kept.get(sha256)
    assert len(list(kept.store.query())) == 4


def test_blobs_of_jobs_survive_beside_artifacts(store: JobStore, large) -> None:
    kept = StoreArtifacts.of(store)
    save = {kept.store_name: ["hessian"]}
    for uuid in ("a", "b"):
        store.update({"uuid": uuid, "index": 1, "output": {"hessian": [1.0, 2.0]}}, save=save)
    kept.put(large[0])
    assert [store.get_output(uuid, load=True)["hessian"] for uuid in ("a", "b")] == [[1.0, 2.0]] * 2
