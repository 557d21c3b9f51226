"""Results and failures from one store to another: what is there already stays, what was interrupted goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldflows.errors import SettingsError
from fieldflows.store.addresses import hide_password
from fieldflows.store.collections import KeyedCollection
from fieldflows.store.failures import FailuresCollection
from fieldflows.store.results import ResultsCollection
from fieldflows.store.select import get_store, is_new
from fieldflows.store.sqlite import SQLiteStore
from fieldflows.store.versions import Progress, in_present_version, is_better

if TYPE_CHECKING:
    from jobflow import JobStore

PORTION = 200
"""Documents that are held at a time."""


@dataclass
class Counts:
    """What became of the documents of one collection.

    Attributes:
        new: Documents that the target did not have.
        replaced: Documents that took the place of one that is worth less.
        unchanged: Documents that the target had already, word for word.
        kept: Documents in place of which the target has one that is worth more.
        unreadable: Documents that are none of the schema version that they name; left out.
        problems: The first reasons of these.
    """

    new: int = 0
    replaced: int = 0
    unchanged: int = 0
    kept: int = 0
    unreadable: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass
class Published:
    """What became of results and failures."""

    results: Counts = field(default_factory=Counts)
    failures: Counts = field(default_factory=Counts)


def publish_results(
    source: JobStore | str | Path,
    target: JobStore | str | Path,
    criteria: dict[str, Any] | None = None,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> Published:
    """Copy results and failures from one store to another; copying again changes nothing.

    Documents are the same word for word, except that older schema versions become the present one on the way.  Where
    the target has another document of the same key, :func:`fieldflows.store.versions.is_better` decides: one with the
    ionic part before one without, then the later one.  An interrupted copy goes on when it is started again.  Outputs
    of jobs and large arrays are not copied.

    Args:
        source: A store, or what :func:`fieldflows.store.get_store` takes.
        target: Likewise.
        criteria: Mongo filter for results; with one, no failures are copied.
        progress: Called with the numbers of documents that are done and of all, collection by collection.
        dry_run: Only count; nothing is written, and no file is made.

    Raises:
        SettingsError: If both are the same store.
        StoreError: If one of them cannot be opened, read or written.
    """
    with _opened(source, must_exist=True) as giving, _opened(target, dry_run=dry_run) as taking:
        if _place(giving) == _place(taking):
            raise SettingsError(
                "Source and target are the same store.", "To bring its documents up to date: fieldflows store migrate."
            )
        found = Published()
        _copy(ResultsCollection.of(giving), ResultsCollection.of(taking), criteria, found.results, progress, dry_run)
        if not criteria:
            copied = FailuresCollection.of(giving), FailuresCollection.of(taking)
            _copy(*copied, None, found.failures, progress, dry_run)
        return found


def _copy(
    source: KeyedCollection,
    target: KeyedCollection,
    criteria: dict[str, Any] | None,
    counts: Counts,
    progress: Progress | None,
    dry_run: bool,
) -> None:
    name = source.key_field
    keys = source.keys(criteria)
    for start in range(0, len(keys), PORTION):
        rows = _present(source, keys[start : start + PORTION], counts)
        known = {row[name]: row for row in target.fetch(list(rows))}
        written = []
        for key, row in rows.items():
            if key not in known:
                counts.new += 1
            elif row == known[key]:
                counts.unchanged += 1
                continue
            elif is_better(row, known[key]):
                counts.replaced += 1
            else:
                counts.kept += 1
                continue
            written.append(row)
        if not dry_run:
            target.replace(written)
        if progress is not None:
            progress(min(start + PORTION, len(keys)), len(keys))


def _present(source: KeyedCollection, keys: list[str], counts: Counts) -> dict[str, dict[str, Any]]:
    """Return rows of the source in the present schema version, by the key that they have in it."""
    name = source.key_field
    rows: dict[str, dict[str, Any]] = {}
    for stored in source.fetch(keys):
        try:
            row = in_present_version(stored)
        except Exception as error:  # one row that cannot be read must not stop the others
            counts.unreadable += 1
            counts.problems = [*counts.problems, f"{stored[name]}: {error}"][:5]
            continue
        if row[name] in rows:
            counts.kept += 1
        if row[name] not in rows or is_better(row, rows[row[name]]):
            rows[row[name]] = row
    return rows


@contextmanager
def _opened(store: JobStore | str | Path, must_exist: bool = False, dry_run: bool = False) -> Iterator[JobStore]:
    if not isinstance(store, str | Path):
        yield store
        return
    if dry_run and is_new(store):
        from jobflow import JobStore
        from maggma.stores import MemoryStore

        yield JobStore(MemoryStore())
        return
    opened = get_store(store, must_exist=must_exist)
    try:
        yield opened
    finally:
        opened.close()


def _place(job_store: JobStore) -> str:
    docs = job_store.docs_store
    if isinstance(docs, SQLiteStore):
        return str(Path(docs.path).resolve())
    place = f"{hide_password(str(docs.name))} {getattr(docs, 'database', '')}"
    return f"{place} {id(docs)}" if place.startswith("mem://") else place
