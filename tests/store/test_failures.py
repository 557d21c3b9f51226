"""Failures in a store: one document for each thing that failed, attempts counted, nothing counted twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from ase.build import bulk
from jobflow import JobStore

from fieldflows.errors import EvaluationError, StoreError
from fieldflows.schemas.failure import FailureDocument
from fieldflows.store import FailuresCollection, get_store
from tests.support.stores import job_store  # noqa: F401  (a fixture)


def failed(error: Exception, index: int = 0, **facts) -> FailureDocument:
    return FailureDocument.from_error(error, "evaluate", source="a.cif", index=index, task="dielectric", **facts)


def test_trying_again_replaces_and_counts(job_store: JobStore) -> None:  # noqa: F811
    failures = FailuresCollection.of(job_store)
    first = failed(MemoryError("full"), structure=bulk("MgO", "rocksalt", 4.21), campaign="c")
    other = failed(EvaluationError("not finite"), 1)
    assert failures.put([first, other]) == 2
    assert [failures.get(item.failure_key) for item in (first, other)] == [first.to_json_dict(), other.to_json_dict()]
    again = failed(EvaluationError("not finite now"), campaign="c")
    assert again.failure_key == first.failure_key
    assert failures.put([again]) == 1
    stored = FailureDocument.from_json_dict(failures.get(first.failure_key))
    assert stored == again.model_copy(update={"attempts": 2})
    assert (failures.count(), failures.count({"campaign": "c"}), failures.count({"transient": True})) == (2, 1, 0)
    FailuresCollection.of(job_store).put([failed(MemoryError()), failed(MemoryError())])
    assert failures.fetch([first.failure_key, "other"])[0]["attempts"] == 4
    assert [item.attempts for item in failures.documents({"index": 0})] == [4]
    failures.remove([first.failure_key])
    assert [row["failure_key"] for row in failures.query()] == [other.failure_key]


def test_the_same_failure_put_again_is_not_another_attempt(job_store: JobStore) -> None:  # noqa: F811
    failures = FailuresCollection.of(job_store)
    first, second = failed(MemoryError("full")), failed(MemoryError("full"))
    for _ in range(3):
        failures.put([first])
    assert failures.get(first.failure_key)["attempts"] == 1
    failures.put([second])
    failures.put([second, second])
    assert failures.get(first.failure_key)["attempts"] == 2


def test_failures_of_older_versions_are_read_and_replaced(job_store: JobStore) -> None:  # noqa: F811
    failures = FailuresCollection.of(job_store)
    new = failed(MemoryError("full"))
    old = {"failure_key": new.failure_key, "schema_version": 1, "stage": "plan", "error_type": "E", "message": "m"}
    old |= {"created_at": "2026-11-20T09:30:00Z", "source": "a.cif", "index": 0, "task": "dielectric"}
    failures.store.connect()
    failures.store.update([old], key="failure_key")
    (read,) = failures.documents()
    assert (read.schema_version, read.attempts, read.failure_key) == (2, 1, new.failure_key)
    failures.put([new])
    assert failures.get(new.failure_key)["attempts"] == 2


def test_a_failure_without_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="of MgO has no failure key"):
        FailuresCollection.of(get_store(tmp_path / "s.db")).put([{"formula": "MgO"}])
