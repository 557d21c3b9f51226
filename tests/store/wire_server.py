"""A stand-in for a MongoDB server: pymongo's wire protocol over TCP, mongomock behind it; in memory, for tests only.

It lets the tests go through the real client, connection strings, GridFS and FireWorks where no mongod is installed.
"""

from __future__ import annotations

import contextlib
import itertools
import socketserver
import struct
import threading
from collections.abc import Iterator
from typing import Any

import bson
import mongomock_ng
from mongomock_ng import DuplicateKeyError
from pymongo.errors import PyMongoError

OP_REPLY, OP_QUERY, OP_MSG = 1, 2004, 2013
HELLO = {
    "ismaster": True,
    "helloOk": True,
    "isWritablePrimary": True,
    "maxBsonObjectSize": 16 * 1024**2,
    "maxMessageSizeBytes": 48_000_000,
    "maxWriteBatchSize": 100_000,
    "minWireVersion": 0,
    "maxWireVersion": 17,
    "logicalSessionTimeoutMinutes": 30,
    "readOnly": False,
}


@contextlib.contextmanager
def wire_server() -> Iterator[str]:
    """Serve for the length of the block; give the address, without database."""
    with WireServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"mongodb://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


class WireServer(socketserver.ThreadingTCPServer):
    """One in-memory MongoDB, one lock."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.client = mongomock_ng.MongoClient()
        self.lock = threading.Lock()
        self.requests = itertools.count(1)

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        name = next(iter(command))
        handler = getattr(self, f"do_{name.lower()}", None)
        if handler is None:
            return {"ok": 0.0, "errmsg": f"no such command: {name!r}", "code": 59, "codeName": "CommandNotFound"}
        with self.lock:
            try:
                return {**handler(command, self.client[command.get("$db", "admin")]), "ok": 1.0}
            except (PyMongoError, mongomock_ng.OperationFailure, NotImplementedError, TypeError, ValueError) as error:
                return {
                    "ok": 0.0,
                    "errmsg": f"{type(error).__name__}: {error}",
                    "code": getattr(error, "code", None) or 1,
                }

    def do_hello(self, command, db):
        return HELLO

    do_ismaster = do_hello

    def do_ping(self, command, db):
        return {}

    do_endsessions = do_killcursors = do_ping

    def do_buildinfo(self, command, db):
        return {"version": "6.0.0", "versionArray": [6, 0, 0, 0]}

    def do_listdatabases(self, command, db):
        return {"databases": [{"name": name, "sizeOnDisk": 1} for name in self.client.list_database_names()]}

    def do_listcollections(self, command, db):
        wanted = (command.get("filter") or {}).get("name")
        names = [name for name in db.list_collection_names() if wanted in (None, name)]
        return _cursor(command, [{"name": name, "type": "collection", "options": {}} for name in names])

    def do_dropdatabase(self, command, db):
        self.client.drop_database(db.name)
        return {}

    def do_drop(self, command, db):
        db.drop_collection(command["drop"])
        return {}

    def do_find(self, command, db):
        found = db[command["find"]].find(
            command.get("filter") or {},
            command.get("projection") or None,
            skip=command.get("skip", 0),
            limit=abs(command.get("limit", 0)),
            sort=list(command["sort"].items()) if command.get("sort") else None,
        )
        return _cursor(command, list(found))

    def do_getmore(self, command, db):
        return _cursor(command, [], "nextBatch")

    def do_count(self, command, db):
        return {"n": db[command["count"]].count_documents(command.get("query") or {})}

    def do_distinct(self, command, db):
        return {"values": db[command["distinct"]].distinct(command["key"], command.get("query") or {})}

    def do_aggregate(self, command, db):
        stages = command["pipeline"]
        collection = db[command["aggregate"]]
        if len(stages) == 2 and stages[1].get("$group") == {"_id": 1, "n": {"$sum": 1}}:
            count = collection.count_documents(stages[0].get("$match", {}))
            return _cursor(command, [{"_id": 1, "n": count}] if count else [])
        return _cursor(command, list(collection.aggregate(stages)))

    def do_insert(self, command, db):
        return _write(command["documents"], lambda doc: db[command["insert"]].insert_one(doc) and {"n": 1})

    def do_update(self, command, db):
        collection = db[command["update"]]

        def one(item: dict[str, Any]) -> dict[str, Any]:
            change, upsert = item["u"], item.get("upsert", False)
            if not any(key.startswith("$") for key in change):
                done = collection.replace_one(item["q"], change, upsert=upsert)
            elif item.get("multi"):
                done = collection.update_many(item["q"], change, upsert=upsert)
            else:
                done = collection.update_one(item["q"], change, upsert=upsert)
            return {"n": done.matched_count, "nModified": done.modified_count or 0, "_id": done.upserted_id}

        return _write(command["updates"], one)

    def do_delete(self, command, db):
        collection = db[command["delete"]]

        def one(item: dict[str, Any]) -> dict[str, Any]:
            remove = collection.delete_one if item.get("limit") == 1 else collection.delete_many
            return {"n": remove(item["q"]).deleted_count}

        return _write(command["deletes"], one)

    def do_findandmodify(self, command, db):
        collection = db[command.get("findAndModify") or command["findandmodify"]]
        options = {"projection": command.get("fields"), "sort": list((command.get("sort") or {}).items()) or None}
        if command.get("remove"):
            return {"value": collection.find_one_and_delete(command["query"], **options)}
        change = command["update"]
        act = (
            collection.find_one_and_update
            if any(key.startswith("$") for key in change)
            else collection.find_one_and_replace
        )
        value = act(
            command["query"],
            change,
            upsert=command.get("upsert", False),
            return_document=bool(command.get("new")),
            **options,
        )
        return {"value": value, "lastErrorObject": {"n": int(value is not None), "updatedExisting": value is not None}}

    def do_createindexes(self, command, db):
        for index in command["indexes"]:
            db[command["createIndexes"]].create_index(
                list(index["key"].items()), unique=index.get("unique", False), name=index["name"]
            )
        return {"numIndexesBefore": 1, "numIndexesAfter": 1 + len(command["indexes"])}

    def do_listindexes(self, command, db):
        known = db[command["listIndexes"]].index_information()
        rows = [{"v": 2, "name": name, "key": dict(info["key"])} for name, info in known.items()]
        return _cursor(command, rows)


def _cursor(command: dict[str, Any], documents: list[dict[str, Any]], batch: str = "firstBatch") -> dict[str, Any]:
    target = command.get(next(iter(command)))
    return {"cursor": {"id": bson.Int64(0), "ns": f"{command['$db']}.{target}", batch: documents}}


def _write(items: list[dict[str, Any]], act: Any) -> dict[str, Any]:
    reply: dict[str, Any] = {"n": 0}
    for position, item in enumerate(items):
        try:
            done = act(item)
        except DuplicateKeyError as error:
            reply.setdefault("writeErrors", []).append({"index": position, "code": 11000, "errmsg": f"E11000 {error}"})
            continue
        reply["n"] += done["n"]
        if "nModified" in done:
            reply["nModified"] = reply.get("nModified", 0) + done["nModified"]
        if done.get("_id") is not None:
            reply["n"] += 1
            reply.setdefault("upserted", []).append({"index": position, "_id": done["_id"]})
    return reply


class _Connection(socketserver.BaseRequestHandler):
    server: WireServer

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while header := self._receive(16):
                length, request, _, code = struct.unpack("<iiii", header)
                body = self._receive(length - 16)
                if code == OP_QUERY:
                    end = body.index(b"\0", 4) + 9
                    reply = bson.encode(self.server.answer(bson.decode(body[end:])))
                    self._send(request, OP_REPLY, struct.pack("<iqii", 8, 0, 0, 1) + reply)
                    continue
                command, more_to_come = _message(body)
                answer = self.server.answer(command)
                if not more_to_come:
                    self._send(request, OP_MSG, struct.pack("<IB", 0, 0) + bson.encode(answer))

    def _receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.request.recv(count - len(data))
            if not part:
                return b""
            data += part
        return data

    def _send(self, to: int, code: int, body: bytes) -> None:
        number = next(self.server.requests)
        self.request.sendall(struct.pack("<iiii", 16 + len(body), number, to, code) + body)


def _message(body: bytes) -> tuple[dict[str, Any], bool]:
    (flags,) = struct.unpack_from("<I", body)
    end = len(body) - 4 * (flags & 1)
    position, command, sequences = 4, {}, {}
    while position < end:
        kind, position = body[position], position + 1
        (size,) = struct.unpack_from("<i", body, position)
        part = body[position : position + size]
        if kind == 0:
            command = bson.decode(part)
        else:
            stop = part.index(b"\0", 4)
            sequences[part[4:stop].decode()] = bson.decode_all(part[stop + 1 :])
        position += size
    return {**command, **sequences}, bool(flags & 2)
