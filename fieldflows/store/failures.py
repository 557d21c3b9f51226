"""The failures collection: one document per thing that failed, with how often it was tried."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fieldflows.errors import StoreError
from fieldflows.schemas.failure import FailureDocument
from fieldflows.store.collections import KeyedCollection, sibling

if TYPE_CHECKING:
    from jobflow import JobStore

FAILURES_COLLECTION = "failures"
"""Name of the collection, and of the additional store of a JobStore, that holds failures."""

INDEXED_FIELDS = ("key", "campaign", "material_id")
"""Fields by which failures are found quickly, beside their own key."""


class FailuresCollection(KeyedCollection):
    """Failures by what failed: trying again replaces the document and counts the attempt.

    Args:
        store: The maggma store of the documents.
    """

    key_field = "failure_key"

    @classmethod
    def of(cls, job_store: JobStore) -> FailuresCollection:
        """Return the failures that belong to a JobStore: its additional store ``failures``, or a collection beside.

        Raises:
            StoreError: If the JobStore keeps its documents in a store that has no further collections.
        """
        return cls(sibling(job_store, FAILURES_COLLECTION, cls.key_field))

    def put(self, documents: Iterable[FailureDocument | dict[str, Any]]) -> int:
        """Store failures, replacing those of the same key and adding their attempts; return how many keys.

        The same failure, told by its time of creation, is counted once, however often it is put: a driver that was
        killed may put what it kept again.

        Raises:
            StoreError: If a document has no failure key, or the store cannot be written.
        """
        rows: dict[str, dict[str, Any]] = {}
        for item in documents:
            row = dict(item) if isinstance(item, dict) else item.to_json_dict()
            if not row.get(self.key_field):
                raise StoreError(f"A failure of {row.get('formula') or 'unknown formula'} has no failure key.")
            rows[row[self.key_field]] = _counted(row, rows.get(row[self.key_field]))
        if rows:
            for known in self.fetch(list(rows)):
                rows[known[self.key_field]] = _counted(rows[known[self.key_field]], known)
        return self.replace(list(rows.values()))

    def documents(self, criteria: dict[str, Any] | None = None) -> Iterable[FailureDocument]:
        """Yield the failures that match a Mongo filter, as documents of the present schema version."""
        for row in self.query(criteria):
            yield FailureDocument.from_json_dict(row)

    def _ensure_indexes(self) -> None:
        super()._ensure_indexes()
        for field in INDEXED_FIELDS:
            self.store.ensure_index(field)


def _counted(row: dict[str, Any], known: dict[str, Any] | None) -> dict[str, Any]:
    """Return a failure with the attempts of one that is known already added."""
    if known is None:
        return row
    attempts, before = int(row.get("attempts") or 1), int(known.get("attempts") or 1)
    is_same = row.get("created_at") is not None and row["created_at"] == known.get("created_at")
    return {**row, "attempts": max(attempts, before) if is_same else attempts + before}
