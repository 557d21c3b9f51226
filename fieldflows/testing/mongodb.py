"""A MongoDB server in memory, on this machine only, for tests and for trying things out.

It speaks MongoDB's wire protocol over TCP, with mongomock-ng behind it, so that pymongo, maggma, GridFS, FireWorks and
jobflow-remote run where no MongoDB is installed.  **All data are lost when it stops.**  It has no users and no
password: whoever has an account on this machine can read and write.  It is slow for many documents: every query looks
at all of a collection.

    >>> from pymongo import MongoClient
    >>> with memory_mongodb() as uri:
    ...     MongoClient(uri).test.notes.insert_one({"a": 1}).acknowledged
    True
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from typing import Any

import bson
from bson.errors import BSONError

from fieldflows.errors import SettingsError, StoreError
from fieldflows.testing.mongodb_commands import MAX_DOCUMENT_BYTES, MAX_MESSAGE_BYTES, Commands

OP_REPLY, OP_QUERY, OP_MSG = 1, 2004, 2013
HEADER_BYTES = 16
CHECKSUM, MORE_TO_COME = 1, 2
"""Bits of the flags of a message."""

LOOPBACK = "127.0.0.1"


@contextlib.contextmanager
def memory_mongodb(host: str = LOOPBACK, port: int = 0) -> Iterator[str]:
    """Serve an empty MongoDB from memory for the length of the block.

    Args:
        host: Loopback address to listen on.
        port: Port to listen on; 0 for any free one.

    Yields:
        Its address without database, such as ``mongodb://127.0.0.1:27117``.

    Raises:
        SettingsError: If the host is no loopback address.
        StoreError: If the port cannot be had.
    """
    with MemoryMongoDB(host, port) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield server.uri
        finally:
            server.shutdown()


class MemoryMongoDB(socketserver.ThreadingTCPServer):
    """The server, one thread per connection; it answers while ``serve_forever()`` runs.

    Args:
        host: Loopback address to listen on: there is no password, hence no other address is taken.
        port: Port to listen on; 0 for any free one.

    Raises:
        SettingsError: If the host is no loopback address, or the port none at all.
        StoreError: If the port cannot be had.
    """

    daemon_threads = True
    # on Windows, this would let two servers share one port
    allow_reuse_address = os.name != "nt"
    request_queue_size = 128

    def __init__(self, host: str = LOOPBACK, port: int = 0) -> None:
        address = loopback(host)
        if not 0 <= port <= 65535:
            raise SettingsError(f"{port} is no port.", "Ports go from 1 to 65535; 0 takes any free one.")
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.commands = Commands()
        self.numbers = itertools.count(1)
        self._open: set[socket.socket] = set()
        try:
            super().__init__((address, port), _Connection)
        except OSError as error:
            raise StoreError(
                f"No server can listen on port {port} of {address}: {error.strerror or error}.",
                "Another program may have it: choose another port, or 0 for any free one.",
            ) from error

    @property
    def uri(self) -> str:
        """Address without database."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"mongodb://[{host}]:{port}" if ":" in host else f"mongodb://{host}:{port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection, and serve it in a thread of its own."""
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Stop listening and hang up on all clients."""
        super().server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def loopback(host: str) -> str:
    """Return the numeric loopback address that a name stands for.

    Args:
        host: ``localhost`` or an address of 127.0.0.0/8, or ``::1``.

    Raises:
        SettingsError: If it is anything else; other names are not looked up.
    """
    if host == "localhost":
        return LOOPBACK
    try:
        if ipaddress.ip_address(host).is_loopback:
            return host
    except ValueError:
        pass
    raise SettingsError(
        f"The server in memory does not listen on {host!r}: it has no password, and takes loopback addresses only.",
        f"Take {LOOPBACK}; for several machines, install a MongoDB.",
    )


class _Connection(socketserver.BaseRequestHandler):
    server: MemoryMongoDB

    def handle(self) -> None:
        # hang up on whoever does not speak the protocol
        with contextlib.suppress(OSError, BSONError, struct.error, ValueError, IndexError, UnicodeDecodeError):
            while header := self._receive(HEADER_BYTES):
                length, request, _, code = struct.unpack("<iiii", header)
                if not HEADER_BYTES < length <= MAX_MESSAGE_BYTES or code not in (OP_QUERY, OP_MSG):
                    return
                body = self._receive(length - HEADER_BYTES)
                if not body:
                    return
                if code == OP_QUERY:
                    # the greeting of older clients: flags, name of the collection, two numbers, the command
                    command = bson.decode(body[body.index(b"\0", 4) + 9 :])
                    reply = bson.encode(self.server.commands.answer(command))
                    self._send(request, OP_REPLY, struct.pack("<iqii", 8, 0, 0, 1) + reply)
                    continue
                command, silent = read_message(body)
                answer = self.server.commands.answer(command)
                if not silent:
                    self._send(request, OP_MSG, struct.pack("<IB", 0, 0) + _encode(answer))

    def _receive(self, count: int) -> bytes:
        """Return so many bytes, none if the client hangs up before."""
        data = bytearray()
        while len(data) < count:
            part = self.request.recv(min(count - len(data), 2**20))
            if not part:
                return b""
            data += part
        return bytes(data)

    def _send(self, to: int, code: int, body: bytes) -> None:
        number = next(self.server.numbers) % 2**31
        self.request.sendall(struct.pack("<iiii", HEADER_BYTES + len(body), number, to, code) + body)


def _encode(answer: dict[str, Any]) -> bytes:
    try:
        data = bson.encode(answer)
    except (BSONError, OverflowError, TypeError, ValueError) as error:
        return bson.encode({"ok": 0.0, "errmsg": f"The answer cannot be sent: {error}", "code": 8})
    if len(data) <= MAX_DOCUMENT_BYTES + 2**20:
        return data
    return bson.encode({"ok": 0.0, "errmsg": "The answer is larger than 16 MiB.", "code": 10334})


def read_message(body: bytes) -> tuple[dict[str, Any], bool]:
    """Take a message apart: flags, then sections of one document or a named list of documents each.

    Args:
        body: Message without its header.

    Returns:
        The command with its lists, and whether the client waits for no answer.

    Raises:
        ValueError: If a length in it is wrong.
    """
    (flags,) = struct.unpack_from("<I", body)
    end = len(body) - 4 * (flags & CHECKSUM)
    position = 4
    command: dict[str, Any] = {}
    sequences: dict[str, Any] = {}
    while position < end:
        kind = body[position]
        (size,) = struct.unpack_from("<i", body, position + 1)
        part = body[position + 1 : position + 1 + size]
        if size < 5 or len(part) < size or kind > 1:
            raise ValueError("a section of the message is broken")
        if kind == 0:
            command = bson.decode(part)
        else:
            stop = part.index(b"\0", 4)
            sequences[part[4:stop].decode()] = bson.decode_all(part[stop + 1 :])
        position += 1 + size
    return {**command, **sequences}, bool(flags & MORE_TO_COME)
