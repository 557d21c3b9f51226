"""The MongoDB in memory, through real clients; what a real server does too is tested against one where there is one."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import bson
import gridfs
import numpy as np
import pymongo
import pytest
from pymongo import MongoClient, UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError, OperationFailure, PyMongoError

from fieldflows.errors import SettingsError, StoreError
from fieldflows.testing.mongodb import MemoryMongoDB, memory_mongodb, read_message
from tests.support.mongodb import address  # noqa: F401  (a fixture)


@pytest.fixture
def database(address: str):  # noqa: F811
    with MongoClient(address) as client:
        yield client.get_default_database()


@pytest.fixture
def memory():
    """A database of the server in memory."""
    with memory_mongodb() as uri, MongoClient(f"{uri}/x") as client:
        yield client.get_default_database()


def test_cursors_go_on_where_they_were(database) -> None:
    database.numbers.insert_many({"_id": n} for n in range(250))
    a = database.numbers.find(sort=[("_id", 1)])
    b = database.numbers.find(sort=[("_id", -1)], batch_size=7)
    pairs = list(zip(a, b, strict=True))
    assert pairs == [({"_id": n}, {"_id": 249 - n}) for n in range(250)]
    assert [doc["_id"] for doc in database.numbers.find(skip=100, limit=120, batch_size=50)] == list(range(100, 220))
    assert len(list(database.numbers.aggregate([{"$match": {"_id": {"$gte": 20}}}], batchSize=3))) == 230
    with pytest.raises(OperationFailure, match="not found") as caught:
        database.command("getMore", bson.Int64(12345), collection="numbers")
    assert caught.value.code == 43


def test_more_than_a_message_holds(database) -> None:
    database.big.insert_many([{"_id": n, "x": bytes([n]) * 2**20} for n in range(40)], ordered=False)
    assert [doc["x"][0] for doc in database.big.find(sort=[("_id", 1)])] == list(range(40))
    content = np.random.default_rng(0).bytes(30 * 2**20)
    files = gridfs.GridFS(database)
    key = files.put(content, name="thirty")
    assert hashlib.sha256(files.get(key).read()).digest() == hashlib.sha256(content).digest()
    files.delete(key)
    assert database["fs.chunks"].count_documents({}) == 0


def test_batches_end_at_the_first_error_if_ordered(database) -> None:
    documents = [{"_id": 1}, {"_id": 1}, {"_id": 2}, {"_id": 2}, {"_id": 3}]
    for ordered, errors, stored in ((True, [1], [1]), (False, [1, 3], [1, 2, 3])):
        database.drop_collection("c")
        with pytest.raises(BulkWriteError) as caught:
            database.c.insert_many(documents, ordered=ordered)
        assert [error["index"] for error in caught.value.details["writeErrors"]] == errors
        assert {error["code"] for error in caught.value.details["writeErrors"]} == {11000}
        assert [doc["_id"] for doc in database.c.find(sort=[("_id", 1)])] == stored


def test_updates(database) -> None:
    c = database.c
    c.insert_one({"_id": 1, "a": 1, "l": [{"k": 1, "v": 0}, {"k": 2, "v": 0}]})
    assert c.update_one({"_id": 1}, [{"$set": {"b": {"$add": ["$a", 1]}}}]).modified_count == 1
    assert c.update_one({"_id": 1}, {"$set": {"l.$[e].v": 9}}, array_filters=[{"e.k": 2}]).modified_count == 1
    assert c.find_one({"_id": 1}) == {"_id": 1, "a": 1, "b": 2, "l": [{"k": 1, "v": 0}, {"k": 2, "v": 9}]}
    made = c.update_one({"_id": 5}, {"$set": {"a": 5}}, upsert=True)
    assert (made.matched_count, made.upserted_id) == (0, 5)
    assert c.replace_one({"_id": 5}, {"a": 6}, upsert=True).matched_count == 1
    result = c.bulk_write([UpdateOne({"_id": n}, {"$inc": {"a": 1}}, upsert=True) for n in (1, 5, 7)])
    assert (result.matched_count, result.modified_count, result.upserted_ids) == (2, 2, {2: 7})
    assert [doc["a"] for doc in c.find(sort=[("_id", 1)])] == [2, 7, 1]
    assert c.update_many({"a": {"$gt": 1}}, {"$set": {"old": True}}).modified_count == 2
    assert c.find_one_and_update({"_id": 7}, {"$inc": {"a": 1}}) == {"_id": 7, "a": 1}
    assert c.find_one_and_update({"_id": 7}, {"$inc": {"a": 1}}, return_document=True) == {"_id": 7, "a": 3}
    assert c.find_one_and_update({"_id": 8}, {"$set": {"a": 1}}) is None
    assert c.find_one_and_replace({"_id": 7}, {"z": 1}, projection={"_id": 0}, return_document=True) == {"z": 1}
    assert c.find_one_and_delete({"old": True}, sort=[("a", -1)])["_id"] == 5
    with pytest.raises(OperationFailure):
        c.update_one({"_id": 1}, {"$inc": {"l": 1}})
    assert c.delete_many({}).deleted_count == c.count_documents({}) + 2


def test_collections_and_indexes(database) -> None:
    c = database.create_collection("c")
    with pytest.raises(PyMongoError, match="already exists"):
        database.create_collection("c")
    assert c.create_index([("uuid", 1), ("index", -1)], unique=True) == "uuid_1_index_-1"
    c.create_index("name")
    c.insert_one({"uuid": "a", "index": 1})
    with pytest.raises(DuplicateKeyError):
        c.insert_one({"uuid": "a", "index": 1})
    c.insert_one({"uuid": "a", "index": 2})
    known = c.index_information()
    assert set(known) == {"_id_", "uuid_1_index_-1", "name_1"}
    assert known["uuid_1_index_-1"]["unique"]
    assert known["uuid_1_index_-1"]["key"] == [("uuid", 1), ("index", -1)]
    c.drop_index([("uuid", 1), ("index", -1)])
    with pytest.raises(OperationFailure) as caught:
        c.drop_index("none")
    assert caught.value.code == 27
    c.drop_indexes()
    assert set(c.index_information()) == {"_id_"}
    assert database.absent.index_information() == {}
    c.rename("d")
    assert database.list_collection_names() == ["d"]
    assert database.list_collection_names(filter={"name": {"$regex": "^x"}}) == []
    assert database.d.estimated_document_count() == database.d.count_documents({"uuid": "a"}) == 2
    assert sorted(database.d.distinct("index")) == [1, 2]
    assert list(database.d.aggregate([{"$group": {"_id": "$uuid", "n": {"$sum": "$index"}}}])) == [{"_id": "a", "n": 3}]
    assert database.name in database.client.list_database_names()
    assert database.command("dbStats")["objects"] == 2
    database.drop_collection("d")
    database.drop_collection("d")
    assert database.list_collection_names() == []
    with pytest.raises(OperationFailure) as caught:
        database.command("inventAnAnswer")
    assert caught.value.code == 59


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads of this process take turns as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_clients_at_once_claim_every_item_once(address: str, restless) -> None:  # noqa: F811
    def claim(name: int) -> None:
        with MongoClient(address) as client:
            queue = client.get_default_database().queue
            while item := queue.find_one_and_update(
                {"state": "READY"}, {"$set": {"state": "RUNNING", "by": name}}, sort=[("_id", 1)]
            ):
                claimed[name].append(item["_id"])
                queue.update_one({"_id": "counter"}, {"$inc": {"n": 1}}, upsert=True)

    with MongoClient(address) as client:
        client.get_default_database().queue.insert_many({"_id": n, "state": "READY"} for n in range(80))
        claimed: list[list[int]] = [[], [], [], []]
        threads = [threading.Thread(target=claim, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(itertools.chain(*claimed)) == list(range(80))
        assert client.get_default_database().queue.find_one({"_id": "counter"})["n"] == 80


LOST = "test -e first || { touch first; exec sleep 60; }"
"""Runs into the death of its worker the first time, and is done at once the second time."""


@pytest.fixture
def launchpad(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    fireworks = pytest.importorskip("fireworks")
    from fireworks.utilities import fw_serializers

    monkeypatch.chdir(tmp_path)
    # else FireWorks searches all its modules for the class, its own tests included, whose markers pytest does not know
    module = "fireworks.user_objects.firetasks.script_task"
    monkeypatch.setitem(fw_serializers.SAVED_FW_MODULES, "ScriptTask", module)
    made = fireworks.LaunchPad(host=address, name=address.rsplit("/", 1)[1], uri_mode=True, strm_lvl="CRITICAL")
    made.reset("", require_password=False, max_reset_wo_password=10)
    return made


def test_fireworks_finds_a_lost_run(launchpad, tmp_path: Path) -> None:
    from fireworks import Firework, ScriptTask, Workflow
    from fireworks.core.rocket_launcher import rapidfire

    first = Firework(ScriptTask.from_str(f"cd {tmp_path}; {LOST}"))
    second = Firework(ScriptTask.from_str(f"test -e {tmp_path / 'first'}"))
    launchpad.add_wf(Workflow([first, second], {first: [second]}))
    settings = {"host": launchpad.host, "name": launchpad.name, "uri_mode": True, "strm_lvl": "CRITICAL"}
    worker = (
        "from fireworks import LaunchPad; from fireworks.core.rocket_launcher import rapidfire; "
        f"rapidfire(LaunchPad(**{settings!r}), nlaunches=1, strm_lvl='CRITICAL')"
    )
    process = subprocess.Popen([sys.executable, "-c", worker], start_new_session=True)
    try:
        for _ in range(600):
            if (tmp_path / "first").exists():
                break
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert states(launchpad) == ["RUNNING", "WAITING"]
    assert not launchpad.run_exists()
    assert len(launchpad.detect_lostruns(expiration_secs=0, rerun=True)[1]) == 1
    assert states(launchpad) == ["READY", "WAITING"]
    rapidfire(launchpad, strm_lvl="CRITICAL")
    assert states(launchpad) == ["COMPLETED", "COMPLETED"]


def test_fireworks_runs_a_fizzled_firework_again(launchpad, tmp_path: Path) -> None:
    from fireworks import Firework, ScriptTask
    from fireworks.core.rocket_launcher import rapidfire

    launchpad.add_wf(Firework(ScriptTask.from_str(f"test -e {tmp_path / 'input'}")))
    rapidfire(launchpad, strm_lvl="CRITICAL")
    assert states(launchpad) == ["FIZZLED"]
    (tmp_path / "input").touch()
    launchpad.rerun_fw(launchpad.get_fw_ids()[0])
    rapidfire(launchpad, strm_lvl="CRITICAL")
    assert states(launchpad) == ["COMPLETED"]
    launchpad.tuneup(bkground=False)
    launchpad.delete_wf(launchpad.get_fw_ids()[0])
    assert launchpad.get_fw_ids() == []


def states(launchpad) -> list[str]:
    found = [launchpad.get_fw_by_id(number) for number in sorted(launchpad.get_fw_ids())]
    return sorted((fw.state for fw in found), key=["COMPLETED", "FIZZLED", "READY", "RUNNING", "WAITING"].index)


ESCAPE = "().__class__.__base__.__subclasses__()"


@pytest.mark.parametrize(
    "call",
    [
        lambda c: list(c.find({"$where": ESCAPE})),
        lambda c: list(c.find({"$or": [{"a": 2}, {"$and": [{"$where": ESCAPE}]}]})),
        lambda c: c.count_documents({"$where": ESCAPE}),
        lambda c: c.distinct("a", {"$where": ESCAPE}),
        lambda c: list(
            c.aggregate([{"$lookup": {"from": "c", "pipeline": [{"$match": {"$where": ESCAPE}}], "as": "b"}}])
        ),
        lambda c: list(c.aggregate([{"$set": {"b": {"$function": {"body": "x", "args": [], "lang": "js"}}}}])),
        lambda c: c.update_many({"$where": ESCAPE}, {"$set": {"b": 1}}),
        lambda c: c.delete_many({"$where": ESCAPE}),
        lambda c: c.find_one_and_update({"$where": ESCAPE}, {"$set": {"b": 1}}),
        lambda c: c.database.list_collection_names(filter={"$where": ESCAPE}),
    ],
)
def test_no_code_of_a_client_is_run(memory, call) -> None:
    memory.c.insert_one({"a": 1})
    with pytest.raises(OperationFailure, match="code, which this server does not run"):
        call(memory.c)
    assert [(doc["a"], "b" in doc) for doc in memory.c.find()] == [(1, False)]


def test_transactions_are_refused_as_by_one_server(memory) -> None:
    with memory.client.start_session() as session:
        session.start_transaction()
        with pytest.raises(OperationFailure) as caught:
            memory.c.insert_one({"a": 1}, session=session)
    assert caught.value.code == 20
    assert memory.c.count_documents({}) == 0


def test_what_is_no_message_is_hung_up_on(memory) -> None:
    assert memory.client.admin.command("ping")["ok"] == 1.0
    place = memory.client.address
    for junk in (b"GET / HTTP/1.1\r\n\r\n", bytes(16), b"\x20\0\0\0" + bytes(8) + b"\xdd\x07\0\0" + b"\xff" * 16):
        with socket.create_connection(place, timeout=5) as connection:
            connection.sendall(junk)
            assert connection.recv(1) == b""
    assert memory.client.admin.command("ping")["ok"] == 1.0
    with pytest.raises(ValueError, match="broken"):
        read_message(bytes(4) + b"\x02\x05\0\0\0\0")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org", "", "127.0.0.1.example.org"])
def test_only_loopback(host: str) -> None:
    with pytest.raises(SettingsError, match="does not listen on"):
        MemoryMongoDB(host)


def test_localhost_is_loopback() -> None:
    with memory_mongodb("localhost") as uri:
        assert uri.startswith("mongodb://127.0.0.1:")


def test_the_other_protocol_of_the_internet() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"this machine has no loopback of IPv6: {error}")
    with memory_mongodb("::1") as uri, MongoClient(uri) as client:
        assert uri.startswith("mongodb://[::1]:")
        assert client.admin.command("ping")["ok"] == 1.0


def test_a_port_that_is_taken() -> None:
    with memory_mongodb() as uri:
        port = int(uri.rsplit(":", 1)[1])
        with pytest.raises(StoreError, match=f"port {port} of 127.0.0.1.*choose another port"):
            MemoryMongoDB(port=port)
    with memory_mongodb(port=port) as again:
        assert again == uri
    with pytest.raises(SettingsError, match="no port"):
        MemoryMongoDB(port=70000)


def test_the_end_hangs_up_and_forgets() -> None:
    with memory_mongodb() as uri:
        client = MongoClient(f"{uri}/x", serverSelectionTimeoutMS=200)
        client.x.c.insert_one({"a": 1})
        port = int(uri.rsplit(":", 1)[1])
    with pytest.raises(PyMongoError):
        client.x.c.count_documents({})
    with memory_mongodb(port=port):
        assert pymongo.MongoClient(uri).x.c.count_documents({}) == 0
    client.close()
