"""A database for tests that go through the real client: the server in memory, and a real one where there is one.

Tests that take ``address`` run twice.  The real server is the one that FIELDFLOWS_TEST_MONGODB_URI names, or a mongod
on the PATH, which is started for the test; without either, that half is skipped.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from pymongo import MongoClient

from fieldflows.testing.mongodb import memory_mongodb


def real_server(folder: Path) -> Iterator[str]:
    named = os.environ.get("FIELDFLOWS_TEST_MONGODB_URI")
    if named:
        yield named.rstrip("/")
        return
    program = shutil.which("mongod")
    if program is None:
        pytest.skip("no mongod on the PATH and no FIELDFLOWS_TEST_MONGODB_URI")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "db").mkdir()
    words = [program, "--dbpath", str(folder / "db"), "--port", str(port), "--bind_ip", "127.0.0.1"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    try:
        yield f"mongodb://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(params=["memory", pytest.param("mongod", marks=pytest.mark.mongod)])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Address of a database of its own for each test."""
    name = f"fieldflows_test_{uuid.uuid4().hex[:8]}"
    if request.param == "memory":
        with memory_mongodb() as server:
            yield f"{server}/{name}"
        return
    for server in real_server(tmp_path):
        yield f"{server}/{name}"
        MongoClient(server).drop_database(name)
