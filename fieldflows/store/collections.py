"""Collections beside the documents of jobs, in the same file or database, and what those of our own share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from fieldflows.errors import StoreError
from fieldflows.store.patience import patiently

if TYPE_CHECKING:
    from jobflow import JobStore
    from maggma.core import Store

_KNOWN = "_fieldflows_collections"

_DUPLICATE_KEY = 11000

PORTION = 500
"""Keys in one question to the store."""


def sibling(job_store: JobStore, name: str, key: str) -> Store:
    """Return the collection of a name that belongs to a JobStore, the same object whenever it is asked for.

    That is its additional store of this name; without one, a collection in the file or database that holds the
    documents of the jobs.

    Args:
        job_store: The store of the jobs.
        name: Name of the collection and of the additional store.
        key: Field that identifies its documents.

    Raises:
        StoreError: If the JobStore keeps its documents in a store that has no further collections.
    """
    if name in job_store.additional_stores:
        return job_store.additional_stores[name]
    known = job_store.__dict__.setdefault(_KNOWN, {})
    if name not in known:
        known[name] = _beside(job_store.docs_store, name, key)
    return known[name]


def _beside(docs: Store, name: str, key: str) -> Store:
    """Return a collection in the file or database that holds the documents of the jobs."""
    from maggma.stores import MemoryStore, MongoStore

    from fieldflows.store.sqlite import SQLiteStore

    if isinstance(docs, SQLiteStore):
        return SQLiteStore(docs.path, name, key, docs.journal_mode, docs.synchronous, docs.timeout)
    if type(docs) is MemoryStore:
        # in the same database in memory, so that it is the same collection whenever it is asked for
        docs.connect()
        found = MemoryStore(collection_name=name, key=key)
        found._coll = docs._coll.database[name]
        return found
    if isinstance(docs, MongoStore) and not isinstance(docs, MemoryStore):
        settings = {k: v for k, v in docs.as_dict().items() if not k.startswith("@")}
        return type(docs)(**settings | {"collection_name": name, "key": key})
    raise StoreError(
        f"The JobStore keeps its documents in a {type(docs).__name__}, which has no place for {name}.",
        f"Add an additional store named {name!r} to it.",
    )


class KeyedCollection:
    """Documents that one field identifies, read and written with patience.

    Args:
        store: The maggma store of the documents.
    """

    key_field: ClassVar[str]
    """Field that identifies a document."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._indexed = False

    def put(self, documents: Iterable[dict[str, Any]]) -> int:
        """Store documents, replacing those with the same key; return how many.

        Raises:
            StoreError: If the store cannot be written.
        """
        return self.replace(list(documents))

    def replace(self, rows: list[dict[str, Any]]) -> int:
        """Store rows word for word, replacing those with the same key; return how many.

        Raises:
            StoreError: If the store cannot be written.
        """
        if rows:
            self._prepare()
            patiently(partial(self._write, rows), self.store)
        return len(rows)

    def keys(self, criteria: dict[str, Any] | None = None) -> list[str]:
        """Return the keys of the stored documents that match a Mongo filter."""

        def found() -> list[str]:
            rows = self.store.query(criteria or {}, [self.key_field])
            return [row[self.key_field] for row in rows if row.get(self.key_field)]

        self._prepare()
        return patiently(found, self.store)

    def fetch(self, keys: Sequence[str], properties: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Return the stored documents of those of the keys that there are.

        Args:
            keys: The keys.
            properties: Fields that are wanted; all by default.
        """
        found = self._among(keys, None if properties is None else list(properties))
        for document in found:
            document.pop("_id", None)
        return found

    def existing(self, keys: Sequence[str]) -> set[str]:
        """Return those of the keys that are stored already."""
        return {document[self.key_field] for document in self._among(keys, [self.key_field])}

    def remove(self, keys: Sequence[str]) -> None:
        """Remove the documents of those of the keys that there are."""
        self._prepare()
        for start in range(0, len(keys), PORTION):
            criteria = {self.key_field: {"$in": list(keys[start : start + PORTION])}}
            patiently(partial(self.store.remove_docs, criteria), self.store)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the stored document of a key, or None."""
        return next(iter(self.fetch([key])), None)

    def query(
        self,
        criteria: dict[str, Any] | None = None,
        properties: list[str] | None = None,
        sort: dict[str, int] | None = None,
        limit: int = 0,
    ) -> Iterator[dict[str, Any]]:
        """Yield stored documents, as plain dictionaries, that match a Mongo filter."""
        self._prepare()
        for document in self.store.query(criteria, properties, sort=sort, limit=limit):
            document.pop("_id", None)
            yield document

    def count(self, criteria: dict[str, Any] | None = None) -> int:
        """Return the number of stored documents that match a Mongo filter."""
        self._prepare()
        return int(patiently(partial(self.store.count, criteria), self.store))

    def _among(self, keys: Sequence[str], properties: list[str] | None) -> list[dict[str, Any]]:
        def portion(wanted: list[str]) -> list[dict[str, Any]]:
            return list(self.store.query({self.key_field: {"$in": wanted}}, properties))

        self._prepare()
        found: list[dict[str, Any]] = []
        for start in range(0, len(keys), PORTION):
            found += patiently(partial(portion, list(keys[start : start + PORTION])), self.store)
        return found

    def _prepare(self) -> None:
        if not self._indexed:
            patiently(self.store.connect, self.store)
            patiently(self._ensure_indexes, self.store)
            self._indexed = True

    def _write(self, rows: list[dict[str, Any]]) -> None:
        from pymongo.errors import BulkWriteError

        try:
            self.store.update(rows, key=self.key_field)
        except BulkWriteError as error:
            if any(item.get("code") != _DUPLICATE_KEY for item in (error.details or {}).get("writeErrors", [{}])):
                raise
            # another client put the same key at this moment: now it is there, and is replaced
            self.store.update(rows, key=self.key_field)

    def _ensure_indexes(self) -> None:
        # without a unique one, a MongoDB holds a new key twice if two clients put it at once
        if not self.store.ensure_index(self.key_field, unique=True):
            self.store.ensure_index(self.key_field)
