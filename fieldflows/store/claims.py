"""Leases by name, so that two drivers do not do the same work.

A claim lasts until it is released or its lease is over.  The claim of a process that has ended on the same machine is
void at once; that of a process elsewhere when its lease is over.  With a MongoDB, leases follow the clock of the
server, whatever those of the machines say.  With the embedded store they follow the clock of the machine; machines
that share the file on a network disk must agree on the time to well within a lease.

A lease keeps work from being done twice, but cannot exclude it: a driver that was stopped for longer than its lease may
wake up beside its successor.  Results are stored by key, so that this costs time and nothing else.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from fieldflows.errors import StoreError
from fieldflows.store.collections import sibling
from fieldflows.store.owners import Owner
from fieldflows.store.patience import patiently
from fieldflows.store.sqlite import SQLiteStore

if TYPE_CHECKING:
    from jobflow import JobStore
    from maggma.core import Store

CLAIMS_COLLECTION = "claims"
"""Name of the collection, and of the additional store of a JobStore, that holds claims."""

_ATTEMPTS = 100
_MEMORY = threading.RLock()

Decision = Callable[[dict[str, Any] | None], dict[str, Any] | None]
"""Given what is stored under a name: what to store, None to remove it, or the same object to leave it."""


class Claims:
    """Claims in a store.

    Args:
        store: An embedded store, a MongoDB collection, or one in memory.

    Raises:
        StoreError: If it is another kind of store.

    Example:
        >>> from maggma.stores import MemoryStore
        >>> claims, owner = Claims(MemoryStore(key="name")), Owner.here()
        >>> claims.take("chunk-1", owner, 60.0), claims.take("chunk-1", Owner.here(), 60.0)
        (True, False)
    """

    def __init__(self, store: Store) -> None:
        from maggma.stores import MemoryStore, MongoStore

        self._is_memory = type(store) is MemoryStore
        is_mongo = isinstance(store, MongoStore) and not isinstance(store, MemoryStore)
        if not (isinstance(store, SQLiteStore) or self._is_memory or is_mongo):
            raise StoreError(
                f"A {type(store).__name__} cannot hold claims: several drivers could write it at once.",
                "Use the embedded store or a MongoDB.",
            )
        self.store = store
        patiently(store.connect, store)

    @classmethod
    def of(cls, job_store: JobStore) -> Claims:
        """Return the claims that belong to a JobStore: its additional store ``claims``, or a collection beside.

        Raises:
            StoreError: If the JobStore keeps its documents in a store that has no further collections.
        """
        return cls(sibling(job_store, CLAIMS_COLLECTION, "name"))

    def take(self, name: str, owner: Owner, lease_seconds: float) -> bool:
        """Claim a name, and return whether the owner has it now; of several that ask at once, one does.

        An owner that has it already has it for the new time.

        Args:
            name: What to claim.
            owner: For whom.
            lease_seconds: How long; renew it before.
        """
        taken = False

        def decide(current: dict[str, Any] | None) -> dict[str, Any] | None:
            nonlocal taken
            taken = current is None or current["owner"]["token"] == owner.token or self._is_void(current)
            return self._entry(name, owner, lease_seconds) if taken else current

        self._change(name, decide)
        return taken

    def renew(self, name: str, owner: Owner) -> bool:
        """Let a claim last for its time from now on; return False if the owner does not have it any more."""
        kept = False

        def decide(current: dict[str, Any] | None) -> dict[str, Any] | None:
            nonlocal kept
            kept = current is not None and current["owner"]["token"] == owner.token
            return self._entry(name, owner, current["lease_seconds"]) if current is not None and kept else current

        self._change(name, decide)
        return kept

    def release(self, name: str, owner: Owner) -> bool:
        """Give a claim up; return False if the owner did not have it any more."""
        return self._remove(name, lambda current: current["owner"]["token"] == owner.token)

    def break_(self, name: str) -> bool:
        """Take a claim away from whoever has it; return whether there was one."""
        return self._remove(name, lambda current: True)

    def holder(self, name: str) -> Owner | None:
        """Return who has a name now, or None."""
        found = patiently(partial(self.store.query_one, {"name": name}), self.store)
        return None if found is None or self._is_void(found) else Owner.from_json_dict(found["owner"])

    def _remove(self, name: str, condition: Callable[[dict[str, Any]], bool]) -> bool:
        removed = False

        def decide(current: dict[str, Any] | None) -> dict[str, Any] | None:
            nonlocal removed
            removed = current is not None and condition(current)
            return None if removed else current

        self._change(name, decide)
        return removed

    def _entry(self, name: str, owner: Owner, lease_seconds: float) -> dict[str, Any]:
        now = self._now()
        return {
            "name": name,
            "owner": owner.to_json_dict(),
            "lease_seconds": lease_seconds,
            "expires": now + lease_seconds,
            "renewed_at": datetime.fromtimestamp(now, UTC).isoformat(),
            "revision": secrets.token_hex(8),
        }

    def _is_void(self, entry: dict[str, Any]) -> bool:
        return bool(entry["expires"] <= self._now()) or Owner.from_json_dict(entry["owner"]).is_gone()

    def _change(self, name: str, decide: Decision) -> None:
        change = self._change_embedded if isinstance(self.store, SQLiteStore) else self._change_mongo
        patiently(partial(change, name, decide), self.store)

    def _change_embedded(self, name: str, decide: Decision) -> None:
        self.store.change({"name": name}, decide)

    def _change_mongo(self, name: str, decide: Decision) -> None:
        """Compare and swap: the name is the identifier of the document, which a collection has once."""
        from pymongo.errors import DuplicateKeyError

        collection = self.store._collection
        with _MEMORY if self._is_memory else threading.Lock():
            for _ in range(_ATTEMPTS):
                current = collection.find_one({"_id": name})
                wanted = decide(current)
                if wanted is current:
                    return
                if current is None:
                    try:
                        collection.insert_one({"_id": name, **(wanted or {})})
                    except DuplicateKeyError:  # another was quicker
                        continue
                    return
                same = {"_id": name, "revision": current["revision"]}
                if wanted is None:
                    done = collection.delete_one(same).deleted_count
                else:
                    done = collection.replace_one(same, {"_id": name, **wanted}).matched_count
                if done:
                    return
        raise StoreError(f"The claim of {name!r} keeps changing: {_ATTEMPTS} attempts were overtaken.")

    def _now(self) -> float:
        """Return the time in seconds since 1970, by the clock of the database server where there is one."""
        if isinstance(self.store, SQLiteStore) or self._is_memory:
            return time.time()
        says = self.store._collection.database.client.admin.command("hello").get("localTime")
        return time.time() if says is None else float(says.replace(tzinfo=UTC).timestamp())
