"""Addresses of stores in messages: without user names and passwords."""

from __future__ import annotations

import re

_CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")


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


def hide_passwords(text: str) -> str:
    """Return a text without the user names and passwords of the addresses in it.

    Example:
        >>> hide_passwords("cannot reach mongodb://me:secret@db.example.org/x (timed out)")
        'cannot reach mongodb://db.example.org/x (timed out)'
    """
    return _CREDENTIALS.sub("", text)
