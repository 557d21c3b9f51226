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


def matches(criteria: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    """Return whether a document matches a Mongo filter.

    Args:
        criteria: The filter; an empty one is matched by all documents.
        document: The document.

    Raises:
        StoreError: If the filter cannot be applied.

    Example:
        >>> matches({"n": {"$gt": 2}}, {"n": 2.4}), matches({"n": {"$gt": 2}}, {})
        (True, False)
    """
    from mongomock_ng import OperationFailure
    from mongomock_ng.filtering import filter_applies

    try:
        return not criteria or bool(filter_applies(criteria, document))
    except (OperationFailure, NotImplementedError, TypeError) as error:
        raise StoreError(f"The filter {criteria} cannot be applied: {error}.") from error


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
