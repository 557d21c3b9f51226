"""Documents to JSON text and back, without losing dates, object identifiers or bytes, and without NaN."""

from __future__ import annotations

import base64
import json
import logging
import math
import re
from datetime import datetime
from typing import Any

import numpy as np
import orjson
from bson import ObjectId

PLAIN = " "
"""Start of texts that the quick parser reads as the standard library does."""

_LARGE_INTEGER = re.compile(r"[\[,:-][0-9]{19}")
_LOGGER = logging.getLogger(__name__)


def encode(document: dict[str, Any]) -> str:
    """Return the JSON text of a document; numbers that are not finite become null, and a warning names them.

    Dates, object identifiers and bytes become ``{"$date": ...}``, ``{"$oid": ...}`` and ``{"$binary": ...}``, which
    :func:`decode` turns back.  The text is ASCII.  It starts with a space if it holds nothing but what the quick parser
    reads alike: no integers beyond 64 bits, no halves of surrogate pairs, none of the objects above.

    Example:
        >>> encode({"n": 2.0, "when": datetime(2026, 1, 2)})
        '{"n":2.0,"when":{"$date":"2026-01-02T00:00:00"}}'
        >>> encode({"n": 2.0})
        ' {"n":2.0}'
    """
    try:
        text = json.dumps(document, default=_foreign, allow_nan=False, separators=(",", ":"))
    except ValueError:
        lost: list[str] = []
        text = json.dumps(_finite(document, "", lost), default=_foreign, allow_nan=False, separators=(",", ":"))
        _LOGGER.warning("Stored null for numbers that are not finite: %s", ", ".join(lost[:8]))
    return PLAIN + text if _is_plain(document, text) else text


def decode(text: str) -> dict[str, Any]:
    """Return the document of a JSON text written by :func:`encode`; nothing is executed or instantiated."""
    if text.startswith(PLAIN):
        document: dict[str, Any] = orjson.loads(text)
        return document
    if '"$' in text:
        return json.loads(text, object_hook=_own)
    return json.loads(text)


def _is_plain(document: dict[str, Any], text: str) -> bool:
    """Return whether the quick parser reads a text as the standard library does."""
    if '"$' in text:
        return False
    try:
        # It refuses to write what it would not read: integers beyond 64 bits, halves of surrogate pairs.
        orjson.dumps(document)
    except TypeError:
        # Or what it does not know, such as arrays: then the text itself decides.
        if _LARGE_INTEGER.search(text):
            return False
        try:
            orjson.loads(text)
        except orjson.JSONDecodeError:
            return False
    return True


def _foreign(value: Any) -> Any:
    if isinstance(value, datetime):
        return {"$date": value.isoformat()}
    if isinstance(value, ObjectId):
        return {"$oid": str(value)}
    if isinstance(value, bytes):
        return {"$binary": base64.b64encode(value).decode("ascii")}
    if isinstance(value, np.ndarray | np.generic) and not np.iscomplexobj(value):
        return _finite(value.tolist(), "", [])
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    from monty.json import jsanitize

    return jsanitize(value, allow_bson=True, recursive_msonable=True)


def _own(value: dict[str, Any]) -> Any:
    if len(value) != 1:
        return value
    ((key, content),) = value.items()
    try:
        if key == "$date":
            return datetime.fromisoformat(content)
        if key == "$oid":
            return ObjectId(content)
        if key == "$binary":
            return base64.b64decode(content, validate=True)
    except (TypeError, ValueError):
        return value
    return value


def _finite(value: Any, path: str, lost: list[str]) -> Any:
    if isinstance(value, np.ndarray | np.generic) and not np.iscomplexobj(value):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        lost.append(path or "value")
        return None
    if isinstance(value, dict):
        return {key: _finite(item, f"{path}.{key}" if path else str(key), lost) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, f"{path}.{i}" if path else str(i), lost) for i, item in enumerate(value)]
    return value
