"""A JobStore without an address: which store it is, is decided where the job runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from jobflow import JobStore

from fieldflows.errors import StoreError
from fieldflows.store.patience import patiently
from fieldflows.store.select import STORE_VARIABLE, describe_store, embedded_path, get_store
from fieldflows.store.sqlite import SQLiteStore

_LOGGER = logging.getLogger(__name__)


class WorkerStore(JobStore):
    """The store that :func:`fieldflows.store.get_store` chooses on the machine where a job runs.

    A JobStore that travels with a job takes its description along, password included, into the database of the
    engine and into files of the worker.  This one is written as its class alone: :meth:`connect` asks the worker's
    own ``FIELDFLOWS_STORE``, its configuration of jobflow, or takes its embedded file.

    Example:
        >>> sorted(WorkerStore().as_dict())
        ['@class', '@module', '@version']
    """

    def __init__(self) -> None:
        self._resolved = False

    def connect(self, force_reset: bool = False) -> None:
        """Choose and open the store.

        Args:
            force_reset: Choose and open it anew.

        Raises:
            StoreError: If the store cannot be opened.
        """
        if self._resolved and not force_reset:
            return
        chosen = get_store()
        super().__init__(chosen.docs_store, chosen.additional_stores, chosen.save, chosen.load)
        self._resolved = True
        if isinstance(self.docs_store, SQLiteStore) and Path(self.docs_store.path) == embedded_path().absolute():
            _LOGGER.warning(
                "%s is not set here: results and outputs go to %s, which other machines may not see.",
                STORE_VARIABLE,
                embedded_path(),
            )
        else:
            _LOGGER.info("Results and outputs go to %s.", describe_store())

    def update(self, docs: Any, key: list[str] | str | None = None, save: Any = None) -> None:
        """Store outputs of jobs as JobStore does, waiting some minutes for a database server that does not answer.

        Without that, an outage of seconds at the end of a job costs its output.

        Args:
            docs: Documents of outputs.
            key: Fields by which they are replaced.
            save: What goes to the additional stores.

        Raises:
            StoreError: If the server still does not answer, or refuses.
        """
        patiently(lambda: super(WorkerStore, self).update(docs, key, save), self.docs_store)

    def close(self) -> None:
        """Close the connections, if there are any; :meth:`connect` chooses anew."""
        if self._resolved:
            super().close()
            self._resolved = False

    @property
    def name(self) -> str:
        """Name of the chosen store, or that none is chosen yet."""
        return str(super().name) if self._resolved else "JobStore of the worker"

    def as_dict(self) -> dict[str, Any]:
        """Return module, class and version, and nothing that leads to the store."""
        from fieldflows import __version__

        return {"@module": type(self).__module__, "@class": type(self).__name__, "@version": __version__}

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> WorkerStore:
        """Return a store that is not yet chosen, whatever else the description says."""
        return cls()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WorkerStore)

    def __hash__(self) -> int:
        return hash(type(self))

    def __getattr__(self, name: str) -> Any:
        if name in ("docs_store", "additional_stores", "save", "load"):
            raise StoreError("The store of the worker is not connected yet.", "Call connect() first.")
        raise AttributeError(name)
