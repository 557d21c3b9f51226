"""Mongo filters and sort orders on documents in memory."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from fieldflows.errors import StoreError


def refuse_code(criteria: Any) -> None:
    """Raise if a Mongo filter would run code.

    Raises:
        StoreError: If there is a ``$where`` anywhere in it.
    """
    if isinstance(criteria, Mapping):
        if "$where" in criteria:
            raise StoreError("A filter with $where would run code.", "Use the comparison operators instead.")
        for value in criteria.values():
            refuse_code(value)
    elif isinstance(criteria, list | tuple):
        for value in criteria:
            refuse_code(value)


def sort_documents(documents: list[dict[str, Any]], order: Mapping[str, int]) -> list[dict[str, Any]]:
    """Sort documents in place as MongoDB does, and return them.

    Args:
        documents: The documents.
        order: Directions (1 or −1) by field, the first counts most.
    """
    from mongomock_ng.filtering import resolve_sort_key

    for field, direction in reversed(list(order.items())):
        documents.sort(key=functools.partial(resolve_sort_key, field), reverse=direction < 0)
    return documents
