"""Documents to JSON text and back, without losing dates, object identifiers or bytes, and without NaN."""

from __future__ import annotations

import base64
import json
import logging
import math
from datetime import datetime
from typing import Any

import numpy as np
from bson import ObjectId

_LOGGER = logging.getLogger(__name__)


def encode(document: dict[str, Any]) -> str:
    """Return the JSON text of a document; numbers that are not finite become null, and a warning names them.

    Dates, object identifiers and bytes become ``{"$date": ...}``, ``{"$oid": ...}`` and ``{"$binary": ...}``, which
    :func:`decode` turns back.  The text is ASCII.

    Example:
        >>> encode({"n": 2.0, "when": datetime(2026, 1, 2)})
        '{"n":2.0,"when":{"$date":"2026-01-02T00:00:00"}}'
    """
    try:
        return json.dumps(document, default=_foreign, allow_nan=False, separators=(",", ":"))
    except ValueError:
        lost: list[str] = []
        text = json.dumps(_finite(document, "", lost), default=_foreign, allow_nan=False, separators=(",", ":"))
        _LOGGER.warning("Stored null for numbers that are not finite: %s", ", ".join(lost[:8]))
        return text


def decode(text: str) -> dict[str, Any]:
    """Return the document of a JSON text written by :func:`encode`; nothing is executed or instantiated."""
    if '"$' in text:
        return json.loads(text, object_hook=_own)
    return json.loads(text)


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
