"""Waiting for a database that does not answer for a while: a server that restarts, a file that others hold."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from fieldflows.errors import StoreError
from fieldflows.store.addresses import hide_password, hide_passwords

if TYPE_CHECKING:
    from maggma.core import Store

RETRY_DELAYS = (0.5, 2.0, 5.0, 10.0, 30.0, 60.0, 90.0, 120.0)
"""Seconds to wait between attempts: more than five minutes in all."""

_PASSING_CODES = frozenset({6, 7, 89, 91, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436})
"""Codes with which a MongoDB server refuses while it stops, starts, changes its primary or cannot reach others."""

_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_LOGGER = logging.getLogger(__name__)
_T = TypeVar("_T")


def patiently(action: Callable[[], _T], store: Store, delays: Sequence[float] | None = None) -> _T:
    """Return what an action returns, trying again while the database does not answer or is held by others.

    The action may be carried out more than once, also after it had an effect whose confirmation was lost; it must be
    harmless to repeat.

    Args:
        action: What to do.
        store: The store that it needs, for messages, which never hold a user name or password.
        delays: Seconds between attempts; :data:`RETRY_DELAYS` by default.

    Raises:
        StoreError: If all attempts fail, or at once if the database refuses for another reason.
    """
    from pymongo.errors import PyMongoError

    for delay in (*(RETRY_DELAYS if delays is None else delays), None):
        try:
            return action()
        except (PyMongoError, StoreError, sqlite3.OperationalError) as error:
            if not is_passing(error):
                if isinstance(error, StoreError):
                    raise
                reason = hide_passwords(str(error))
                raise StoreError(f"{hide_password(str(store.name))} refused: {reason}.") from error
            if delay is None:
                if isinstance(error, StoreError):
                    raise
                raise StoreError(
                    f"The database of {hide_password(str(store.name))} does not answer: {hide_passwords(str(error))}.",
                    "Start it or check its address, then run again; what was stored is skipped.",
                ) from error
            _LOGGER.warning("%s does not answer; trying again in %g s.", hide_password(str(store.name)), delay)
            time.sleep(delay)
    raise AssertionError  # the loop returns or raises


def is_passing(error: BaseException) -> bool:
    """Return whether an error of a database may be gone in a while."""
    from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError, WaitQueueTimeoutError

    if isinstance(error, StoreError):
        return error.__cause__ is not None and is_passing(error.__cause__)
    if isinstance(error, sqlite3.OperationalError):
        return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _BUSY
    if isinstance(error, ConnectionFailure | WaitQueueTimeoutError):
        return True
    if isinstance(error, PyMongoError) and error.has_error_label("RetryableWriteError"):
        return True
    return isinstance(error, OperationFailure) and error.code in _PASSING_CODES
