"""A maggma store in one SQLite file, queried with Mongo's language."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from maggma.core import Sort, Store

from fieldflows.errors import StoreError
from fieldflows.store import encoding, partial, prefilter
from fieldflows.store.filters import matches, refuse_code, sort_documents
from fieldflows.store.lookup import Lookup
from fieldflows.store.projection import kept_roots, project
from fieldflows.store.sqlite_file import SQLiteFile

_COLLECTION = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_FETCH, _SPARE = 200, 20


class SQLiteStore(Store):
    """One collection of documents in one SQLite file; several collections and processes may share the file.

    No server is needed.  Documents are JSON; an update replaces the document with the same key or inserts it, in one
    transaction for all documents of the call.  Filters, sort orders and projections follow MongoDB: an SQL condition
    picks a superset by index, and mongomock decides exactly.  Numbers that are not finite are stored as null.

    Args:
        path: The file.  ``~`` is expanded and the path made absolute, so that jobs may change their directory.
        collection_name: Name of the collection.
        key: Field that identifies a document when :meth:`update` is not told otherwise.
        journal_mode: ``"auto"`` (write-ahead log, or a rollback journal on network file systems), ``"wal"`` or
            ``"delete"``.
        synchronous: ``"normal"``: survives the death of the process; ``"full"``: also a power cut.
        timeout: Seconds to wait while another process writes.
        **kwargs: Further arguments of a maggma store (``last_updated_field``, ``last_updated_type``, ``validator``).

    Raises:
        StoreError: On first use, if the file cannot be opened, is damaged or belongs to something else.

    Example:
        >>> store = SQLiteStore("example.db", "results", key="key")  # doctest: +SKIP
        >>> store.update({"key": "a", "n": 2.1})  # doctest: +SKIP
        >>> store.count({"n": {"$gt": 2}})  # doctest: +SKIP
        1
    """

    def __init__(
        self,
        path: str | Path,
        collection_name: str = "outputs",
        key: str = "uuid",
        journal_mode: str = "auto",
        synchronous: str = "normal",
        timeout: float = 60.0,
        **kwargs: Any,
    ) -> None:
        if not _COLLECTION.fullmatch(collection_name):
            raise StoreError(
                f"{collection_name!r} cannot be the name of a collection.",
                "Use letters, digits, - and _, and start with a letter.",
            )
        if journal_mode not in ("auto", "wal", "delete"):
            raise StoreError(f"journal_mode must be auto, wal or delete, found {journal_mode!r}.")
        if synchronous not in ("normal", "full"):
            raise StoreError(f"synchronous must be normal or full, found {synchronous!r}.")
        self.path = str(Path(path).expanduser().absolute())
        self.collection_name = collection_name
        self.journal_mode = journal_mode
        self.synchronous = synchronous
        self.timeout = timeout
        self.kwargs = kwargs
        self._file = SQLiteFile(Path(self.path), journal_mode, synchronous, timeout)
        self._prepared: tuple[Any, set[str]] = (None, set())
        self._lookup: Lookup | None = None
        super().__init__(key=key, **kwargs)

    @property
    def name(self) -> str:
        """Where the documents are: file and collection."""
        return f"sqlite://{self.path}#{self.collection_name}"

    @property
    def _collection(self) -> Any:
        raise StoreError(
            f"{self.name} has no pymongo collection.", "Use query(), count(), distinct(), groupby() and update()."
        )

    def connect(self, force_reset: bool = False) -> None:
        """Open the file now rather than on first use, so that a wrong path shows early.

        Raises:
            StoreError: If the file cannot be opened or belongs to something else.
        """
        if force_reset:
            self.close()
        with self._file.reading() as connection:
            self._prepare(connection)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        self._file.close()
        self._prepared = (None, set())

    def count(self, criteria: dict[str, Any] | None = None) -> int:
        """Return the number of documents that match a Mongo filter."""
        if not criteria:
            with self._file.reading() as connection:
                self._prepare(connection)
                return int(connection.execute(f"SELECT count(*) FROM {self._table}").fetchone()[0])
        return sum(1 for _ in self._matching(criteria, partial.needed(criteria, set(), {})))

    def query(
        self,
        criteria: dict[str, Any] | None = None,
        properties: dict[str, Any] | list[str] | None = None,
        sort: dict[str, Sort | int] | None = None,
        skip: int = 0,
        limit: int = 0,
    ) -> Iterator[dict[str, Any]]:
        """Yield the documents that match a Mongo filter.

        Args:
            criteria: Mongo filter; ``$where``, which would run code, is refused.
            properties: Fields to return, as a list or a Mongo projection.
            sort: Fields and directions (1 or −1), the first counts most.
            skip: Number of documents to leave out at the start.
            limit: Largest number of documents; 0 for all.

        Raises:
            StoreError: If the file cannot be read, or the filter is not valid.
        """
        needed = partial.needed(criteria or {}, kept_roots(properties), sort or {})
        found = self._looked_up(criteria or {}, needed, sort or {}, skip, limit)
        if found is None:
            documents = self._matching(criteria or {}, needed)
            if sort:
                documents = iter(sort_documents(list(documents), _directions(sort)))
            found = islice(documents, skip, skip + limit if limit else None)
        for document in found:
            yield project(document, properties)

    def update(self, docs: list[dict[str, Any]] | dict[str, Any], key: list[str] | str | None = None) -> None:
        """Replace or insert documents, all of them or, after an error, none.

        Args:
            docs: One document or several.
            key: Field or fields by which a document is the same as a stored one; the store's key by default.

        Raises:
            StoreError: If a document lacks a key field, or the file cannot be written.
        """
        chosen = key or self.key
        fields = [chosen] if isinstance(chosen, str) else list(chosen)
        documents = [docs] if isinstance(docs, Mapping) else list(docs)
        rows = [(self._identity(document, fields), encoding.encode(dict(document))) for document in documents]
        if not rows:
            return
        with self._file.writing() as connection:
            self._prepare(connection, fields)
            for document, (identity, text) in zip(documents, rows, strict=True):
                self._put(connection, self._find(connection, identity)[0], document, text)

    def change(
        self, identity: Mapping[str, Any], decide: Callable[[dict[str, Any] | None], dict[str, Any] | None]
    ) -> None:
        """Change one document by a function of it, in one transaction that no other process gets between.

        Args:
            identity: Fields and values by which the document is found.
            decide: Given the stored document, or None; returns the document to store, None to remove it, or the same
                object to leave it.

        Raises:
            StoreError: If the file cannot be written.
        """
        with self._file.writing() as connection:
            self._prepare(connection, list(identity))
            number, current = self._find(connection, dict(identity))
            wanted = decide(current)
            if wanted is current:
                return
            if wanted is None:
                connection.execute(f"DELETE FROM {self._table} WHERE id=?", (number,))
            else:
                self._put(connection, number, wanted, encoding.encode(dict(wanted)))

    def remove_docs(self, criteria: dict[str, Any]) -> None:
        """Remove the documents that match a Mongo filter."""
        numbers = [number for number, _ in self._numbered(criteria)]
        with self._file.writing() as connection:
            self._prepare(connection)
            connection.executemany(f"DELETE FROM {self._table} WHERE id=?", [(number,) for number in numbers])

    def ensure_index(self, key: str, unique: bool = False) -> bool:
        """Index a field, so that filters by it need not read every document; return whether that was possible.

        Uniqueness is not enforced (:meth:`update` keeps documents unique by the key that it is given): asking for it
        returns False.
        """
        if unique or prefilter.path_expression(key) is None:
            return False
        with self._file.writing() as connection:
            self._prepare(connection, [key])
        return True

    def ensure_lookup(
        self,
        scalars: Sequence[str],
        lists: Sequence[str] = (),
        selective: Sequence[str] = (),
        categories: Sequence[str] = (),
    ) -> None:
        """Keep a table of some fields, so that filters and sort orders by them take milliseconds.

        Answers are the same with and without it.  Documents that are there already are entered with the next
        question, about ten thousand in a second.

        Args:
            scalars: Dotted paths of numbers and texts.
            lists: Dotted paths of lists of texts, or of texts in lists of documents.
            selective: Those of the scalars of which a value is shared by few documents.
            categories: Those of the scalars that have few different values.
        """
        self._lookup = Lookup(self.collection_name, scalars, lists, selective, categories)
        with self._file.writing() as connection:
            self._prepare(connection)
            self._lookup.prepare(connection)

    def distinct(self, field: str, criteria: dict[str, Any] | None = None, all_exist: bool = False) -> list[Any]:
        """Return the distinct values of a field in the matching documents; values inside arrays count one by one."""
        from mongomock_ng.filtering import NOTHING, iter_key_candidates

        found: dict[str, Any] = {}
        for document in self._matching(criteria or {}):
            for candidate in iter_key_candidates(field, document):
                if candidate is NOTHING:
                    continue
                for value in candidate if isinstance(candidate, list) else [candidate]:
                    found.setdefault(encoding.encode({"": value}), value)
        return list(found.values())

    def groupby(
        self,
        keys: list[str] | str,
        criteria: dict[str, Any] | None = None,
        properties: dict[str, Any] | list[str] | None = None,
        sort: dict[str, Sort | int] | None = None,
        skip: int = 0,
        limit: int = 0,
    ) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Yield (values of the keys, documents) for each combination of values; documents without a key are left out.

        ``skip`` and ``limit`` apply to the documents before grouping, as in maggma's other stores.
        """
        from pydash import get, has, set_

        names = [keys] if isinstance(keys, str) else list(keys)
        wanted = list(properties) + names if properties else None
        groups: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
        for document in self.query(criteria, wanted, sort, skip, limit):
            if not all(has(document, name) for name in names):
                continue
            values = [get(document, name) for name in names]
            identity = encoding.encode({"": values})
            if identity not in groups:
                label: dict[str, Any] = {}
                for name, value in zip(names, values, strict=True):
                    set_(label, name, value)
                groups[identity] = (label, [])
            groups[identity][1].append(document)
        yield from groups.values()

    @property
    def _table(self) -> str:
        return f'"collection_{self.collection_name}"'

    def _prepare(self, connection: Any, fields: list[str] | None = None) -> None:
        """Create the table and the indexes of the key fields; cheap once done on this connection."""
        if self._prepared[0] is not connection:
            connection.execute(f"CREATE TABLE IF NOT EXISTS {self._table} (id INTEGER PRIMARY KEY, doc TEXT NOT NULL)")
            if self._lookup is not None:
                self._lookup.prepare(connection)
            self._prepared = (connection, set())
        for field in fields or [self.key]:
            expression = prefilter.path_expression(field)
            if field in self._prepared[1] or expression is None:
                continue
            sources = [expression, *(test.removesuffix("='array'") for test in prefilter.array_expressions(field))]
            for source in sources:
                label = re.sub(r'["$()\']', "", f"{self.collection_name}:{source}")
                connection.execute(f'CREATE INDEX IF NOT EXISTS "{label}" ON {self._table} ({source})')
            self._prepared[1].add(field)

    def _identity(self, document: Mapping[str, Any], fields: list[str]) -> dict[str, Any]:
        missing = [field for field in fields if field not in document]
        if missing:
            raise StoreError(f"A document for {self.name} has no field {missing[0]!r}, by which it would be found.")
        return {field: document[field] for field in fields}

    def _put(self, connection: Any, number: int | None, document: Mapping[str, Any], text: str) -> None:
        if number is None:
            added = connection.execute(f"INSERT INTO {self._table}(doc) VALUES (?)", (text,))
            number = int(added.lastrowid or 0)
        else:
            connection.execute(f"UPDATE {self._table} SET doc=? WHERE id=?", (text, number))
        if self._lookup is not None:
            self._lookup.enter(connection, number, document, text)

    def _find(self, connection: Any, identity: dict[str, Any]) -> tuple[int, dict[str, Any]] | tuple[None, None]:
        from mongomock_ng.filtering import filter_applies

        condition, parameters = prefilter.superset(identity)
        rows = connection.execute(f"SELECT id, doc FROM {self._table} WHERE {condition}", parameters)
        for number, text in rows:
            document = encoding.decode(text)
            if filter_applies(identity, document):
                return int(number), document
        return None, None

    def _matching(self, criteria: dict[str, Any], fields: list[str] | None = None) -> Iterator[dict[str, Any]]:
        for _, document in self._numbered(criteria, fields):
            yield document

    def _numbered(
        self, criteria: dict[str, Any], fields: list[str] | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        refuse_code(criteria)
        numbers = self._candidates(criteria, {}, 0)
        if numbers is None:
            condition, parameters = prefilter.superset(criteria)
            with self._file.reading() as connection:
                self._prepare(connection)
                found = connection.execute(f"SELECT id FROM {self._table} WHERE {condition}", parameters).fetchall()
            numbers = sorted(row[0] for row in found)
        yield from self._read(numbers, criteria, fields)

    def _looked_up(
        self,
        criteria: dict[str, Any],
        fields: list[str] | None,
        sort: Mapping[str, Sort | int],
        skip: int,
        limit: int,
    ) -> Iterator[dict[str, Any]] | None:
        """Return the documents found in order through the table of fields, or None where it does not help."""
        refuse_code(criteria)
        order = _directions(sort)
        wanted = skip + limit if limit else 0
        # The table may let a document through that does not match: some more are taken, then all.
        for size in (wanted + wanted // 10 + _SPARE, 0) if wanted else (0,):
            numbers = self._candidates(criteria, order, size)
            if numbers is None:
                return None
            rows = self._read(numbers, criteria, fields, min(wanted or _FETCH, _FETCH))
            found = islice((document for _, document in rows), skip, wanted or None)
            if not size:
                return found
            documents = list(found)
            if len(documents) == limit or len(numbers) < size:
                return iter(documents)
        return None

    def _candidates(self, criteria: dict[str, Any], order: Mapping[str, int], size: int) -> list[int] | None:
        """Return the rows that may match by the table of fields, or None where it does not help."""
        lookup = self._lookup
        if lookup is None or not lookup.serves(criteria, order):
            return None
        while True:
            with self._file.reading() as connection:
                self._prepare(connection)
                if not lookup.is_behind(connection):
                    return lookup.numbers(connection, criteria, order, size)
            with self._file.writing() as connection:
                lookup.catch_up(connection)

    def _read(
        self, numbers: list[int], criteria: dict[str, Any], fields: list[str] | None, ahead: int = _FETCH
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield those of the rows that match, in the order given; only some top-level fields, or all (None)."""
        # Documents come in portions, so that neither the memory nor a lock is held for the whole of a long loop.
        for start in range(0, len(numbers), ahead):
            portion = numbers[start : start + ahead]
            marks = ",".join("?" * len(portion))
            with self._file.reading() as connection:
                rows = connection.execute(
                    f"SELECT id, {partial.expressions(fields)} FROM {self._table} WHERE id IN ({marks})", portion
                ).fetchall()
            texts = {row[0]: row[1:] for row in rows}
            for number in portion:
                if number not in texts:
                    continue
                document = partial.assembled(fields, texts[number])
                if matches(criteria, document):
                    yield number, document


def _directions(sort: Mapping[str, Sort | int]) -> dict[str, int]:
    return {field: item.value if isinstance(item, Sort) else int(item) for field, item in sort.items()}
