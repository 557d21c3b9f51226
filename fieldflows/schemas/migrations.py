"""From older schema versions of documents to the present one, a step at a time.

A document class whose ``latest_version`` is raised gets a function here for the version that it leaves, unless all that
changed is new fields with defaults.  Functions take and return JSON types; what is stored is never changed by reading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Migration = Callable[[dict[str, Any]], dict[str, Any]]

MIGRATIONS: dict[tuple[str, int], Migration] = {}
"""Function by name of the document class and schema version that it takes; it returns the next version."""


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
