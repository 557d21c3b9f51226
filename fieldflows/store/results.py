"""The results collection: one flat document per computed structure, found again by its deterministic key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fieldflows.errors import StoreError
from fieldflows.schemas.dielectric import DielectricDocument
from fieldflows.store.patience import patiently

if TYPE_CHECKING:
    from jobflow import JobStore
    from maggma.core import Store

    from fieldflows.schemas.common import Document

RESULTS_COLLECTION = "results"
"""Name of the collection, and of the additional store of a JobStore, that holds results."""

INDEXED_FIELDS = (
    "key",
    "material_id",
    "formula_pretty",
    "chemsys",
    "nelements",
    "nsites",
    "volume",
    "spacegroup_number",
    "crystal_system",
    "n",
    "e_electronic",
    "e_ionic",
    "e_total",
    "born_charge_max",
    "band_gap",
    "insulating",
    "status_electronic",
    "status_ionic",
    "provenance.model.name",
    "provenance.model.sha256",
)
"""Fields by which results are found and sorted quickly."""

SELECTIVE_FIELDS = ("key", "material_id", "formula_pretty", "chemsys", "spacegroup_number")
"""Those of them of which few results share a value."""

CATEGORY_FIELDS = (
    "nelements",
    "crystal_system",
    "insulating",
    "status_electronic",
    "status_ionic",
    "provenance.model.name",
    "provenance.model.sha256",
)
"""Those of them that have few different values."""

INDEXED_LISTS = ("elements", "flags.code")
"""Lists of which this is true for their entries."""

_BATCH = 500
_T = TypeVar("_T")


class ResultsCollection:
    """Results by key: written once per structure, model and settings, whatever runs or reruns.

    Args:
        store: The maggma store of the documents.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._indexed = False

    @classmethod
    def of(cls, job_store: JobStore) -> ResultsCollection:
        """Return the results that belong to a JobStore.

        That is its additional store ``results``; without one, a collection ``results`` in the file or database that
        holds the documents of the jobs.

        Raises:
            StoreError: If the JobStore keeps its documents in a store that has no further collections.
        """
        from maggma.stores import MemoryStore, MongoStore

        from fieldflows.store.sqlite import SQLiteStore

        if RESULTS_COLLECTION in job_store.additional_stores:
            return cls(job_store.additional_stores[RESULTS_COLLECTION])
        docs = job_store.docs_store
        if isinstance(docs, SQLiteStore):
            sibling: Store = SQLiteStore(
                docs.path, RESULTS_COLLECTION, "key", docs.journal_mode, docs.synchronous, docs.timeout
            )
        elif type(docs) is MemoryStore:
            sibling = MemoryStore(collection_name=RESULTS_COLLECTION, key="key")
            sibling.connect()
        elif isinstance(docs, MongoStore) and not isinstance(docs, MemoryStore):
            settings = {k: v for k, v in docs.as_dict().items() if not k.startswith("@")}
            settings |= {"collection_name": RESULTS_COLLECTION, "key": "key"}
            sibling = type(docs)(**settings)
        else:
            raise StoreError(
                f"The JobStore keeps its documents in a {type(docs).__name__}, which has no place for results.",
                f"Add an additional store named {RESULTS_COLLECTION!r} to it.",
            )
        job_store.additional_stores[RESULTS_COLLECTION] = sibling
        return cls(sibling)

    def put(self, documents: Iterable[Document | dict[str, Any]]) -> int:
        """Store documents, replacing those with the same key; return how many.

        A database server that does not answer is tried again for some minutes.

        Raises:
            StoreError: If a document has no key, or the store cannot be written.
        """
        rows = [item if isinstance(item, dict) else item.to_json_dict() for item in documents]
        keyless = next((row for row in rows if not row.get("key")), None)
        if keyless is not None:
            raise StoreError(f"A document of {keyless.get('formula_pretty', 'unknown formula')} has no key.")
        if rows:
            self._index()
            self._patiently(lambda: self.store.update(rows, key="key"))
        return len(rows)

    def fetch(self, keys: Sequence[str]) -> list[dict[str, Any]]:
        """Return the stored documents of those of the keys that there are."""
        return self._among(keys, None)

    def existing(self, keys: Sequence[str]) -> set[str]:
        """Return those of the keys that are stored already."""
        return {document["key"] for document in self._among(keys, ["key"])}

    def _among(self, keys: Sequence[str], properties: list[str] | None) -> list[dict[str, Any]]:
        def portion(wanted: list[str]) -> list[dict[str, Any]]:
            return list(self.store.query({"key": {"$in": wanted}}, properties))

        self._index()
        found: list[dict[str, Any]] = []
        for start in range(0, len(keys), _BATCH):
            found += self._patiently(partial(portion, list(keys[start : start + _BATCH])))
        return found

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the stored document of a key, or None."""
        return next(self.query({"key": key}), None)

    def query(
        self,
        criteria: dict[str, Any] | None = None,
        properties: list[str] | None = None,
        sort: dict[str, int] | None = None,
        limit: int = 0,
    ) -> Iterator[dict[str, Any]]:
        """Yield stored documents, as plain dictionaries, that match a Mongo filter."""
        self._index()
        for document in self.store.query(criteria, properties, sort=sort, limit=limit):
            document.pop("_id", None)
            yield document

    def ranked(
        self,
        criteria: dict[str, Any] | None,
        field: str,
        descending: bool = True,
        properties: list[str] | None = None,
        limit: int = 0,
    ) -> Iterator[dict[str, Any]]:
        """Yield stored documents that match a Mongo filter by the value of a field; those without one come last."""
        order = {field: -1 if descending else 1}
        count = 0
        for absent in ({"$ne": None}, None):
            if limit and count == limit:
                return
            part = {"$and": [*([criteria] if criteria else []), {field: absent}]}
            for document in self.query(part, properties, order if absent else None, limit - count if limit else 0):
                count += 1
                yield document

    def count(self, criteria: dict[str, Any] | None = None) -> int:
        """Return the number of stored documents that match a Mongo filter."""
        self._index()
        return self.store.count(criteria)

    def _index(self) -> None:
        if not self._indexed:
            self._patiently(self.store.connect)
            self._patiently(self._ensure_indexes)
            self._indexed = True

    def _ensure_indexes(self) -> None:
        from fieldflows.store.sqlite import SQLiteStore

        self.store.ensure_index("key")
        if isinstance(self.store, SQLiteStore):
            self.store.ensure_lookup(INDEXED_FIELDS, INDEXED_LISTS, SELECTIVE_FIELDS, CATEGORY_FIELDS)
            return
        for field in INDEXED_FIELDS[1:] + INDEXED_LISTS:
            self.store.ensure_index(field)

    def _patiently(self, action: Callable[[], _T]) -> _T:
        return patiently(action, self.store.name)


def publish(job_store: JobStore, criteria: dict[str, Any] | None = None) -> int:
    """Copy the results in the outputs of jobs to the results collection; return how many.

    Needed after runs whose workers had no access to the database; harmless otherwise, because results are stored by
    key.

    Args:
        job_store: The store of the jobs.
        criteria: Mongo filter for jobs; all screening jobs by default.
    """
    results = ResultsCollection.of(job_store)
    count = 0
    for row in job_store.query({"metadata.task": "dielectric", **(criteria or {})}, properties=["output"]):
        output = row.get("output") or {}
        documents = output.get("results", [output] if output.get("key") else [])
        count += results.put([DielectricDocument.from_json_dict(_with_zone(document)) for document in documents])
    return count


def _with_zone(value: Any) -> Any:
    """Return a document whose dates say that they are in UTC, which MongoDB leaves out."""
    if isinstance(value, dict):
        return {key: _with_zone(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_zone(item) for item in value]
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value
