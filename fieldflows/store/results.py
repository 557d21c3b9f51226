"""The results collection: one flat document per computed structure, found again by its deterministic key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from fieldflows.errors import StoreError
from fieldflows.schemas.dielectric import DielectricDocument
from fieldflows.store.collections import KeyedCollection, sibling
from fieldflows.store.versions import with_zone

if TYPE_CHECKING:
    from jobflow import JobStore

    from fieldflows.schemas.common import Document

RESULTS_COLLECTION = "results"
"""Name of the collection, and of the additional store of a JobStore, that holds results."""

INDEXED_FIELDS = (
    "key",
    "task",
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
    "task",
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


class ResultsCollection(KeyedCollection):
    """Results by key: written once per structure, model and settings, whatever runs or reruns.

    Args:
        store: The maggma store of the documents.
    """

    key_field = "key"

    @classmethod
    def of(cls, job_store: JobStore) -> ResultsCollection:
        """Return the results that belong to a JobStore.

        That is its additional store ``results``; without one, a collection ``results`` in the file or database that
        holds the documents of the jobs.

        Raises:
            StoreError: If the JobStore keeps its documents in a store that has no further collections.
        """
        found = sibling(job_store, RESULTS_COLLECTION, cls.key_field)
        job_store.additional_stores[RESULTS_COLLECTION] = found
        return cls(found)

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
        return self.replace(rows)

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

    def _ensure_indexes(self) -> None:
        from fieldflows.store.sqlite import SQLiteStore

        super()._ensure_indexes()
        if isinstance(self.store, SQLiteStore):
            self.store.ensure_lookup(INDEXED_FIELDS, INDEXED_LISTS, SELECTIVE_FIELDS, CATEGORY_FIELDS)
            return
        for field in INDEXED_FIELDS[1:] + INDEXED_LISTS:
            self.store.ensure_index(field)


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
        count += results.put([DielectricDocument.from_json_dict(with_zone(document)) for document in documents])
    return count
