"""Which top-level fields of documents a question looks at, and documents that hold only these.

A document is long; where a filter and a projection look at a few fields, SQLite cuts these out of the text, and only
they are decoded.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from fieldflows.store import encoding

_FIELD = re.compile(r"[A-Za-z0-9_@ -]+")
_MOST_FIELDS = 40
_HAS_ARROW = sqlite3.sqlite_version_info >= (3, 38)


def needed(criteria: Mapping[str, Any], kept: set[str] | None, sort: Mapping[str, Any]) -> list[str] | None:
    """Return the top-level fields that a question looks at, or None if documents are to be read whole.

    Args:
        criteria: Mongo filter.
        kept: Top-level fields that are returned in whole or in part; None for all.
        sort: Sort order by field.
    """
    asked = roots(criteria)
    if not _HAS_ARROW or kept is None or asked is None:
        return None
    fields = sorted(kept | asked | {field.split(".")[0] for field in sort})
    known = 0 < len(fields) <= _MOST_FIELDS and all(_FIELD.fullmatch(field) for field in fields)
    return fields if known else None


def expressions(fields: Sequence[str] | None) -> str:
    """Return the SQL expressions of the JSON texts of fields, or of the whole document (None)."""
    return "doc" if fields is None else ", ".join(f"doc -> '$.\"{field}\"'" for field in fields)


def assembled(fields: Sequence[str] | None, parts: Sequence[str | None]) -> dict[str, Any]:
    """Return the document that has the fields, from the texts of :func:`expressions`."""
    if fields is None:
        return encoding.decode(str(parts[0]))
    found = [f'"{field}":{text}' for field, text in zip(fields, parts, strict=True) if text is not None]
    return encoding.decode(f"{{{','.join(found)}}}")


def roots(criteria: Mapping[str, Any] | None) -> set[str] | None:
    """Return the top-level fields on which a filter depends, or None if that cannot be told.

    Example:
        >>> sorted(roots({"$or": [{"a.b": 1}, {"c": {"$gt": 2}}]}))
        ['a', 'c']
    """
    found: set[str] = set()
    for key, value in (criteria or {}).items():
        if not key.startswith("$"):
            found.add(key.split(".")[0])
            continue
        if key not in ("$and", "$or", "$nor") or not isinstance(value, list | tuple):
            return None
        for item in value:
            inner = roots(item) if isinstance(item, Mapping) else None
            if inner is None:
                return None
            found |= inner
    return found
