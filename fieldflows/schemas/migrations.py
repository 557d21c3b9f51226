"""From older schema versions of documents to the present one, a step at a time.

A document class whose ``latest_version`` is raised gets a function here for the version that it leaves, unless all that
changed is new fields with defaults.  Functions take and return JSON types; what is stored is never changed by reading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fieldflows.schemas.identity import document_key, settings_hash

Migration = Callable[[dict[str, Any]], dict[str, Any]]

MIGRATIONS: dict[tuple[str, int], Migration] = {}
"""Function by name of the document class and schema version that it takes; it returns the next version."""


_AROUND_THE_PROPERTY = ("relax", "head", "hessian_head")
"""Settings of the steps around a property, which stand among its own in the provenance."""


def migration(document: str, from_version: int) -> Callable[[Migration], Migration]:
    """Return a decorator that registers the step from one schema version of a document class to the next.

    Args:
        document: Name of the class.
        from_version: Schema version of what the function takes.

    Raises:
        ValueError: If there is such a step already.
    """

    def register(function: Migration) -> Migration:
        if (document, from_version) in MIGRATIONS:
            raise ValueError(f"{document} has a migration from version {from_version} already")
        MIGRATIONS[document, from_version] = function
        return function

    return register


def migrated(document: str, data: Mapping[str, Any], latest: int) -> Mapping[str, Any]:
    """Return the data of a document in its latest schema version; as they are if they carry no older one.

    Args:
        document: Name of the class.
        data: The document in JSON types; not changed.
        latest: Its latest schema version.

    Raises:
        ValueError: If a step fails, because the data are not of their version.
    """
    version = data.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int) or not 0 < version < latest:
        return data
    current = dict(data)
    for number in range(version, latest):
        step = MIGRATIONS.get((document, number))
        try:
            current = {**(current if step is None else step(current)), "schema_version": number + 1}
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"no {document} of schema version {number}: {type(error).__name__} {error}") from error
    return current


@migration("DielectricDocument", 1)
def _dielectric_key_without_ionic(data: dict[str, Any]) -> dict[str, Any]:
    """The key no longer depends on whether the ionic part was asked for, which is added to the same document.

    Key and hash are worked out anew from what the provenance keeps.  Where that does not lead to the stored hash, as in
    documents of other programs, both are left: the document stays what it is, but no new computation finds it.
    """
    facts = data["provenance"]
    settings = {name: value for name, value in facts["settings"].items() if name not in _AROUND_THE_PROPERTY}
    around = {name: value for name, value in facts["settings"].items() if name in _AROUND_THE_PROPERTY}
    model, other = facts["model"], facts.get("hessian_model")
    whole = {
        "settings": settings,
        "extra": around,
        "dtype": model["dtype"],
        "hessian_model": None if other is None else [other["sha256"], other["dtype"]],
    }
    if settings_hash(whole) != facts["settings_hash"]:
        return data
    whole["settings"] = {name: value for name, value in settings.items() if name != "ionic"}
    digest = settings_hash(whole)
    key = document_key("dielectric", facts["input_structure_hash"], model["sha256"], digest, 2)
    return {**data, "key": key, "provenance": {**facts, "settings_hash": digest}}
