"""A narrow table beside the documents of a collection, with the fields that are often asked for and sorted by.

Documents are long texts; a question that has to open a hundred thousand of them takes seconds.  The table holds a few
values of each, so that filters by them and sort orders are decided in SQL within milliseconds, and only the documents
that are returned are read.

Triggers of the file note which documents were written by a program that does not know the table; they are entered
before the next question.  Documents whose values do not fit into columns (truth values, arrays, documents, integers
beyond 64 bits) are marked as odd; as long as there is one, questions go the long way.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fieldflows.store import encoding, partial, prefilter

WALK = 6000
"""Rows that are looked at in the order of an index before the whole table is read: a few milliseconds."""

_PORTION = 500


class Lookup:
    """The table of one collection.

    Its name follows from its columns, so that versions of the package with other columns do not disturb each other.

    Args:
        collection: Name of the collection.
        scalars: Dotted paths of numbers and texts.
        lists: Dotted paths of lists of texts, or of texts in lists of documents.
        selective: Those of the scalars of which a value is shared by few documents.
        categories: Those of the scalars that have few different values.
    """

    def __init__(
        self,
        collection: str,
        scalars: Sequence[str],
        lists: Sequence[str] = (),
        selective: Sequence[str] = (),
        categories: Sequence[str] = (),
    ) -> None:
        self.columns = prefilter.Columns(tuple(scalars), tuple(lists), frozenset(selective))
        self._indexed = [path for path in scalars if path not in categories]
        layout = [list(scalars), list(lists), self._indexed]
        mark = hashlib.sha256(json.dumps(layout).encode()).hexdigest()[:8]
        self._documents = f'"collection_{collection}"'
        self._label = f"{collection}_{mark}"
        self.table = f'"lookup_{self._label}"'
        self._pending = f'"pending_{self._label}"'
        self._scalars = [path.split(".") for path in scalars]
        self._lists = [path.split(".") for path in lists]

    def prepare(self, connection: Any) -> None:
        """Create table, indexes and triggers if they are not there; documents already stored become pending.

        The collection exists.  All is done in one transaction: that of the caller or one of its own.
        """
        if self._is_there(connection):
            return
        if connection.in_transaction:
            self._create(connection)
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            if not self._is_there(connection):
                self._create(connection)
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def _is_there(self, connection: Any) -> bool:
        return all(self._has(connection, name) for name in ("delete", *self.columns.lists[-1:]))

    def _has(self, connection: Any, name: str) -> bool:
        question = "SELECT 1 FROM sqlite_master WHERE name=?"
        return connection.execute(question, (f"{self._label}:{name}",)).fetchone() is not None

    def _create(self, connection: Any) -> None:
        if not self._has(connection, "delete"):
            self._create_table(connection)
        # What only asks for texts of a list reads the index, which is much shorter than the table.
        for name in self.columns.lists:
            connection.execute(f'CREATE INDEX IF NOT EXISTS "{self._label}:{name}" ON {self.table} ("{name}")')

    def _create_table(self, connection: Any) -> None:
        names = ", ".join(f'"{name}"' for name in self.columns.all)
        connection.execute(f"CREATE TABLE {self.table} (id INTEGER PRIMARY KEY, odd, {names})")
        connection.execute(f'CREATE INDEX "{self._label}:odd" ON {self.table} (odd) WHERE odd')
        for name in self._indexed:
            connection.execute(f'CREATE INDEX "{self._label}:{name}" ON {self.table} ("{name}")')
        connection.execute(f"CREATE TABLE {self._pending} (id INTEGER PRIMARY KEY)")
        connection.execute(f"INSERT INTO {self._pending} SELECT id FROM {self._documents}")
        for event in ("INSERT", "UPDATE"):
            connection.execute(
                f'CREATE TRIGGER "{self._label}:{event.lower()}" AFTER {event} ON {self._documents} '
                f"BEGIN INSERT OR IGNORE INTO {self._pending} VALUES (NEW.id); END"
            )
        connection.execute(
            f'CREATE TRIGGER "{self._label}:delete" AFTER DELETE ON {self._documents} BEGIN '
            f"DELETE FROM {self.table} WHERE id=OLD.id; DELETE FROM {self._pending} WHERE id=OLD.id; END"
        )

    def enter(self, connection: Any, number: int, document: Mapping[str, Any], text: str) -> None:
        """Enter a document that was just written, in the same transaction.

        Args:
            connection: The connection, inside a transaction.
            number: Row of the document in the collection.
            document: The document as given.
            text: The document as stored.
        """
        values = self._values(document)
        self._insert(connection, number, self._values(encoding.decode(text)) if values is None else values)

    def _insert(self, connection: Any, number: int, values: list[Any] | None) -> None:
        row = [number, 1, *[None] * len(self.columns.all)] if values is None else [number, None, *values]
        connection.execute(f"INSERT OR REPLACE INTO {self.table} VALUES ({','.join('?' * len(row))})", row)
        connection.execute(f"DELETE FROM {self._pending} WHERE id=?", (number,))

    def is_behind(self, connection: Any) -> bool:
        """Return whether there are documents that have not been entered."""
        return connection.execute(f"SELECT 1 FROM {self._pending} LIMIT 1").fetchone() is not None

    def catch_up(self, connection: Any) -> None:
        """Enter some of the documents that are pending; the caller holds a transaction."""
        fields = partial.needed({}, {path.split(".")[0] for path in self.columns.all}, {})
        rows = connection.execute(
            f"SELECT id, {partial.expressions(fields)} FROM {self._documents} "
            f"WHERE id IN (SELECT id FROM {self._pending} LIMIT {_PORTION})"
        ).fetchall()
        for number, *parts in rows:
            self._insert(connection, number, self._values(partial.assembled(fields, parts)))

    def serves(self, criteria: Mapping[str, Any], order: Mapping[str, int]) -> bool:
        """Return whether the table helps with a question: it decides part of the filter, and all of the order."""
        if not set(order) <= set(self.columns.scalars):
            return False
        return bool(order) or prefilter.superset(criteria, self.columns)[0] != "1"

    def numbers(
        self, connection: Any, criteria: Mapping[str, Any], order: Mapping[str, int], limit: int = 0
    ) -> list[int] | None:
        """Return the rows of the documents that may match, in order; None if there are odd ones.

        Args:
            connection: The connection.
            criteria: Mongo filter.
            order: Directions (1 or −1) by column, the first counts most; documents that are equal follow as stored.
            limit: Largest number of rows; 0 for all.
        """
        if connection.execute(f"SELECT 1 FROM {self.table} WHERE odd LIMIT 1").fetchone():
            return None
        columns, first = self.columns, next(iter(order), None)
        # In the order of an index, each row is looked up in the table: quick where the first ones match, slow where
        # few do.  Then reading the whole table and sorting what matches is quicker.
        mentioned = _mentioned(criteria)
        is_walk = mentioned <= {first}
        if first is not None and limit and not is_walk and not mentioned & columns.searched:
            found = self._first_ones(connection, criteria, order, limit)
            if len(found) == limit:
                return found
        if is_walk and first is not None:
            columns = replace(columns, searched=columns.searched | {first})
        condition, parameters = prefilter.superset(criteria, columns)
        source, last = self.table, "id"
        if not order and len(mentioned) == 1 and mentioned <= set(columns.lists):
            source, last = f'{self.table} INDEXED BY "{self._label}:{min(mentioned)}"', "+id"
        terms = [
            f'{"" if is_walk else "+"}"{name}" {"ASC" if direction > 0 else "DESC"}'
            for name, direction in order.items()
        ]
        rows = connection.execute(
            f"SELECT id FROM {source} WHERE {condition} ORDER BY {', '.join([*terms, last])} LIMIT ?",
            [*parameters, limit or -1],
        )
        return [row[0] for row in rows]

    def _first_ones(
        self, connection: Any, criteria: Mapping[str, Any], order: Mapping[str, int], limit: int
    ) -> list[int]:
        """Return those of the first rows in order that may match; all of these if they are as many as asked for."""
        first = next(iter(order))
        start, parameters = prefilter.superset(
            {"$and": _about(criteria, first)}, replace(self.columns, searched=frozenset({first}))
        )
        condition, more = prefilter.superset(criteria, self.columns)
        mentioned = _mentioned(criteria) | set(order)
        names = ", ".join(f'"{name}"' for name in self.columns.all if name in mentioned)
        terms = [f'"{name}" {"ASC" if direction > 0 else "DESC"}' for name, direction in order.items()]
        walk = f"SELECT id, {names} FROM {self.table} WHERE {start} ORDER BY {', '.join([*terms, 'id'])} LIMIT {WALK}"
        rows = connection.execute(f"SELECT id FROM ({walk}) WHERE {condition} LIMIT ?", [*parameters, *more, limit])
        return [row[0] for row in rows]

    def _values(self, document: Mapping[str, Any]) -> list[Any] | None:
        """Return the values of the columns, or None if one of them does not fit."""
        values: list[Any] = []
        for parts in self._scalars:
            found: Any = document
            for part in parts:
                if type(found) is dict:
                    found = found.get(part)
                elif found is None or type(found) in (int, float, str, bool):
                    found = None
                else:
                    return None
            if not _fits(found):
                return None
            values.append(found)
        for parts in self._lists:
            texts: list[str] = []
            if not _leaves(document, parts, texts):
                return None
            values.append(json.dumps(texts))
        return values


def _mentioned(criteria: Mapping[str, Any]) -> set[str]:
    found: set[str] = set()
    for key, value in criteria.items():
        if key.startswith("$") and isinstance(value, list | tuple):
            found.update(*(_mentioned(item) for item in value if isinstance(item, Mapping)))
        else:
            found.add(key)
    return found


def _about(criteria: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
    """Return the parts of a filter that are about one path and must all hold."""
    found: list[dict[str, Any]] = [{path: criteria[path]}] if path in criteria else []
    for item in criteria.get("$and", ()):
        found += _about(item, path) if isinstance(item, Mapping) else []
    return found


def _fits(value: Any) -> bool:
    if value is None:
        return True
    if type(value) is int:
        return abs(value) < 2**63
    if type(value) is float:
        return math.isfinite(value)
    return type(value) is str and "\x00" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _leaves(value: Any, parts: Sequence[str], found: list[str]) -> bool:
    """Collect the texts at a path, through lists on its way; return whether there is nothing but texts."""
    if value is None:
        return True
    if type(value) in (list, tuple):
        return all(_leaves(item, parts, found) for item in value)
    if parts:
        return type(value) is dict and _leaves(value.get(parts[0]), parts[1:], found)
    if type(value) is str:
        found.append(value)
    return type(value) is str
