"""Mongo projections: which fields of a document are returned."""

from __future__ import annotations

from typing import Any

from fieldflows.errors import StoreError


def project(
    document: dict[str, Any], properties: dict[str, Any] | list[str] | tuple[str, ...] | None
) -> dict[str, Any]:
    """Return the document with only the named fields, or without them.

    Args:
        document: The document; it is not changed, parts of it may be shared.
        properties: None for all; a list of dotted paths to keep; or a mapping of dotted paths to 1 (keep) or 0 (drop).

    Raises:
        StoreError: If keeping and dropping are mixed, or a value is an operator.

    Example:
        >>> project({"a": {"b": 1, "c": 2}, "d": 3}, ["a.b"])
        {'a': {'b': 1}}
    """
    if not properties:
        return document
    wanted = dict.fromkeys(properties, 1) if isinstance(properties, list | tuple) else dict(properties)
    wanted.pop("_id", None)
    for path, value in wanted.items():
        if not isinstance(value, bool | int | float):
            raise StoreError(f"The projection of {path!r} by {value!r} is not supported.", "Use 1 or 0.")
    kinds = {bool(value) for value in wanted.values()}
    if len(kinds) > 1:
        raise StoreError("A projection cannot both keep and drop fields.", "Use only 1 or only 0.")
    if not wanted:
        return document
    tree: dict[str, Any] = {}
    for path in wanted:
        _plant(tree, path.split("."))
    return _keep(document, tree) if kinds.pop() else _drop(document, tree)


def kept_roots(properties: dict[str, Any] | list[str] | tuple[str, ...] | None) -> set[str] | None:
    """Return the top-level fields of which a projection keeps something, or None if that may be any."""
    if not properties:
        return None
    if isinstance(properties, dict) and not all(value for path, value in properties.items() if path != "_id"):
        return None
    return {path.split(".")[0] for path in properties if path != "_id"} or None


def _plant(tree: dict[str, Any], parts: list[str]) -> None:
    for part in parts[:-1]:
        branch = tree.setdefault(part, {})
        if branch is True:
            return
        tree = branch
    tree[parts[-1]] = True


def _keep(value: Any, tree: dict[str, Any]) -> Any:
    kept = {}
    for key, item in value.items():
        branch = tree.get(key)
        if branch is True:
            kept[key] = item
        elif branch is not None and isinstance(item, dict):
            kept[key] = _keep(item, branch)
        elif branch is not None and isinstance(item, list):
            kept[key] = [_keep(entry, branch) for entry in item if isinstance(entry, dict)]
    return kept


def _drop(value: Any, tree: dict[str, Any]) -> Any:
    kept = {}
    for key, item in value.items():
        branch = tree.get(key)
        if branch is True:
            continue
        if branch is not None and isinstance(item, dict):
            kept[key] = _drop(item, branch)
        elif branch is not None and isinstance(item, list):
            kept[key] = [_drop(entry, branch) if isinstance(entry, dict) else entry for entry in item]
        else:
            kept[key] = item
    return kept
