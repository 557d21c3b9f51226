"""Stored rows in the present schema version, and which of two rows of one key is to be kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fieldflows.schemas.common import Document
from fieldflows.schemas.dielectric import DielectricDocument
from fieldflows.schemas.failure import FailureDocument
from fieldflows.schemas.ferroelectric import SpontaneousPolarizationDocument
from fieldflows.schemas.relaxation import RelaxationDocument
from fieldflows.store.collections import PORTION, KeyedCollection

if TYPE_CHECKING:
    from fieldflows.store.failures import FailuresCollection

RESULT_CLASSES: dict[str, type[Document]] = {
    "dielectric": DielectricDocument,
    "relax": RelaxationDocument,
    "spontaneous_polarization": SpontaneousPolarizationDocument,
}
"""Document class of a result by its task."""

Progress = Callable[[int, int], None]
"""Called with the number of rows that are done and of all."""

_EARLIEST = datetime.min.replace(tzinfo=UTC)


@dataclass
class Migrated:
    """What became of the rows of older schema versions.

    Attributes:
        migrated: Rows that are in the present version now.
        merged: Rows whose new key another row has that is to be kept.
        unreadable: Rows that are no documents of the version that they name; left as they are.
        problems: The first reasons of these.
    """

    migrated: int = 0
    merged: int = 0
    unreadable: int = 0
    problems: list[str] = field(default_factory=list)


def in_present_version(row: dict[str, Any]) -> dict[str, Any]:
    """Return a stored row as its document is written today; one that is so already, or no document of ours, as it is.

    Dates, which some programs put into MongoDB as such, become texts.

    Raises:
        DataError: If the row is no document of the schema version that it names.
    """
    row = {name: value for name, value in row.items() if name != "_id"}
    kind = FailureDocument if "failure_key" in row else RESULT_CLASSES.get(str(row.get("task")))
    if kind is None or kind.latest_version is None or not isinstance(row.get("schema_version"), int):
        return row
    if row["schema_version"] >= kind.latest_version and not _has_dates(row):
        return row
    return kind.from_json_dict(with_zone(row)).to_json_dict()


def is_better(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether a row is to be kept rather than another one of the same key.

    One that holds the ionic part rather than one that does not; then the one that was created later; then the one of
    the newer schema version.
    """
    return _worth(row) > _worth(other)


def put_better(collection: KeyedCollection, rows: list[dict[str, Any]]) -> int:
    """Store the rows that are better than what is there under their keys, and return how many these are.

    Args:
        collection: Results.
        rows: Rows that may have been computed long ago.

    Raises:
        StoreError: If the store cannot be read or written.
    """
    name = collection.key_field
    known = {row[name]: row for row in collection.fetch([row[name] for row in rows])}
    return collection.replace([row for row in rows if row[name] not in known or is_better(row, known[row[name]])])


def created_at(row: dict[str, Any]) -> datetime:
    """Return when a result or failure was created; the earliest date there is if it does not say."""
    value = row.get("created_at") or (row.get("provenance") or {}).get("created_at")
    try:
        found = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        return _EARLIEST
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def migrate(
    collection: KeyedCollection | FailuresCollection, dry_run: bool = False, progress: Progress | None = None
) -> Migrated:
    """Bring the rows of a collection that have an older schema version to the present one, in place.

    A row whose key changes is written under the new one before the old one is removed, so that an interruption loses
    nothing; running it again goes on.

    Args:
        collection: Results or failures.
        dry_run: Only count.
        progress: Called after each portion.
    """
    counts, name = Migrated(), collection.key_field
    latest = {kind: cls.latest_version for kind, cls in RESULT_CLASSES.items()}
    older: list[dict[str, Any]] = [{"task": kind, "schema_version": {"$lt": number}} for kind, number in latest.items()]
    if name == "failure_key":
        older = [{"schema_version": {"$lt": FailureDocument.latest_version}}]
    keys = collection.keys({"$or": older})
    for start in range(0, len(keys), PORTION):
        fresh: dict[str, dict[str, Any]] = {}
        done: list[str] = []
        for row in collection.fetch(keys[start : start + PORTION]):
            try:
                new = in_present_version(row)
            except Exception as error:  # one row that cannot be read must not stop the others
                counts.unreadable += 1
                counts.problems = [*counts.problems, f"{row[name]}: {error}"][:5]
                continue
            done.append(row[name])
            if new[name] in fresh and not is_better(new, fresh[new[name]]):
                counts.merged += 1
                continue
            counts.merged += new[name] in fresh
            fresh[new[name]] = new
        moved = [key for key in fresh if key not in done]
        for known in collection.fetch(moved):
            if not is_better(fresh[known[name]], known):
                del fresh[known[name]]
            counts.merged += 1
        counts.migrated += len(fresh)
        if not dry_run:
            collection.replace(list(fresh.values()))
            collection.remove([key for key in done if key not in fresh])
        if progress is not None:
            progress(min(start + PORTION, len(keys)), len(keys))
    return counts


def with_zone(value: Any) -> Any:
    """Return a document whose dates say that they are in UTC, which MongoDB leaves out."""
    if isinstance(value, dict):
        return {key: with_zone(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_zone(item) for item in value]
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value


def _worth(row: dict[str, Any]) -> tuple[bool, datetime, int]:
    version = row.get("schema_version")
    has_ionic = row.get("status_ionic") not in (None, "not_requested", "no_energy_surface")
    return has_ionic, created_at(row), version if isinstance(version, int) else 0


def _has_dates(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_dates(item) for item in value.values())
    return any(_has_dates(item) for item in value) if isinstance(value, list) else isinstance(value, datetime)
