"""A JobStore of each kind for tests that hold for all of them; a real MongoDB only where there is one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobflow import JobStore
from maggma.stores import MemoryStore
from pymongo import MongoClient

from fieldflows.store import get_store
from fieldflows.testing.mongodb import memory_mongodb
from tests.support.mongodb import real_server


@pytest.fixture(params=["sqlite", "memory", "mongo", pytest.param("mongod", marks=pytest.mark.mongod)])
def job_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobStore]:
    """An empty JobStore of its own for each test."""
    if request.param == "sqlite":
        yield get_store(tmp_path / "s.db")
    elif request.param == "memory":
        yield JobStore(MemoryStore())
    elif request.param == "mongo":
        with memory_mongodb() as server:
            yield get_store(f"{server}/test")
    else:
        name = f"fieldflows_test_{uuid.uuid4().hex[:8]}"
        for server in real_server(tmp_path):
            yield get_store(f"{server}/{name}")
            MongoClient(server).drop_database(name)
