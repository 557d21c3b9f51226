"""Where documents go: an embedded store in one file, or the MongoDB that the user configured.

``get_store()`` decides which, :class:`SQLiteStore` is the embedded one, and :class:`ResultsCollection` holds one
flat document per computed structure, which is what people query; :class:`FailuresCollection` one per failure.
"""

from __future__ import annotations

from fieldflows.store.failures import FailuresCollection
from fieldflows.store.results import ResultsCollection, publish
from fieldflows.store.select import STORE_VARIABLE, describe_store, embedded_path, get_store, is_new, require_jobflow
from fieldflows.store.sqlite import SQLiteStore
from fieldflows.store.transfer import publish_results

__all__ = [
    "STORE_VARIABLE",
    "FailuresCollection",
    "ResultsCollection",
    "SQLiteStore",
    "describe_store",
    "embedded_path",
    "get_store",
    "is_new",
    "publish",
    "publish_results",
    "require_jobflow",
]
