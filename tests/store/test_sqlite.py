"""The embedded store: same answers as mongomock, safe among processes, clear when something is wrong."""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import mongomock_ng
import numpy as np
import pytest
from bson import ObjectId
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from maggma.stores import MemoryStore

from fieldflows.errors import StoreError
from fieldflows.store.prefilter import superset
from fieldflows.store.projection import project
from fieldflows.store.sqlite import SQLiteStore
from fieldflows.store.sqlite_file import APPLICATION_ID, LAYOUT_VERSION, file_system


@pytest.fixture
def store(tmp_path: Path) -> SQLiteStore:
    return SQLiteStore(tmp_path / "s.db")


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# --- documents in and out -------------------------------------------------------------------------------------------


def test_update_inserts_then_replaces(store: SQLiteStore) -> None:
    store.update([{"uuid": "a", "index": 1, "x": 1}, {"uuid": "a", "index": 2}], key=["uuid", "index"])
    store.update({"uuid": "a", "index": 1, "y": 2}, key=["uuid", "index"])
    assert store.count() == 2
    assert store.query_one({"uuid": "a", "index": 1}) == {"uuid": "a", "index": 1, "y": 2}


def test_special_values_survive(store: SQLiteStore) -> None:
    document = {
        "uuid": "a",
        "naive": datetime(2026, 1, 2, 3, 4, 5, 678),
        "aware": datetime(2026, 1, 2, tzinfo=UTC),
        "oid": ObjectId("65a1b2c3d4e5f60718293a4b"),
        "bytes": b"\x00\xff",
        "text": "ε∞ 😀 \x00",
        "deep": [{"$date": "no date"}, {"$date": "2026-01-02", "more": 1}, {"$oid": 3}],
        "big": 2**70,
        "nothing": None,
    }
    store.update(document)
    assert store.query_one() == document


def test_arrays_become_lists(store: SQLiteStore) -> None:
    store.update(
        {"uuid": "a", "x": np.eye(2), "n": np.float64(2.5), "k": np.int64(3), "t": (1, 2), "ok": np.bool_(True)}
    )
    assert store.query_one() == {"uuid": "a", "x": [[1, 0], [0, 1]], "n": 2.5, "k": 3, "t": [1, 2], "ok": True}


def test_numbers_that_are_not_finite_become_null_with_a_warning(store: SQLiteStore, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        store.update({"uuid": "a", "x": [1.0, float("nan")], "y": {"z": np.inf}, "w": np.array([np.nan, 1.0])})
    assert store.query_one() == {"uuid": "a", "x": [1.0, None], "y": {"z": None}, "w": [None, 1.0]}
    assert "x.1" in caplog.text


def test_objects_become_dictionaries_but_none_is_made_on_reading(store: SQLiteStore) -> None:
    from pymatgen.core import Lattice

    store.update({"uuid": "a", "lattice": Lattice.cubic(3), "evil": {"@module": "os", "@callable": "system"}})
    found = store.query_one()
    assert found["lattice"]["@class"] == "Lattice"
    assert found["evil"] == {"@module": "os", "@callable": "system"}


def test_all_documents_of_an_update_or_none(store: SQLiteStore) -> None:
    with pytest.raises(StoreError, match="no field 'uuid'"):
        store.update([{"uuid": "a"}, {"x": 1}])
    assert store.count() == 0


def test_collections_in_one_file_are_apart(tmp_path: Path) -> None:
    first, second = SQLiteStore(tmp_path / "s.db", "first"), SQLiteStore(tmp_path / "s.db", "second", key="key")
    first.update({"uuid": "a"})
    second.update({"key": "b"})
    assert (first.count(), second.count()) == (1, 1)
    assert second.query_one() == {"key": "b"}


def test_remove(store: SQLiteStore) -> None:
    store.update([{"uuid": str(i), "n": i} for i in range(450)])
    store.remove_docs({"n": {"$gte": 10}})
    assert store.count() == 10


def test_sort_skip_limit_and_projection(store: SQLiteStore) -> None:
    store.update([{"uuid": str(i), "n": (7 * i) % 10, "t": {"a": i, "b": -i}} for i in range(10)])
    found = list(store.query({"n": {"$lt": 8}}, ["n", "t.b"], sort={"n": -1}, skip=1, limit=3))
    assert [doc["n"] for doc in found] == [6, 5, 4]
    assert all(set(doc) == {"n", "t"} and set(doc["t"]) == {"b"} for doc in found)
    with pytest.raises(StoreError, match="both keep and drop"):
        list(store.query({}, {"n": 1, "t": 0}))


def test_groupby_and_last_updated(store: SQLiteStore) -> None:
    store.update([{"uuid": str(i), "g": {"k": i % 2}, "last_updated": datetime(2026, 1, 1 + i)} for i in range(5)])
    store.update({"uuid": "x"})
    groups = {label["g"]["k"]: len(docs) for label, docs in store.groupby("g.k")}
    assert groups == {0: 3, 1: 2}
    assert store.last_updated == datetime(2026, 1, 5)


def test_large_loop_does_not_block_writers(tmp_path: Path) -> None:
    reader, writer = SQLiteStore(tmp_path / "s.db"), SQLiteStore(tmp_path / "s.db", timeout=2)
    reader.update([{"uuid": str(i)} for i in range(500)])
    loop = reader.query()
    next(loop)
    writer.update({"uuid": "new"})
    assert len(list(loop)) == 499


# --- the same answers as mongomock ----------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.1, 0.1 + 0.2, 0.3, 1e-9, 2.0000000000000004, 1e22, -1.5, 2**53 + 1]),
    st.sampled_from(["", "a", "b", "a.b", "é", "O'Neil", '"', "1", "null"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc0"), inner, max_size=3),
    max_leaves=6,
)
documents = st.lists(st.dictionaries(st.sampled_from("abc"), values, max_size=3), min_size=1, max_size=8)
paths = st.sampled_from(["a", "b", "c", "a.b", "a.0", "b.a.c", "a.0.b", "c.a"])
tests = st.one_of(
    scalars,
    st.builds(lambda op, v: {op: v}, st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"]), scalars),
    st.builds(lambda op, v: {op: v}, st.sampled_from(["$in", "$nin"]), st.lists(scalars, max_size=3)),
    st.builds(lambda v: {"$exists": v}, st.booleans()),
    st.builds(lambda a, b: {"$gte": a, "$lt": b}, st.integers(-3, 3), st.integers(-3, 3)),
)
clauses = st.dictionaries(paths, tests, min_size=1, max_size=2)
filters = st.recursive(
    clauses,
    lambda inner: st.builds(
        lambda op, v: {op: v}, st.sampled_from(["$and", "$or", "$nor"]), st.lists(inner, min_size=1, max_size=2)
    ),
    max_leaves=3,
)


def mongomock_ids(documents: list[dict], criteria: dict) -> list[str]:
    collection = mongomock_ng.MongoClient().db.c
    collection.insert_many([dict(document) for document in documents])
    return sorted(document["uuid"] for document in collection.find(criteria))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=documents, criteria=filters)
def test_filters_agree_with_mongomock(tmp_path: Path, documents: list[dict], criteria: dict) -> None:
    documents = [document | {"uuid": f"u{i}"} for i, document in enumerate(documents)]
    store = SQLiteStore(tmp_path / "h.db")
    store.remove_docs({})
    store.update(documents)
    try:
        expected = mongomock_ids(documents, criteria)
    except (TypeError, NotImplementedError, mongomock_ng.OperationFailure):
        with pytest.raises(StoreError):
            list(store.query(criteria))
        return
    assert sorted(document["uuid"] for document in store.query(criteria)) == expected
    assert store.count(criteria) == len(expected)


@settings(max_examples=100, deadline=None)
@given(documents=documents, wanted=st.lists(paths.filter(lambda p: "0" not in p), min_size=1, max_size=2))
def test_projections_agree_with_mongomock(documents: list[dict], wanted: list[str]) -> None:
    # MongoDB refuses paths that collide.
    assume(not any(a != b and a.startswith(b + ".") for a in wanted for b in wanted))
    collection = mongomock_ng.MongoClient().db.c
    for document in documents:
        collection.drop()
        collection.insert_one(dict(document))
        try:
            expected = collection.find_one({}, {**dict.fromkeys(wanted, 1), "_id": 0})
        except AttributeError:  # mongomock cannot look into arrays that mix documents with other values
            continue
        assert project(document, wanted) == expected


def test_projections_drop_what_is_named() -> None:
    document = {"a": {"b": 1, "c": [{"d": 1, "e": 2}, 3]}, "f": None}
    assert project(document, {"a.c.d": 0, "f.g": 0, "_id": 0}) == {"a": {"b": 1, "c": [{"e": 2}, 3]}, "f": None}
    assert project(document, {"a": False}) == {"f": None}
    assert project(document, {"_id": 0}) == document


def test_sorting_agrees_with_mongomock(tmp_path: Path) -> None:
    generator = random.Random(5)
    choices = [None, 1, 2.5, -3, "b", "a", True, [3, 1], [], {"x": 1}]
    rows = [{"uuid": str(i), "k": generator.choice(choices), "j": generator.randint(0, 2)} for i in range(60)]
    rows[7].pop("k")
    memory = MemoryStore()
    memory.connect()
    memory.update([dict(row) for row in rows], key="uuid")
    store = SQLiteStore(tmp_path / "s.db")
    store.update(rows)
    for sort in ({"k": 1, "j": -1}, {"j": 1, "k": -1}):
        expected = [doc["uuid"] for doc in memory.query(sort=sort, properties=["uuid"])]
        assert [doc["uuid"] for doc in store.query(sort=sort)] == expected


def test_distinct_agrees_with_mongomock(tmp_path: Path) -> None:
    rows = [{"uuid": "1", "e": ["O", "Mg"]}, {"uuid": "2", "e": ["O"]}, {"uuid": "3"}, {"uuid": "4", "e": "Si"}]
    memory = MemoryStore()
    memory.connect()
    memory.update([dict(row) for row in rows], key="uuid")
    store = SQLiteStore(tmp_path / "s.db")
    store.update(rows)
    assert sorted(store.distinct("e")) == sorted(memory.distinct("e")) == ["Mg", "O", "Si"]


def test_filters_by_key_use_the_index(store: SQLiteStore) -> None:
    store.update([{"uuid": f"u{i}", "index": 1} for i in range(5)], key=["uuid", "index"])
    condition, parameters = superset({"uuid": {"$in": ["u1", "u2"]}})
    with sqlite3.connect(store.path) as connection:
        plan = str(
            connection.execute(
                f"EXPLAIN QUERY PLAN SELECT id FROM collection_outputs WHERE {condition}", parameters
            ).fetchall()
        )
    assert "SEARCH" in plan
    assert "SCAN collection_outputs" not in plan


def test_code_and_nonsense_in_filters_are_refused(store: SQLiteStore) -> None:
    store.update({"uuid": "a"})
    for criteria in ({"$where": "1"}, {"$or": [{"$and": [{"$where": "1"}]}]}):
        with pytest.raises(StoreError, match="would run code"):
            list(store.query(criteria))
    with pytest.raises(StoreError, match="cannot be applied"):
        list(store.query({"uuid": {"$nonsense": 1}}))


def test_injection_through_names_and_values(store: SQLiteStore) -> None:
    store.update({"uuid": "a'); DROP TABLE collection_outputs; --", "it's": 1})
    assert store.count({"uuid": "a'); DROP TABLE collection_outputs; --"}) == 1
    assert store.count({"it's": 1}) == 1
    assert store.count({"x') OR 1=1 --": 1}) == 0
    with pytest.raises(StoreError, match="cannot be the name"):
        SQLiteStore("x.db", "a; DROP TABLE b")


# --- jobflow --------------------------------------------------------------------------------------------------------


def test_round_trips_and_named_in_a_jobflow_configuration(tmp_path: Path, monkeypatch) -> None:
    from jobflow import JobStore
    from jobflow.settings import JobflowSettings
    from monty.json import MontyDecoder, MontyEncoder

    store = SQLiteStore(tmp_path / "s.db", "jobs", key="uuid", journal_mode="delete", timeout=0.5)
    store.update({"uuid": "a"})
    for copy in (
        pickle.loads(pickle.dumps(store)),
        json.loads(json.dumps(store, cls=MontyEncoder), cls=MontyDecoder),
        JobStore.from_dict_spec(
            {"docs_store": {"type": "SQLiteStore", "path": store.path, "collection_name": "jobs"}}
        ).docs_store,
    ):
        assert isinstance(copy, SQLiteStore)
        assert copy.query_one() == {"uuid": "a"}
    config = tmp_path / "jobflow.yaml"
    spec = JobStore(store, additional_stores={"data": SQLiteStore(tmp_path / "s.db", "data")}).as_dict()
    config.write_text(json.dumps({"JOB_STORE": spec}))
    monkeypatch.setenv("JOBFLOW_CONFIG_FILE", str(config))
    configured = JobflowSettings().JOB_STORE
    assert isinstance(configured.docs_store, SQLiteStore)
    assert configured.docs_store.journal_mode == "delete"
    configured.connect()
    assert configured.count() == 1


def test_a_chain_of_jobs_passes_outputs_through_the_store(tmp_path: Path) -> None:
    from jobflow import Flow, JobStore, Response, job, run_locally

    @job
    def start_value() -> dict:
        return {"x": [1, 2, 3]}

    @job(data="large")
    def double(values: list) -> dict:
        return {"small": 1, "large": [2 * value for value in values]}

    @job
    def spawn(values: list):
        return Response(replace=double(values))

    first = start_value()
    second = spawn(first.output["x"])
    third = double(second.output["large"])
    store = JobStore(SQLiteStore(tmp_path / "s.db"), additional_stores={"data": SQLiteStore(tmp_path / "s.db", "data")})
    run_locally(Flow([first, second, third]), store=store, log=False, ensure_success=True)
    assert store.get_output(third.uuid, load=True) == {"small": 1, "large": [4, 8, 12]}
    assert store.get_output(third.uuid)["large"]["store"] == "data"
    assert store.count() == 4
    names = {label["name"].rsplit(".", 1)[-1]: len(docs) for label, docs in store.groupby("name")}
    assert names == {"start_value": 1, "spawn": 1, "double": 2}
    store.remove_docs({"uuid": third.uuid})
    assert store.count({"uuid": third.uuid}) == 0
    assert store.additional_stores["data"].count({"job_uuid": third.uuid}) == 0


def test_a_builder_of_maggma_runs_incrementally(tmp_path: Path) -> None:
    from maggma.builders.map_builder import MapBuilder

    class Halve(MapBuilder):
        def unary_function(self, item: dict) -> dict:
            return {"half": item["n"] / 2}

    source = SQLiteStore(tmp_path / "s.db", "source", key="k")
    target = SQLiteStore(tmp_path / "s.db", "target", key="k")
    source.update([{"k": str(i), "n": i, "last_updated": datetime(2026, 1, 1)} for i in range(3)])
    Halve(source, target, retry_failed=True).run()
    assert sorted(doc["half"] for doc in target.query()) == [0, 0.5, 1]
    source.update({"k": "2", "n": 10, "last_updated": datetime.now() + timedelta(days=1)})
    before = {doc["k"]: doc["_bt"] for doc in target.query()}
    Halve(source, target).run()
    after = {doc["k"]: doc["_bt"] for doc in target.query()}
    assert [k for k in "012" if after[k] != before[k]] == ["2"]
    assert target.query_one({"k": "2"})["half"] == 5


# --- several processes, and death ------------------------------------------------------------------------------------

WRITER = """
    import sys
    from fieldflows.store.sqlite import SQLiteStore
    path, name, count = sys.argv[1:4]
    store = SQLiteStore(path)
    for i in range(int(count)):
        store.update({"uuid": f"{name}-{i}", "index": 1, "x": "y" * 2000}, key=["uuid", "index"])
        print(i, flush=True)
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "shared.db"
    writers = [start(WRITER, path, f"w{k}", 60) for k in range(3)]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors
    store = SQLiteStore(path)
    assert store.count() == 180
    assert len(store.distinct("uuid")) == 180


def test_the_same_key_from_two_processes_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "shared.db"
    writers = [start(WRITER, path, "same", 40) for _ in range(2)]
    for writer in writers:
        assert writer.wait(timeout=120) == 0
    assert SQLiteStore(path).count() == 40


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "killed.db"
    acknowledged = 0
    for name in ("a", "b"):
        writer = start(WRITER, path, name, 100000)
        lines = [writer.stdout.readline() for _ in range(50)]
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read()
        writer.wait(timeout=60)
        acknowledged += len(lines) + rest.count("\n")
    store = SQLiteStore(path)
    assert acknowledged >= 100
    assert acknowledged <= store.count() <= acknowledged + 2
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_forked_child_opens_its_own_connection(store: SQLiteStore) -> None:
    store.update({"uuid": "parent"})
    child = os.fork()
    if child == 0:
        try:
            store.update({"uuid": "child"})
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.update({"uuid": "parent again"})
    assert store.count() == 3


def test_opening_a_store_twice_keeps_the_locks_of_the_first(tmp_path: Path) -> None:
    """A file that is opened and closed besides SQLite loses the locks of its process, and then its journal."""
    first = SQLiteStore(tmp_path / "s.db", "first")
    first.update({"uuid": "a"})
    SQLiteStore(tmp_path / "s.db", "second").connect()
    writer = start(WRITER, tmp_path / "s.db", "w", 3)
    assert writer.wait(timeout=60) == 0
    # Only the last process that has the file open folds the journal into it; this one has it open still.
    assert (tmp_path / "s.db-wal").exists()
    first.update({"uuid": "b"})
    with sqlite3.connect(tmp_path / "s.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_waits_for_a_writer_and_says_so_when_it_takes_too_long(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "s.db", timeout=0.3)
    store.update({"uuid": "a"})
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"another process held it for more than 0\.3 s"):
        store.update({"uuid": "b"})
    assert time.monotonic() - began >= 0.3
    other.execute("ROLLBACK")
    store.update({"uuid": "b"})
    assert store.count() == 2


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_paths_that_cannot_be_a_store(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("structure,n\nMgO,1.7\n")
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE photos (x)")
    before = foreign.read_bytes()
    cases = {
        tmp_path: "is a folder",
        tmp_path / "no" / "such" / "s.db": "does not exist",
        tmp_path / "text.db": "not a store of fieldflows",
        foreign: "database of another program",
    }
    for path, reason in cases.items():
        with pytest.raises(StoreError, match=reason):
            SQLiteStore(path).connect()
    assert foreign.read_bytes() == before
    assert (tmp_path / "text.db").read_text().startswith("structure")


def test_unwritable_file(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    SQLiteStore(path).update({"uuid": "a"})
    # Root may write everywhere, so permission bits prove nothing here: SQLite itself is told to refuse.
    store = SQLiteStore(path)
    with store._file.reading() as connection:
        connection.execute("PRAGMA query_only=1")
    with pytest.raises(StoreError, match="no permission"):
        store.update({"uuid": "b"})
    assert store.count() == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="no permission"):
        SQLiteStore(tmp_path / "s.db").connect()


def test_damaged_file(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "s.db", journal_mode="delete")
    store.update([{"uuid": str(i), "x": "y" * 500} for i in range(200)])
    store.close()
    content = bytearray(Path(store.path).read_bytes())
    content[4096 : 4096 * 20] = os.urandom(4096 * 19)
    Path(store.path).write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        list(SQLiteStore(store.path).query({"x": {"$exists": True}}))


def test_newer_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    SQLiteStore(path).update({"uuid": "a"})
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        connection.execute(f"PRAGMA user_version={LAYOUT_VERSION + 1}")
    with pytest.raises(StoreError, match="newer fieldflows"):
        SQLiteStore(path).connect()


def test_full_disk_keeps_what_was_stored(store: SQLiteStore) -> None:
    store.update({"uuid": "a"})
    with store._file.reading() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(StoreError, match="disk is full"):
        store.update([{"uuid": f"b{i}", "x": "y" * 4000} for i in range(20)])
    assert store.count() == 1
    with store._file.reading() as connection:
        connection.execute("PRAGMA max_page_count=1000000")
    store.update({"uuid": "b"})
    assert store.count() == 2


def test_file_size_limit_keeps_what_was_stored(tmp_path: Path) -> None:
    """The kernel itself refuses to let the file grow, as with a quota."""
    code = """
        import resource, sys
        from fieldflows.errors import StoreError
        from fieldflows.store.sqlite import SQLiteStore
        store = SQLiteStore(sys.argv[1])
        store.update({"uuid": "first"})
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        try:
            for i in range(1000):
                store.update({"uuid": str(i), "x": "y" * 5000})
        except StoreError as error:
            sys.stdout.write(f"{i} {error}")
    """
    path = tmp_path / "s.db"
    process = start(code, path)
    answer, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    stored, message = answer.split(" ", 1)
    assert "disk full" in message or "disk is full" in message
    store = SQLiteStore(path)
    assert store.count() == int(stored) + 1
    assert int(stored) > 5


def test_network_file_systems_get_a_rollback_journal(tmp_path: Path, monkeypatch) -> None:
    from fieldflows.store import sqlite_file

    def mode(path: Path) -> str:
        with sqlite3.connect(path) as connection:
            return str(connection.execute("PRAGMA journal_mode").fetchone()[0])

    SQLiteStore(tmp_path / "local.db").update({"uuid": "a"})
    monkeypatch.setattr(sqlite_file, "file_system", lambda path: "nfs4")
    SQLiteStore(tmp_path / "network.db").update({"uuid": "a"})
    assert mode(tmp_path / "local.db") == "wal"
    assert mode(tmp_path / "network.db") == "delete"


@pytest.mark.skipif(not Path("/proc/self/mounts").exists(), reason="needs Linux")
def test_the_file_system_of_a_path_is_known() -> None:
    assert file_system(Path("/proc/self")) == "proc"


def test_settings_are_checked() -> None:
    for settings_ in ({"journal_mode": "off"}, {"synchronous": "never"}):
        with pytest.raises(StoreError, match="must be"):
            SQLiteStore("x.db", **settings_)
