"""Where the outcomes of a chunk go: first to the journal on this machine, then to the store, with patience."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fieldflows.errors import StoreError
from fieldflows.schemas.common import Document
from fieldflows.schemas.failure import FailureDocument

if TYPE_CHECKING:
    import numpy as np
    from jobflow import JobStore

    from fieldflows.campaigns.journal import Journal
    from fieldflows.store import ResultsCollection
    from fieldflows.store.arrays import Arrays
    from fieldflows.store.failures import FailuresCollection

_LOGGER = logging.getLogger(__name__)


class Sink:
    """Results, failures and arrays of a chunk.

    Without a store (a worker that does not reach the database), outcomes stay in the journal until the end and travel
    in the output of the job.

    Args:
        journal: The journal of the chunk.
        store: The store of the job; None if the worker does not reach it.
    """

    def __init__(self, journal: Journal, store: JobStore | None) -> None:
        from fieldflows.store import ResultsCollection
        from fieldflows.store.failures import FailuresCollection

        self.journal = journal
        self._store = store
        self._results: ResultsCollection | None = None if store is None else ResultsCollection.of(store)
        self._failures: FailuresCollection | None = None if store is None else FailuresCollection.of(store)
        self._arrays: Arrays | None = None
        self.behind = False
        if self._results is not None and (journal.results or journal.failures):
            self._take_up()

    @property
    def reaches_store(self) -> bool:
        """Whether outcomes go to a store from here."""
        return self._results is not None

    def known(self, keys: Sequence[str], fields: Collection[str]) -> dict[str, dict[str, Any]]:
        """Return what is there of the results with these keys, by key: at least the given top-level fields.

        Raises:
            StoreError: If the store does not answer for minutes.
        """
        found: dict[str, dict[str, Any]] = {}
        if self._results is not None:
            wanted = sorted({"key", *fields})
            found = {row["key"]: row for row in self._results.fetch(list(keys), wanted)}
        for key in keys:
            if key in self.journal.results:
                found[key] = self.journal.results[key]
        return found

    def failed(self, failure_keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the failures that are known of these keys."""
        found: dict[str, dict[str, Any]] = {}
        if self._failures is not None:
            found = {row["failure_key"]: row for row in self._failures.fetch(list(failure_keys))}
        return found | {key: row for key, row in self.journal.failures.items() if key in failure_keys}

    def commit(
        self, outcomes: Iterable[Document | FailureDocument], overcome: Sequence[str] = ()
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Keep the outcomes of a batch; return results and failures as they are stored.

        When this returns they are on the disk of this machine, and in the store unless that does not answer for
        minutes: then they are passed on with a later batch or at the end.

        Args:
            outcomes: Documents and failures.
            overcome: Keys of failures that no longer hold.

        Raises:
            StoreError: If the disk of this machine cannot be written.
        """
        results: list[dict[str, Any]] = []
        failures: list[dict[str, Any]] = []
        for item in outcomes:
            (failures if isinstance(item, FailureDocument) else results).append(item.to_json_dict())
        self.journal.append(results, failures)
        self.journal.forget([row["key"] for row in results])
        if self._results is not None:
            try:
                self._pass_on(overcome)
            except StoreError as error:
                self.behind = True
                _LOGGER.warning("Results stay on this machine for now: %s", error)
        return results, failures

    def amend(
        self,
        key: str,
        change: Callable[[dict[str, Any], Mapping[str, Any]], dict[str, Any]],
        facts: Mapping[str, Any],
    ) -> dict[str, Any] | None:
        """Enter facts into a stored result that does not show them, and return it; None if it is not in the store.

        Args:
            key: Key of the result.
            change: Returns the result with the facts.
            facts: The facts.
        """
        whole = None if self._results is None else self._results.get(key)
        if whole is None or self._results is None:
            return None
        amended = change(whole, facts)
        self._results.put([amended])
        return amended

    def keep_array(self, key: str, name: str, values: np.ndarray[Any, Any]) -> None:
        """Put a large array, such as a Hessian, into the additional store for those, if there is one."""
        if self._store is None:
            return
        if self._arrays is None:
            from fieldflows.store.arrays import Arrays

            self._arrays = Arrays.of(self._store)
        if self._arrays is not None:
            self._arrays.put(key, name, values)

    def finish(self) -> None:
        """Pass on what the store has not acknowledged yet.

        Raises:
            StoreError: If it still does not answer; the journal keeps everything for the next run.
        """
        if self._results is not None and (self.journal.results or self.journal.failures):
            self._pass_on()
        self.behind = False

    def leave(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return everything for the output of the job, where there is no store to pass it on to."""
        if self.reaches_store:
            return [], []
        return list(self.journal.results.values()), list(self.journal.failures.values())

    def _take_up(self) -> None:
        """Pass on what an earlier worker left; what others have computed since then, with more in it, stays."""
        from fieldflows.store.versions import put_better

        assert self._results is not None
        put_better(self._results, list(self.journal.results.values()))
        self.journal.results.clear()
        self._pass_on()

    def _pass_on(self, overcome: Sequence[str] = ()) -> None:
        assert self._results is not None
        assert self._failures is not None
        self._results.put(list(self.journal.results.values()))
        if self.journal.failures:
            self._failures.put(list(self.journal.failures.values()))
        if overcome:
            self._failures.remove(list(overcome))
        self.journal.acknowledged()
        self.behind = False
