"""Claims: each name has one holder at a time, also among processes that ask at once, die or have wrong clocks."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from jobflow import JobStore
from maggma.stores import JSONStore, MemoryStore

from fieldflows.errors import StoreError
from fieldflows.store import claims as module
from fieldflows.store import get_store
from fieldflows.store.claims import Claims
from fieldflows.store.owners import Owner, start_of
from fieldflows.testing import mongodb_commands
from fieldflows.testing.mongodb import memory_mongodb
from tests.support.mongodb import address  # noqa: F401  (a fixture)
from tests.support.stores import job_store  # noqa: F401  (a fixture)

forked = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
on_linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def elsewhere() -> Owner:
    """Return an owner on another machine."""
    return replace(Owner.here(), host="another.example.org")


def test_one_holder_at_a_time(job_store: JobStore) -> None:  # noqa: F811
    claims, first, second = Claims.of(job_store), Owner.here(), Owner.here()
    assert first.token != second.token
    assert claims.holder("a") is None
    assert not claims.renew("a", first)
    assert claims.take("a", first, 60)
    assert claims.take("a", first, 60)
    assert not claims.take("a", second, 60)
    assert claims.take("b", second, 60)
    assert (claims.holder("a"), claims.holder("b")) == (first, second)
    assert not claims.renew("a", second)
    assert not claims.release("a", second)
    assert claims.renew("a", first)
    assert claims.release("a", first)
    assert not claims.release("a", first)
    assert Claims.of(job_store).take("a", second, 60)
    assert not claims.renew("a", first)
    assert claims.break_("a")
    assert not claims.break_("a")
    assert claims.holder("a") is None
    assert not claims.renew("a", second)
    assert claims.holder("b") == second


def test_a_lease_that_is_over_is_free_and_lost(job_store: JobStore) -> None:  # noqa: F811
    claims, first, second = Claims.of(job_store), elsewhere(), elsewhere()
    assert claims.take("a", first, 0.5)
    assert not claims.take("a", second, 60)
    time.sleep(0.3)
    assert claims.renew("a", first)
    time.sleep(0.3)
    assert claims.holder("a") == first
    time.sleep(0.3)
    assert claims.holder("a") is None
    assert claims.take("a", second, 60)
    assert not claims.renew("a", first)
    assert not claims.release("a", first)
    assert claims.holder("a") == second


def test_an_owner_may_renew_what_nobody_took(job_store: JobStore) -> None:  # noqa: F811
    claims, owner = Claims.of(job_store), elsewhere()
    assert claims.take("a", owner, -1.0)
    assert claims.holder("a") is None
    assert claims.take("a", owner, 60)
    assert claims.holder("a") == owner


def test_threads_of_one_process(job_store: JobStore) -> None:  # noqa: F811
    claims = Claims.of(job_store)
    taken: list[str] = []

    def take_all() -> None:
        owner = Owner.here()
        taken.extend(f"n{i}" for i in range(30) if claims.take(f"n{i}", owner, 60))

    threads = [threading.Thread(target=take_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(f"n{i}" for i in range(30))


def _take_all(spec: str, count: int, first: int, barrier, answers) -> None:
    claims, owner = Claims.of(get_store(spec)), Owner.here()
    order = [(first + i) % count for i in range(count)]
    barrier.wait()
    mine = []
    for i in order:
        if claims.take(f"n{i}", owner, 600):
            mine.append(f"n{i}")
        time.sleep(0.002)  # SQLite gives the file to whoever asks again first: the others need a turn
    barrier.wait()  # the claims of a process that has ended would be free again
    answers.put((mine, all(claims.holder(name) == owner for name in mine)))
    barrier.wait()


def race(spec: str, processes: int, count: int) -> None:
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(processes), context.Queue()
    # two begin at the same name and race for each; pairs begin apart, so that no process can take everything
    starts = [number // 2 * 2 * count // processes for number in range(processes)]
    drivers = [context.Process(target=_take_all, args=(spec, count, first, barrier, answers)) for first in starts]
    for driver in drivers:
        driver.start()
    found = [answers.get(timeout=120) for _ in drivers]
    for driver in drivers:
        driver.join(60)
    times = Counter(name for mine, _ in found for name in mine)
    assert times == {f"n{i}": 1 for i in range(count)}
    assert all(holds for _, holds in found)
    assert sum(bool(mine) for mine, _ in found) >= processes // 2


@forked
def test_processes_that_ask_at_once_for_an_embedded_store(tmp_path: Path) -> None:
    get_store(tmp_path / "s.db").close()
    race(str(tmp_path / "s.db"), 8, 200)


@forked
def test_processes_that_ask_at_once_for_a_mongodb(address: str) -> None:  # noqa: F811
    race(address, 8, 200)


HOLD = """
import sys, time
from fieldflows.store import get_store
from fieldflows.store.claims import Claims
from fieldflows.store.owners import Owner
print(Claims.of(get_store(sys.argv[1])).take("a", Owner.here(), 3600), flush=True)
time.sleep(600)
"""


@on_linux
@pytest.mark.parametrize("kind", ["sqlite", "mongo"])
def test_the_claim_of_a_killed_process_is_void_at_once(tmp_path: Path, kind: str) -> None:
    with memory_mongodb() as server:
        spec = str(tmp_path / "s.db") if kind == "sqlite" else f"{server}/test"
        claims = Claims.of(get_store(spec))
        driver = subprocess.Popen([sys.executable, "-c", HOLD, spec], stdout=subprocess.PIPE, text=True)
        try:
            assert driver.stdout.readline() == "True\n"
            assert claims.holder("a").pid == driver.pid
            assert not claims.take("a", Owner.here(), 60)
            driver.kill()
            # not waited for yet: a process that has ended is one that has ended
            deadline = time.monotonic() + 30
            while start_of(driver.pid) is not None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert claims.holder("a") is None
            assert claims.take("a", Owner.here(), 60)
        finally:
            driver.kill()
            driver.wait(timeout=30)


@on_linux
def test_who_is_gone() -> None:
    here = Owner.here()
    child = subprocess.Popen(["sleep", "600"])
    other = replace(here, pid=child.pid, started=start_of(child.pid))
    try:
        assert not here.is_gone()
        assert not other.is_gone()
        assert replace(other, started=other.started - 1).is_gone(), "its number was given to another process"
    finally:
        child.kill()
        child.wait(timeout=30)
    assert other.is_gone()
    # what happened elsewhere, before a restart or in another container cannot be seen
    assert not replace(other, host="another.example.org").is_gone()
    assert not replace(other, machine="another start").is_gone()
    assert Owner.from_json_dict(other.to_json_dict()) == other
    assert str(other) == f"process {child.pid} on {other.host}"


@on_linux
def test_processes_with_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a program may hold spaces and parentheses; everything else has its place behind it."""
    from fieldflows.store import owners

    real = Path("/proc/self/stat").read_text()
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a) S 1) b" + real[real.rindex(")") :])
    monkeypatch.setattr(owners, "_PROC", tmp_path)
    assert start_of(7) == int(real.rpartition(")")[2].split()[19])
    assert start_of(8) is None
    # without /proc, the number of the process has to do
    ended = subprocess.Popen(["true"])
    ended.wait(timeout=30)
    assert (Owner.here().machine, Owner.here().started, Owner.here().is_gone()) == (None, None, False)
    assert replace(Owner.here(), pid=ended.pid).is_gone()


def test_leases_follow_the_clock_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose clock is an hour ahead takes nothing away from others, and claims nothing for an hour more."""
    with memory_mongodb() as server:
        claims, other = Claims.of(get_store(f"{server}/test")), elsewhere()
        assert claims.take("a", other, 60)
        real = time.time
        with monkeypatch.context() as patch:
            patch.setattr(module.time, "time", lambda: real() + 3600)
            assert not claims.take("a", Owner.here(), 60)
            assert claims.take("b", other, 60)

        class Later(datetime):
            @classmethod
            def now(cls, zone=None):
                return datetime.now(zone) + timedelta(seconds=61)

        monkeypatch.setattr(mongodb_commands, "datetime", Later)
        assert claims.take("a", Owner.here(), 60)
        assert claims.take("b", Owner.here(), 60)


def test_a_confirmation_that_got_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The write happened, the answer did not arrive: asked again, the owner still has the claim."""
    from pymongo.errors import AutoReconnect

    from fieldflows.store import patience

    monkeypatch.setattr(patience, "RETRY_DELAYS", (0.0,) * 3)
    with memory_mongodb() as server:
        claims, owner = Claims.of(get_store(f"{server}/test")), Owner.here()
        collection = claims.store._collection
        lost = []

        class Losing:
            def __getattr__(self, name: str):
                return getattr(collection, name)

            def insert_one(self, document):
                collection.insert_one(document)
                lost.append(document)
                raise AutoReconnect("no answer")

        claims.store._coll = Losing()
        assert claims.take("a", owner, 60)
        assert len(lost) == 1
        assert claims.holder("a") == owner
        assert not claims.take("a", Owner.here(), 60)


def test_stores_that_cannot_hold_claims() -> None:
    class Other(MemoryStore):
        pass

    for store in (JSONStore("x.json", read_only=False), Other()):
        with pytest.raises(StoreError, match="cannot hold claims"):
            Claims(store)


def test_one_document_is_changed_in_one_transaction(tmp_path: Path) -> None:
    store = get_store(tmp_path / "s.db").docs_store
    store.change({"uuid": "a"}, lambda current: {"uuid": "a", "n": 1})
    store.change({"uuid": "a"}, lambda current: {**current, "n": current["n"] + 1})
    store.change({"uuid": "a"}, lambda current: current)
    store.change({"uuid": "b"}, lambda current: current)
    with pytest.raises(ZeroDivisionError):
        store.change({"uuid": "a"}, lambda current: {"uuid": "a", "n": 1 / 0})
    assert list(store.query()) == [{"uuid": "a", "n": 2}]
    store.change({"uuid": "a"}, lambda current: None)
    store.change({"uuid": "a"}, lambda current: None)
    assert store.count() == 0
