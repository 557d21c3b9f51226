"""The commands of a MongoDB server, answered from memory by mongomock-ng.

Names and fields of commands and answers are those of the database command reference of MongoDB; what pymongo, maggma,
FireWorks and jobflow-remote send is covered.  There are no users, no transactions and no files.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import bson
import mongomock_ng
from mongomock_ng.filtering import filter_applies
from pymongo.errors import DuplicateKeyError, PyMongoError

Fields = dict[str, Any]
Database = Any

MAX_DOCUMENT_BYTES = 16 * 2**20
MAX_MESSAGE_BYTES = 48_000_000
FIRST_BATCH = 101
"""Documents of the first batch of a query unless the client names a number, as in MongoDB."""

CURSOR_SECONDS = 600.0
"""A cursor that nobody has asked for that long is forgotten, as in MongoDB."""

HELLO = {
    "ismaster": True,
    "helloOk": True,
    "isWritablePrimary": True,
    "maxBsonObjectSize": MAX_DOCUMENT_BYTES,
    "maxMessageSizeBytes": MAX_MESSAGE_BYTES,
    "maxWriteBatchSize": 100_000,
    "minWireVersion": 0,
    "maxWireVersion": 17,
    "logicalSessionTimeoutMinutes": 30,
    "readOnly": False,
}
RUNS_CODE = frozenset({"$where", "$function", "$accumulator"})
"""Operators that carry code.  mongomock-ng evaluates ``$where`` as Python, so that any client could run anything."""

UNSUPPORTED, NO_NAMESPACE, ILLEGAL, EXISTS, NO_COMMAND, NO_INDEX, NO_CURSOR = 115, 26, 20, 48, 59, 27, 43


class Refusal(Exception):
    """A command that is answered with an error code of MongoDB."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Commands:
    """One database server in memory.  One command is carried out after the other.

    The method of a command has its name in lower case after ``_do_``.

    Attributes:
        client: The databases, as a client of mongomock-ng.
    """

    def __init__(self) -> None:
        self.client: Any = mongomock_ng.MongoClient()
        self._lock = threading.Lock()
        self._cursors: dict[int, tuple[float, list[Fields]]] = {}
        self._numbers = itertools.count(1)

    def answer(self, command: Fields) -> Fields:
        """Carry out a command.

        Args:
            command: Its name and argument first, then its options, the database in ``$db``.

        Returns:
            The document to send back; errors are documents too.
        """
        name = next(iter(command), "")
        handler = getattr(self, f"_do_{name.lower()}", None)
        try:
            if handler is None:
                raise Refusal(NO_COMMAND, f"no such command: {name!r} (this is an imitation in memory)")
            _check(command, name)
            with self._lock:
                return {**handler(command, self.client[command.get("$db", "admin")]), "ok": 1.0}
        # whatever an imitation stumbles over: the client is told, and the server stays
        except Exception as error:
            return {"ok": 0.0, "errmsg": _message(error), "code": getattr(error, "code", None) or 8}

    # --- the server -------------------------------------------------------------------------------------------------

    def _do_hello(self, command: Fields, db: Database) -> Fields:
        return {**HELLO, "localTime": datetime.now(UTC)}

    _do_ismaster = _do_hello

    def _do_ping(self, command: Fields, db: Database) -> Fields:
        return {}

    _do_endsessions = _do_compact = _do_ping

    def _do_buildinfo(self, command: Fields, db: Database) -> Fields:
        return {"version": "6.0.0", "versionArray": [6, 0, 0, 0], "gitVersion": "fieldflows dev-db, in memory"}

    def _do_listdatabases(self, command: Fields, db: Database) -> Fields:
        rows = [{"name": name, "sizeOnDisk": 1, "empty": False} for name in self.client.list_database_names()]
        return {"databases": [row for row in rows if filter_applies(command.get("filter") or {}, row)]}

    def _do_dropdatabase(self, command: Fields, db: Database) -> Fields:
        self.client.drop_database(db.name)
        return {"dropped": db.name}

    def _do_dbstats(self, command: Fields, db: Database) -> Fields:
        names = db.list_collection_names()
        return {
            "db": db.name,
            "collections": len(names),
            "objects": sum(db[name].count_documents({}) for name in names),
        }

    # --- collections and indexes ------------------------------------------------------------------------------------

    def _do_listcollections(self, command: Fields, db: Database) -> Fields:
        rows = [{"name": name, "type": "collection", "options": {}} for name in db.list_collection_names()]
        rows = [row for row in rows if filter_applies(command.get("filter") or {}, row)]
        return self._cursor(command, rows, "$cmd.listCollections")

    def _do_create(self, command: Fields, db: Database) -> Fields:
        if command["create"] in db.list_collection_names():
            raise Refusal(EXISTS, f"Collection {db.name}.{command['create']} already exists.")
        db.create_collection(command["create"])
        return {}

    def _do_drop(self, command: Fields, db: Database) -> Fields:
        if command["drop"] not in db.list_collection_names():
            raise Refusal(NO_NAMESPACE, "ns not found")
        db.drop_collection(command["drop"])
        return {}

    def _do_renamecollection(self, command: Fields, db: Database) -> Fields:
        (before, old), (after, new) = (command[key].split(".", 1) for key in ("renameCollection", "to"))
        if before != after:
            raise Refusal(UNSUPPORTED, "collections are not moved between databases here")
        self.client[before].rename_collection(old, new, dropTarget=bool(command.get("dropTarget")))
        return {}

    def _do_collstats(self, command: Fields, db: Database) -> Fields:
        return {
            "ns": f"{db.name}.{command['collStats']}",
            "count": db[command["collStats"]].count_documents({}),
            "nindexes": len(db[command["collStats"]].index_information()),
        }

    def _do_createindexes(self, command: Fields, db: Database) -> Fields:
        collection = db[command["createIndexes"]]
        before = len(collection.index_information())
        for index in command["indexes"]:
            kept = ("unique", "sparse", "expireAfterSeconds", "partialFilterExpression")
            options = {key: index[key] for key in kept if index.get(key) is not None}
            collection.create_index(list(index["key"].items()), name=index["name"], **options)
        return {"numIndexesBefore": before, "numIndexesAfter": len(collection.index_information())}

    def _do_listindexes(self, command: Fields, db: Database) -> Fields:
        name = command["listIndexes"]
        if name not in db.list_collection_names():
            raise Refusal(NO_NAMESPACE, f"ns does not exist: {db.name}.{name}")
        known = db[name].index_information()
        rows = [{**info, "v": 2, "name": key, "key": dict(info["key"])} for key, info in known.items()]
        return self._cursor(command, rows)

    def _do_dropindexes(self, command: Fields, db: Database) -> Fields:
        collection, index = db[command["dropIndexes"]], command["index"]
        known = collection.index_information()
        if index == "*":
            wanted = [name for name in known if name != "_id_"]
        elif isinstance(index, Mapping):
            wanted = [name for name, info in known.items() if list(info["key"]) == list(index.items())]
        else:
            wanted = [index] if isinstance(index, str) else list(index)
        if not set(wanted) <= set(known) or (not wanted and index != "*"):
            raise Refusal(NO_INDEX, f"index not found with name [{index}]")
        for name in wanted:
            collection.drop_index(name)
        return {"nIndexesWas": len(known)}

    # --- reading ----------------------------------------------------------------------------------------------------

    def _do_find(self, command: Fields, db: Database) -> Fields:
        found = db[command["find"]].find(
            command.get("filter") or {},
            command.get("projection") or None,
            skip=command.get("skip", 0),
            limit=abs(command.get("limit", 0)),
            sort=_pairs(command.get("sort")),
        )
        return self._cursor(command, list(found), options=command)

    def _do_aggregate(self, command: Fields, db: Database) -> Fields:
        stages, options = command["pipeline"], command.get("cursor")
        if not isinstance(command["aggregate"], str):
            raise Refusal(UNSUPPORTED, "aggregations over a whole database are not part of this server")
        collection = db[command["aggregate"]]
        if len(stages) == 2 and stages[1].get("$group") == {"_id": 1, "n": {"$sum": 1}}:
            # what count_documents() sends
            count = collection.count_documents(stages[0].get("$match", {}))
            return self._cursor(command, [{"_id": 1, "n": count}] if count else [])
        return self._cursor(command, list(collection.aggregate(stages)), options=options)

    def _do_getmore(self, command: Fields, db: Database) -> Fields:
        number = int(command["getMore"])
        if number not in self._cursors:
            raise Refusal(NO_CURSOR, f"cursor id {number} not found")
        _, rest = self._cursors.pop(number)
        return self._batch(rest, f"{db.name}.{command['collection']}", "nextBatch", command.get("batchSize"), number)

    def _do_killcursors(self, command: Fields, db: Database) -> Fields:
        killed = [number for number in command["cursors"] if self._cursors.pop(int(number), None)]
        return {"cursorsKilled": killed, "cursorsNotFound": [], "cursorsAlive": [], "cursorsUnknown": []}

    def _do_count(self, command: Fields, db: Database) -> Fields:
        if not command.get("query"):
            return {"n": db[command["count"]].estimated_document_count()}
        return {"n": db[command["count"]].count_documents(command["query"])}

    def _do_distinct(self, command: Fields, db: Database) -> Fields:
        return {"values": db[command["distinct"]].distinct(command["key"], command.get("query") or {})}

    # --- writing ----------------------------------------------------------------------------------------------------

    def _do_insert(self, command: Fields, db: Database) -> Fields:
        return _write(command, "documents", lambda doc: db[command["insert"]].insert_one(doc) and {"n": 1})

    def _do_update(self, command: Fields, db: Database) -> Fields:
        collection = db[command["update"]]

        def one(item: Fields) -> Fields:
            change, upsert = item["u"], item.get("upsert", False)
            if not _is_change(change):
                done = collection.replace_one(item["q"], change, upsert=upsert)
            else:
                act = collection.update_many if item.get("multi") else collection.update_one
                done = act(item["q"], change, upsert=upsert, array_filters=item.get("arrayFilters"))
            inserted = {} if done.upserted_id is None else {"_id": done.upserted_id}
            return {"n": done.matched_count, "nModified": done.modified_count or 0, **inserted}

        return _write(command, "updates", one)

    def _do_delete(self, command: Fields, db: Database) -> Fields:
        collection = db[command["delete"]]

        def one(item: Fields) -> Fields:
            remove = collection.delete_one if item.get("limit") == 1 else collection.delete_many
            return {"n": remove(item["q"]).deleted_count}

        return _write(command, "deletes", one)

    def _do_findandmodify(self, command: Fields, db: Database) -> Fields:
        collection = db[command.get("findAndModify") or command["findandmodify"]]
        query = command.get("query") or {}
        options = {"projection": command.get("fields"), "sort": _pairs(command.get("sort"))}
        if command.get("remove"):
            value = collection.find_one_and_delete(query, **options)
            return {"value": value, "lastErrorObject": {"n": int(value is not None)}}
        if command.get("arrayFilters"):
            raise Refusal(UNSUPPORTED, "findAndModify with arrayFilters is not part of this server")
        change = command["update"]
        act = collection.find_one_and_update if _is_change(change) else collection.find_one_and_replace
        existed = collection.find_one(query, {"_id": 1}) is not None
        upsert, new = bool(command.get("upsert")), bool(command.get("new"))
        value = act(query, change, upsert=upsert, return_document=new, **options)
        return {"value": value, "lastErrorObject": {"n": int(existed or upsert), "updatedExisting": existed}}

    # --- cursors ----------------------------------------------------------------------------------------------------

    def _cursor(
        self,
        command: Fields,
        documents: list[Fields],
        name: str | None = None,
        options: Fields | None = None,
    ) -> Fields:
        space = f"{command['$db']}.{name or command[next(iter(command))]}"
        options = options or {}
        answer = self._batch(documents, space, "firstBatch", options.get("batchSize", FIRST_BATCH))
        if options.get("singleBatch"):
            self._cursors.pop(int(answer["cursor"]["id"]), None)
            answer["cursor"]["id"] = bson.Int64(0)
        return answer

    def _batch(
        self, documents: list[Fields], space: str, name: str, size: int | None, number: int | None = None
    ) -> Fields:
        """Return as many documents as the client wants and a message holds; the others wait under a number."""
        now = time.monotonic()
        self._cursors = {key: kept for key, kept in self._cursors.items() if now - kept[0] < CURSOR_SECONDS}
        limit = len(documents) if size is None or (size == 0 and name == "nextBatch") else size
        count = total = 0
        for document in documents[:limit]:
            total += len(bson.encode(document))
            if count and total > MAX_DOCUMENT_BYTES:
                break
            count += 1
        rest = documents[count:]
        if rest:
            number = number or next(self._numbers)
            self._cursors[number] = (now, rest)
        return {"cursor": {"id": bson.Int64(number if rest and number else 0), "ns": space, name: documents[:count]}}


def _check(command: Mapping[str, Any], name: str) -> None:
    """Refuse what MongoDB on one server refuses, and what would run code."""
    if "startTransaction" in command or name in ("commitTransaction", "abortTransaction"):
        raise Refusal(ILLEGAL, "Transaction numbers are only allowed on a replica set member or mongos")
    for key, value in command.items():
        if key != "documents":
            _refuse_code(value)


def _refuse_code(value: Any) -> None:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            for key in RUNS_CODE.intersection(item):
                raise Refusal(UNSUPPORTED, f"{key} carries code, which this server does not run")
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            waiting.extend(item)


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, Refusal | PyMongoError) else f"{type(error).__name__}: {error}"


def _pairs(order: Mapping[str, Any] | None) -> list[tuple[str, Any]] | None:
    return list(order.items()) if order else None


def _is_change(change: Any) -> bool:
    """Whether an update changes a document (operators or a pipeline) in place of replacing it."""
    return isinstance(change, list) or any(key.startswith("$") for key in change)


def _write(command: Fields, what: str, act: Callable[[Fields], Fields]) -> Fields:
    """Write one item after the other; in an ordered batch the first error ends it."""
    reply: Fields = {"n": 0}
    for position, item in enumerate(command[what]):
        try:
            done = act(item)
        except Exception as error:
            code = 11000 if isinstance(error, DuplicateKeyError) else getattr(error, "code", None) or 9
            reply.setdefault("writeErrors", []).append({"index": position, "code": code, "errmsg": _message(error)})
            if command.get("ordered", True):
                break
            continue
        reply["n"] += done["n"]
        if "nModified" in done:
            reply["nModified"] = reply.get("nModified", 0) + done["nModified"]
        if "_id" in done:
            reply["n"] += 1
            reply.setdefault("upserted", []).append({"index": position, "_id": done["_id"]})
    return reply
