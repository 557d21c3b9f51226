"""Collections beside the documents of jobs, and the patience with databases that are away for a while."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import pytest
from jobflow import JobStore
from maggma.stores import ConcatStore, MemoryStore
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    DuplicateKeyError,
    OperationFailure,
    ServerSelectionTimeoutError,
)

from fieldflows.errors import ArtifactError, StoreError
from fieldflows.store import SQLiteStore, get_store, patience
from fieldflows.store.addresses import hide_passwords
from fieldflows.store.collections import KeyedCollection, sibling
from fieldflows.store.patience import RETRY_DELAYS, is_passing, patiently
from fieldflows.testing.mongodb import memory_mongodb
from tests.support.stores import job_store  # noqa: F401  (a fixture)


def test_a_sibling_is_the_same_collection_every_time(job_store: JobStore) -> None:  # noqa: F811
    known = set(job_store.additional_stores)
    for number in range(2):
        found = sibling(job_store, "notes", "name")
        found.connect()
        assert (found.key, found.count()) == ("name", number)
        found.update({"name": f"n{number}", "x": number})
    assert sorted(doc["x"] for doc in sibling_rows(job_store)) == [0, 1]
    assert set(job_store.additional_stores) == known
    job_store.connect()
    assert job_store.count() == 0


def sibling_rows(store: JobStore) -> list[dict]:
    found = sibling(store, "notes", "name")
    found.connect()
    return list(found.query())


def test_an_additional_store_of_the_name_is_taken(tmp_path: Path) -> None:
    own = SQLiteStore(tmp_path / "own.db", "mine", key="name")
    assert sibling(JobStore(MemoryStore(), additional_stores={"notes": own}), "notes", "name") is own
    with pytest.raises(StoreError, match=r"ConcatStore, which has no place for notes.*additional store named 'notes'"):
        sibling(JobStore(ConcatStore([MemoryStore()])), "notes", "name")


def test_keyed_documents(job_store: JobStore) -> None:  # noqa: F811
    class Notes(KeyedCollection):
        key_field = "name"

    notes = Notes(sibling(job_store, "notes", "name"))
    assert notes.count() == 0
    notes.store.update([{"name": f"n{i}", "x": i} for i in range(1100)], key="name")
    names = [f"n{i}" for i in range(1200)]
    assert notes.existing(names) == set(names[:1100])
    assert notes.get("n3") == {"name": "n3", "x": 3}
    assert sorted(doc["x"] for doc in notes.fetch(["n5", "n7", "other"])) == [5, 7]
    notes.remove(names[10:])
    assert sorted(doc["x"] for doc in notes.query()) == list(range(10))
    assert notes.count({"x": {"$gt": 7}}) == 2


def test_a_key_is_there_once_whoever_puts_it(job_store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    class Notes(KeyedCollection):
        key_field = "name"

    notes = Notes(sibling(job_store, "notes", "name"))
    notes.put([{"name": "a", "x": 1}])
    if not isinstance(notes.store, SQLiteStore):
        # what an upsert of another client comes down to, after it looked for the key in vain
        with pytest.raises(DuplicateKeyError):
            notes.store._collection.insert_one({"name": "a", "x": 2})
    update, calls = notes.store.update, []

    def overtaken(*words, **options) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise BulkWriteError({"writeErrors": [{"code": 11000}]})
        update(*words, **options)

    monkeypatch.setattr(notes.store, "update", overtaken)
    notes.put([{"name": "a", "x": 3}])
    assert len(calls) == 2
    assert list(notes.query()) == [{"name": "a", "x": 3}]
    calls.clear()

    def refused(*words, **options) -> None:
        calls.append(1)
        raise BulkWriteError({"writeErrors": [{"code": 11000}, {"code": 121}]})

    monkeypatch.setattr(notes.store, "update", refused)
    with pytest.raises(StoreError, match="refused"):
        notes.put([{"name": "a", "x": 3}])
    assert len(calls) == 1
    assert notes.keys({"x": {"$gt": 1}}) == ["a"]


def test_collections_that_hold_a_key_twice_already_go_on() -> None:
    class Notes(KeyedCollection):
        key_field = "name"

    with memory_mongodb() as server:
        store = sibling(get_store(f"{server}/test"), "notes", "name")
        store.connect()
        store._collection.insert_many([{"name": "a"}, {"name": "a"}])
        notes = Notes(store)
        notes.put([{"name": "b"}])
        assert notes.keys() == ["a", "a", "b"]


# --- patience -------------------------------------------------------------------------------------------------------


def failing(errors: list[Exception]) -> tuple[list[int], object]:
    """Return the calls so far, and an action that raises the errors one after the other."""
    calls: list[int] = []

    def action() -> str:
        calls.append(1)
        if len(calls) <= len(errors):
            raise errors[len(calls) - 1]
        return "done"

    return calls, action


STORE = MemoryStore()


def test_what_passes_is_waited_for_and_logged_without_password(caplog) -> None:
    class Named(MemoryStore):
        name = "mongodb://me:secret@db.example.org/x"

    calls, action = failing([AutoReconnect("gone"), ServerSelectionTimeoutError("none"), OperationFailure("x", 91)])
    with caplog.at_level(logging.WARNING):
        assert patiently(action, Named(), (0.0, 0.0, 0.0)) == "done"
    assert len(calls) == 4
    assert caplog.text.count("mongodb://db.example.org/x does not answer") == 3
    assert "secret" not in caplog.text
    error = AutoReconnect("mongodb://me:secret@db.example.org/x: connection closed")
    with pytest.raises(StoreError, match=r"does not answer: mongodb://db\.example\.org/x: connection") as caught:
        patiently(failing([error] * 2)[1], Named(), (0.0,))
    assert "secret" not in str(caught.value)


def test_what_does_not_pass_is_raised_at_once() -> None:
    for error in (OperationFailure("not authorized", 13), StoreError("wrong"), ArtifactError("damaged")):
        calls, action = failing([error])
        with pytest.raises(StoreError, match="refused: not auth" if isinstance(error, OperationFailure) else None):
            patiently(action, STORE, (0.0,))
        assert len(calls) == 1
    assert not is_passing(ValueError("x"))


def test_the_patience_lasts_more_than_five_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(RETRY_DELAYS) > 300
    monkeypatch.setattr(patience, "RETRY_DELAYS", (0.0, 0.0))
    calls, action = failing([AutoReconnect("gone")] * 9)
    with pytest.raises(StoreError, match="does not answer"):
        patiently(action, STORE)
    assert len(calls) == 3


def test_a_file_that_another_process_holds_is_tried_again(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "s.db", timeout=0.05)
    store.update({"uuid": "a"})
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    calls = []

    def action() -> None:
        calls.append(1)
        if len(calls) == 3:
            other.execute("ROLLBACK")
        store.update({"uuid": "b"})

    patiently(action, store, (0.0,) * 5)
    assert (len(calls), store.count()) == (3, 2)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="another process held it"):
        patiently(lambda: store.update({"uuid": "c"}), store, (0.0,))
    other.close()


def test_passwords_in_texts() -> None:
    assert hide_passwords("a mongodb://u:p@h1,u:p@h2/x and me@example.org") == "a mongodb://h2/x and me@example.org"
    assert hide_passwords("mongodb://h/x?a=b") == "mongodb://h/x?a=b"
