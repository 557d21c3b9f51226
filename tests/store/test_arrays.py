"""Large arrays beside documents: the same numbers back, in one piece, in every kind of store."""

from __future__ import annotations

import json

import numpy as np
import pytest
from jobflow import JobStore

from fieldflows.errors import ArtifactError
from fieldflows.store import arrays as module
from fieldflows.store.arrays import Arrays, array_uuid
from fieldflows.store.blobs import as_text
from tests.support.stores import job_store  # noqa: F401  (a fixture)


def bits(array: np.ndarray) -> bytes:
    return array.tobytes()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 100)


@pytest.mark.usefixtures("small_chunks")
def test_every_bit_comes_back(job_store: JobStore) -> None:  # noqa: F811
    random = np.random.default_rng(0)
    odd = np.array([np.nan, -0.0, np.inf, 5e-324, 1 / 3])
    for name, array in {
        "hessian": random.normal(size=(9, 9)),
        "complex": random.normal(size=(2, 3, 4)) + 1j,
        "odd": odd,
        "integers": np.arange(-5, 50, dtype=np.int16),
        "truth": np.array([[True, False]]),
        "single": np.float32(1.5),
        "empty": np.zeros((0, 3)),
        "columns": np.asfortranarray(random.normal(size=(5, 7))),
        "part": random.normal(size=(10, 10))[::3, ::-2],
        "other end": np.arange(4, dtype=">f8"),
    }.items():
        kept = Arrays.of(job_store)
        assert not kept.has("k", name)
        kept.put("k", name, array)
        found = kept.get("k", name, dtype=array.dtype, shape=array.shape)
        assert found.shape == array.shape
        assert found.dtype == array.dtype.newbyteorder("<")
        assert bits(found) == bits(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))))
    assert bits(kept.get("k", "odd", float, (None,))) == bits(odd)


@pytest.mark.usefixtures("small_chunks")
def test_another_array_takes_the_place_and_nothing_is_left_over(job_store: JobStore) -> None:  # noqa: F811
    kept = Arrays.of(job_store)
    first, second = np.arange(30.0), np.arange(60.0)[::-1]
    kept.put("k", "a", first)
    count = kept._blobs.store.count()
    assert count == 1 + 3  # an entry, 240 bytes
    written = []
    write = kept._blobs.write
    kept._blobs.write = lambda *words: written.append(words) or write(*words)
    kept.put("k", "a", first)
    assert written == []
    kept.put("k", "b", first)
    kept.put("j", "a", first)
    kept.put("k", "a", second)
    assert np.array_equal(kept.get("k", "a"), second)
    assert np.array_equal(kept.get("k", "b"), first)
    assert kept._blobs.store.count() == (1 + 5) + 2 * (1 + 3)
    kept.put("k", "a", first.reshape(5, 6))
    assert kept.get("k", "a").shape == (5, 6)
    assert kept.remove("k", "a")
    assert not kept.remove("k", "a")
    assert not kept.has("k", "a")
    assert kept.has("k", "b")
    assert kept._blobs.store.count() == 2 * (1 + 3)


@pytest.mark.usefixtures("small_chunks")
def test_a_reader_gets_the_old_array_until_the_new_one_is_complete(job_store: JobStore) -> None:  # noqa: F811
    kept = Arrays.of(job_store)
    old, new = np.arange(30.0), np.arange(30.0) + 1
    kept.put("k", "a", old)
    seen = []
    write = kept._blobs.write

    def watched(identifier: str, data: str) -> None:
        seen.append(Arrays.of(job_store).get("k", "a"))
        write(identifier, data)

    kept._blobs.write = watched
    kept.put("k", "a", new)
    assert len(seen) == 4
    assert all(np.array_equal(array, old) for array in seen)
    assert np.array_equal(kept.get("k", "a"), new)


def test_a_large_hessian_takes_several_chunks(job_store: JobStore) -> None:  # noqa: F811
    array = np.random.default_rng(0).normal(size=(1000, 1000))
    kept = Arrays.of(job_store)
    kept.put("k", "hessian", array)
    assert kept._blobs.store.count() == 3
    assert np.array_equal(kept.get("k", "hessian", shape=(None, 1000)), array)


@pytest.mark.usefixtures("small_chunks")
def test_damage_and_surprises_are_noticed(job_store: JobStore) -> None:  # noqa: F811
    kept = Arrays.of(job_store)
    with pytest.raises(ArtifactError, match="no array 'a' of k"):
        kept.get("k", "a")
    kept.put("k", "a", np.arange(30.0))
    with pytest.raises(ArtifactError, match=r"shape \(30,\), expected \(31,\)"):
        kept.get("k", "a", shape=(31,))
    with pytest.raises(ArtifactError, match="type float64, expected float32"):
        kept.get("k", "a", dtype=np.float32)
    for bad in (np.array([{}]), np.array(["text"]), np.array(["2026-01-01"], dtype="M8[D]")):
        with pytest.raises(ArtifactError, match="has the type"):
            kept.put("k", "bad", bad)
    identifier = array_uuid("k", "a")
    head = json.loads(kept._blobs.read(identifier))
    chunk = f"{identifier}:{head['sha256'][:16]}:1"
    kept._blobs.write(chunk, as_text(np.zeros(12).tobytes()))
    with pytest.raises(ArtifactError, match="is damaged"):
        kept.get("k", "a")
    kept.put("k", "a", np.arange(30.0))
    assert kept.get("k", "a")[20] == 20
    kept._blobs.remove([chunk])
    with pytest.raises(ArtifactError, match=r"Part 2 of 3 .* is missing"):
        kept.get("k", "a")
    for change in ({"dtype": "O"}, {"shape": [-30]}, {"chunks": "3"}, {"sha256": ""}, {"dtype": "no type"}):
        kept._blobs.write(identifier, json.dumps({**head, **change}))
        with pytest.raises(ArtifactError, match=r"entry of the array 'a' of k .* is damaged"):
            kept.get("k", "a")
    kept._blobs.write(identifier, json.dumps({**head, "shape": [31]}))
    kept.remove("k", "a")
    kept.put("k", "a", np.arange(30.0))
    assert kept.get("k", "a").shape == (30,)


def test_arrays_of_jobs_are_left_alone(job_store: JobStore) -> None:  # noqa: F811
    if "data" not in job_store.additional_stores:
        pytest.skip("no additional store for jobs to put arrays into")
    job_store.update({"uuid": "u", "index": 1, "output": {"hessian": [1.0, 2.0]}}, save={"data": ["hessian"]})
    kept = Arrays.of(job_store)
    kept.put("k", "hessian", np.eye(3))
    kept.remove("k", "hessian")
    kept.put("k", "hessian", np.eye(3))
    assert job_store.get_output("u", load=True)["hessian"] == [1.0, 2.0]
    assert np.array_equal(kept.get("k", "hessian"), np.eye(3))
