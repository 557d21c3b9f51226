"""The table of fields beside a collection: answers are mongomock's, and no document is opened in vain."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from typing import Any

import mongomock_ng
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fieldflows.store import ResultsCollection, SQLiteStore, encoding, lookup, sqlite
from fieldflows.store.lookup import Lookup
from fieldflows.store.partial import needed, roots
from fieldflows.store.prefilter import Columns, superset
from fieldflows.store.results import CATEGORY_FIELDS, INDEXED_FIELDS, INDEXED_LISTS, SELECTIVE_FIELDS

SCALARS = ("a", "b", "p.q")
LISTS = ("tags", "flags.code")


def store_with_table(path: Path) -> SQLiteStore:
    store = SQLiteStore(path, "c", key="key")
    store.ensure_lookup(SCALARS, LISTS, selective=["a"], categories=["p.q"])
    return store


# --- the same answers as mongomock ----------------------------------------------------------------------------------

numbers = st.one_of(
    st.integers(-2, 2), st.sampled_from([0.1, 0.1 + 0.2, 0.3, 2.0, 2.0000000000000004, -1.5, 1e22, 2**53 + 1, -0.0])
)
texts = st.sampled_from(["", "O", "Ti", "O2", "a.b", "é", "O'Neil", '"', "\\", "1", "null"])
plain = st.one_of(st.none(), numbers, texts)
unusual = st.one_of(st.booleans(), st.lists(plain, max_size=2), st.just({"x": 1}), st.just("\x00"))
tags = st.one_of(st.none(), st.lists(texts, max_size=3), texts)


@st.composite
def documents(draw: st.DrawFn) -> list[dict[str, Any]]:
    value = st.one_of(plain, plain, unusual) if draw(st.integers(0, 4)) == 0 else plain
    inner = st.one_of(st.fixed_dictionaries({}, optional={"q": value}), plain)
    flags = st.lists(st.fixed_dictionaries({}, optional={"code": texts}), max_size=2)
    one = st.fixed_dictionaries(
        {},
        optional={"a": value, "b": value, "p": inner, "tags": tags, "flags": flags, "long": st.just([1.5, {"y": 2}])},
    )
    return [document | {"key": f"k{i}"} for i, document in enumerate(draw(st.lists(one, min_size=1, max_size=9)))]


paths = st.sampled_from(["a", "b", "p.q"])
tests = st.one_of(
    plain,
    st.builds(lambda op, v: {op: v}, st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"]), numbers),
    st.builds(lambda op, v: {op: v}, st.sampled_from(["$in", "$nin"]), st.lists(plain, max_size=3)),
    st.builds(lambda v: {"$exists": v}, st.booleans()),
    st.builds(lambda a, b: {"$gte": a, "$lt": b}, numbers, numbers),
)
list_tests = st.one_of(
    texts,
    st.builds(lambda op, v: {op: v}, st.sampled_from(["$in", "$nin", "$all"]), st.lists(texts, min_size=1, max_size=2)),
    st.builds(lambda v: {"$ne": v}, texts),
)
clauses = st.one_of(
    st.dictionaries(paths, tests, min_size=1, max_size=2),
    st.dictionaries(st.sampled_from(LISTS), list_tests, min_size=1, max_size=2),
    st.builds(lambda v: {"long.0": v}, numbers),
)
filters = st.one_of(
    st.just({}),
    st.recursive(
        clauses,
        lambda inner: st.builds(
            lambda op, v: {op: v}, st.sampled_from(["$and", "$or", "$nor"]), st.lists(inner, min_size=1, max_size=2)
        ),
        max_leaves=3,
    ),
)
orders = st.dictionaries(paths, st.sampled_from([1, -1]), max_size=2)
projections = st.one_of(
    st.none(), st.lists(st.sampled_from(["key", "a", "p.q", "tags", "flags.code", "long"]), min_size=1)
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=documents(),
    criteria=filters,
    order=orders,
    skip=st.integers(0, 2),
    limit=st.integers(0, 4),
    properties=projections,
    walk=st.sampled_from([2, 6, 6000]),
)
def test_questions_agree_with_mongomock(
    tmp_path: Path,
    rows: list[dict],
    criteria: dict,
    order: dict,
    skip: int,
    limit: int,
    properties: list | None,
    walk: int,
) -> None:
    collection = mongomock_ng.MongoClient().db.c
    collection.insert_many([dict(row) for row in rows])
    wanted = None if properties is None else dict.fromkeys(properties, 1)
    cursor = collection.find(criteria, {"_id": 0} | (wanted or {}), sort=list(order.items()) or None)
    expected = list(cursor.skip(skip).limit(limit))
    store = store_with_table(tmp_path / "h.db")
    store.remove_docs({})
    store.update(rows)
    with pytest.MonkeyPatch.context() as patch:
        # few rows in order are looked at first, and no more are taken than asked for
        patch.setattr(lookup, "WALK", walk)
        patch.setattr(sqlite, "_SPARE", 0)
        assert list(store.query(criteria, properties, sort=order, skip=skip, limit=limit)) == expected
    assert store.count(criteria) == collection.count_documents(criteria)


def test_tables_follow_replacements_removals_and_writers_that_do_not_know_them(tmp_path: Path) -> None:
    """A thousand random steps against a plain dictionary."""
    generator = random.Random(3)
    path = tmp_path / "s.db"
    plain_store = SQLiteStore(path, "c", key="key")
    plain_store.update([{"key": f"old{i}", "a": i} for i in range(1200)])
    known = {f"old{i}": i for i in range(1200)}
    store = store_with_table(path)
    assert [doc["a"] for doc in store.query(sort={"a": -1}, limit=3)] == [1199, 1198, 1197]
    for step in range(60):
        writer = generator.choice([store, plain_store])
        batch = {f"k{generator.randrange(40)}": generator.randrange(2000) for _ in range(5)}
        writer.update([{"key": key, "a": value} for key, value in batch.items()])
        known |= batch
        if step % 3 == 0:
            bound = generator.randrange(2000)
            writer.remove_docs({"a": {"$gte": bound, "$lt": bound + 20}})
            known = {key: value for key, value in known.items() if not bound <= value < bound + 20}
        if step % 10 == 0:
            store.close()
        bound = generator.randrange(2000)
        found = list(store.query({"a": {"$gt": bound}}, ["key", "a"], sort={"a": 1}, limit=7))
        expected = sorted(value for value in known.values() if value > bound)[:7]
        assert [doc["a"] for doc in found] == expected
        assert all(known[doc["key"]] == doc["a"] for doc in found)
    assert store.count({"a": {"$gte": 0}}) == len(known)


def test_a_writer_that_was_rolled_back_leaves_nothing(tmp_path: Path) -> None:
    store = store_with_table(tmp_path / "s.db")
    store.update({"key": "x", "a": 1})
    with sqlite3.connect(store.path) as connection:
        connection.execute("""INSERT INTO collection_c(doc) VALUES ('{"key":"y","a":2}')""")
        connection.rollback()
    assert [doc["key"] for doc in store.query({"a": {"$gte": 1}})] == ["x"]


def test_two_tables_of_one_collection_do_not_disturb_each_other(tmp_path: Path) -> None:
    first = store_with_table(tmp_path / "s.db")
    second = SQLiteStore(tmp_path / "s.db", "c", key="key")
    second.ensure_lookup(["a"])
    first.update({"key": "x", "a": 1, "b": 2})
    second.update({"key": "y", "a": 0, "b": 3})
    for store in (first, second):
        assert [doc["b"] for doc in store.query(sort={"a": 1})] == [3, 2]


def test_odd_documents_are_found_and_sorted_as_without_the_table(tmp_path: Path) -> None:
    store = store_with_table(tmp_path / "s.db")
    store.update([{"key": "x", "a": [5, 1]}, {"key": "y", "a": 3}, {"key": "z", "a": True}])
    assert [doc["key"] for doc in store.query({"a": {"$gt": 2}})] == ["x", "y"]
    assert [doc["key"] for doc in store.query(sort={"a": -1})] == ["z", "x", "y"]
    store.remove_docs({"key": {"$in": ["x", "z"]}})
    assert [doc["key"] for doc in store.query({"a": {"$gt": 2}}, sort={"a": 1})] == ["y"]
    store.update({"key": "x", "a": 2**70})
    assert [doc["a"] for doc in store.query({"a": {"$gt": 2}}, sort={"a": -1})] == [2**70, 3]


# --- nothing is opened in vain --------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the texts that were decoded."""
    lengths: list[int] = []
    decode = encoding.decode
    monkeypatch.setattr(encoding, "decode", lambda text: (lengths.append(len(text)), decode(text))[1])
    return lengths


def test_only_hits_are_opened_and_only_the_fields_asked_for(tmp_path: Path, opened: list[int]) -> None:
    results = ResultsCollection(SQLiteStore(tmp_path / "s.db", "results", key="key"))
    ballast = list(range(2000))
    results.put(
        [
            {
                "key": f"k{i}",
                "n": i / 100,
                "e_total": float(i % 37),
                "elements": ["O", "Ti"][: 1 + i % 2],
                "modes": ballast,
            }
            for i in range(1000)
        ]
    )
    opened.clear()
    questions = [
        ({"n": {"$gt": 5.001}}, {"e_total": -1}),
        ({"$and": [{"n": {"$gt": 2.001}}, {"e_total": {"$gt": 9.5}}]}, {"n": 1}),
        ({"elements": "Ti"}, {"n": -1}),
        ({}, {"n": -1}),
    ]
    for criteria, sort in questions:
        assert len(list(results.query(criteria, ["key", "n"], sort, 10))) == 10
    assert len(opened) == 40
    assert max(opened) < 100
    opened.clear()
    assert len(list(results.query({"n": {"$gt": 5.001}}, None, {"n": 1}, 10))) == 10
    assert len(opened) == 10
    assert min(opened) > 5000


def test_results_have_the_table_in_the_embedded_store(tmp_path: Path) -> None:
    from fieldflows.store.query import query_fields

    assert all(
        query_fields()[path].kind in ("number", "text") and not query_fields()[path].is_list for path in INDEXED_FIELDS
    )
    assert all(query_fields()[path].is_list for path in INDEXED_LISTS)
    results = ResultsCollection(SQLiteStore(tmp_path / "s.db", "results", key="key"))
    results.put([{"key": "x", "n": 2.0}])
    table = Lookup("results", INDEXED_FIELDS, INDEXED_LISTS, SELECTIVE_FIELDS, CATEGORY_FIELDS).table
    with sqlite3.connect(tmp_path / "s.db") as connection:
        assert connection.execute(f"SELECT key, n, elements FROM {table}").fetchall() == [("x", 2.0, "[]")]


def test_what_a_question_looks_at() -> None:
    assert roots({"$and": [{"a.b": 1}, {"$nor": [{"c": {"$gt": 2}}]}]}) == {"a", "c"}
    assert roots({"$expr": {"$gt": ["$a", "$b"]}}) is None
    assert needed({"a.b": 1}, {"d"}, {"e.f": 1}) == ["a", "d", "e"]
    assert needed({"a": 1}, None, {}) is None
    assert needed({'a"': 1}, {"d"}, {}) is None


def test_conditions_on_columns() -> None:
    columns = Columns(SCALARS, LISTS, frozenset("a"))
    assert superset({"b": "x"}, columns) == ('((+"b" = ?))', ["x"])
    assert superset({"a": "x", "unknown": 1}, columns) == ('(("a" = ?))', ["x"])
    assert superset({"tags": {"$all": ["O", "Ti"]}}, columns)[1] == ['"O"', '"Ti"']
    for nothing in (
        {"tags": 'quo"te'},
        {"tags": {"$ne": "O"}},
        {"tags": None},
        {"a": {"$regex": "x"}},
        {"tags.0": "O"},
    ):
        assert superset(nothing, columns) == ("1", [])


def test_questions_for_elements_alone_read_a_short_index(tmp_path: Path) -> None:
    store = store_with_table(tmp_path / "s.db")
    store.update([{"key": f"k{i}", "tags": ["O", "Ti"][: 1 + i % 2]} for i in range(20)])
    table = Lookup("c", SCALARS, LISTS, ["a"], ["p.q"])
    with sqlite3.connect(store.path) as connection:
        # as a file of a version that had no such index
        connection.execute(f'DROP INDEX "{table._label}:tags"')
        connection.execute(f'DROP INDEX "{table._label}:flags.code"')
    store.close()
    assert [doc["key"] for doc in store.query({"tags": "Ti"}, ["key"], limit=3)] == ["k1", "k3", "k5"]
    with store._file.reading() as connection:
        seen: list[str] = []
        connection.set_trace_callback(seen.append)
        assert store.count({"$and": [{"tags": "O"}, {"tags": "Ti"}]}) == 10
        connection.set_trace_callback(None)
        (asked,) = [text for text in seen if "INDEXED BY" in text]
        plan = str(connection.execute(f"EXPLAIN QUERY PLAN {asked}").fetchall())
    assert "COVERING INDEX" in plan


def test_the_first_rows_in_order_are_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where hits are frequent the table is not sorted; where they are rare it is read once."""
    monkeypatch.setattr(lookup, "WALK", 50)
    store = store_with_table(tmp_path / "s.db")
    store.update([{"key": f"k{i:03}", "a": None, "b": i, "tags": ["O"] if i % 2 else ["Ti"]} for i in range(300)])
    store.update({"key": "rare", "b": 0.5, "tags": ["Pu"]})
    with store._file.reading() as connection:
        for criteria, expected, walked in (
            ({"tags": "O"}, ["k299", "k297", "k295"], True),
            ({"$and": [{"tags": "O"}, {"b": {"$lt": 100}}]}, ["k099", "k097", "k095"], True),
            ({"tags": "Pu"}, ["rare"], False),
        ):
            seen: list[str] = []
            connection.set_trace_callback(seen.append)
            assert [doc["key"] for doc in store.query(criteria, ["key"], {"b": -1}, limit=3)] == expected
            connection.set_trace_callback(None)
            asked = [text for text in seen if "ORDER BY" in text]
            assert "LIMIT 50" in asked[0]
            assert len(asked) == 1 if walked else len(asked) > 1
