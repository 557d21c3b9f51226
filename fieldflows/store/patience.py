"""A database server that does not answer is waited for, and its password stays out of what is said about it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from fieldflows.errors import StoreError

RETRY_DELAYS = (0.5, 2.0, 10.0, 30.0, 60.0, 120.0)
"""Seconds to wait between attempts to write to a database server that does not answer."""

_LOGGER = logging.getLogger(__name__)
_T = TypeVar("_T")


def patiently(action: Callable[[], _T], name: str) -> _T:
    """Return what an action on a database returns, trying again for some minutes while the server does not answer.

    Args:
        action: May be done twice, because an answer can be lost on its way.
        name: Address or name of the store, for messages.

    Raises:
        StoreError: If the server still does not answer, or refuses.
    """
    from pymongo.errors import ConnectionFailure, PyMongoError

    for delay in (*RETRY_DELAYS, None):
        try:
            return action()
        except ConnectionFailure as error:
            if delay is None:
                raise StoreError(
                    f"The database of {hide_password(name)} does not answer: {error}.",
                    "Start it or check its address, then run again; what was stored is skipped.",
                ) from error
            _LOGGER.warning("The database does not answer; trying again in %g s.", delay)
            time.sleep(delay)
        except PyMongoError as error:
            raise StoreError(f"{hide_password(name)} refused: {error}.") from error
    raise AssertionError  # the loop returns or raises


def hide_password(uri: str) -> str:
    """Return an address without user name and password, for messages.

    Example:
        >>> hide_password("mongodb://me:secret@db.example.org/fields")
        'mongodb://db.example.org/fields'
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"
