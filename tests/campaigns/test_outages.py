"""A database that goes away in the middle or at the end, and two drivers at once."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest
from ase.io import write
from jobflow import JobStore

from fieldflows.campaigns.campaign import work_locally
from fieldflows.campaigns.records import Campaigns
from fieldflows.campaigns.survey import survey
from fieldflows.store import get_store
from fieldflows.testing.mongodb import memory_mongodb
from tests.campaigns.made import campaign, crystals, results_of
from tests.campaigns.processes import run, start, wait_for
from tests.campaigns.test_kills import FILE
from tests.support.proxy import Relay, relay


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again soon, so that the test is short."""
    monkeypatch.setattr("fieldflows.store.patience.RETRY_DELAYS", (0.2,) * 100)
    monkeypatch.setattr("fieldflows.store.select.MONGO_TIMEOUT_MS", 200)


@pytest.mark.parametrize("when", ["middle", "end"])
def test_a_database_that_goes_away(when: str, quick, store: JobStore) -> None:
    expected = campaign(count=20, chunks={"structures": 20}).run(store) and results_of(store)
    with memory_mongodb() as server, relay(server) as line:
        remote = get_store(f"{line.uri}/trial")
        campaign(count=20, chunks={"structures": 20}).submit(remote)
        seen = 0

        def report(stage: str, done: int, failed: int) -> None:
            nonlocal seen
            seen += done
            if seen == (8 if when == "middle" else 20) and stage == "optical":
                line.away()
                threading.Timer(2.0, line.back).start()

        outcome = work_locally(remote, "salts", report=report)
        assert (outcome.complete, outcome.left) == ([0], {})
        assert results_of(get_store(f"{server}/trial")) == expected


def test_results_stay_on_this_machine_where_the_database_stays_away(
    monkeypatch: pytest.MonkeyPatch, store: JobStore, journals: Path
) -> None:
    monkeypatch.setattr("fieldflows.store.patience.RETRY_DELAYS", ())
    monkeypatch.setattr("fieldflows.campaigns.job.LEASE_S", 1.0)  # the claim could not be given back either
    monkeypatch.setattr("fieldflows.store.select.MONGO_TIMEOUT_MS", 200)
    stages = [{"name": "optical", "settings": {"ionic": False}}]
    expected = campaign(count=12, chunks={"structures": 12}, stages=stages).run(store) and results_of(store)
    with memory_mongodb() as server, relay(server) as line:
        remote = get_store(f"{line.uri}/trial")
        campaign(count=12, chunks={"structures": 12}, stages=stages).submit(remote)
        outcome = work_locally(remote, "salts", report=lambda *_: line.away())
        assert list(outcome.left) == [0]
        assert "does not answer" in outcome.left[0]
        assert len(results_of(get_store(f"{server}/trial"))) == 8
        line.back()
        again = get_store(f"{line.uri}/trial")
        computed = []
        outcome = work_locally(again, "salts", report=lambda stage, done, failed: computed.append(done))
        assert outcome.complete == [0]
        assert computed == []  # all of it was on this machine
        assert results_of(again) == expected
    assert list(journals.rglob("*.jsonl")) == []


@pytest.mark.slow
@pytest.mark.parametrize("when", ["middle", "end"])
def test_a_minute_without_the_database(when: str, tmp_path: Path) -> None:
    write(tmp_path / "many.extxyz", crystals(120), format="extxyz")
    (tmp_path / "broken.cif").write_text("nothing\n")
    (tmp_path / "campaign.yaml").write_text(FILE % 60)
    assert run("campaign", "submit", "campaign.yaml", "--store", "calm.db", folder=tmp_path) == 1
    expected = results_of(get_store(tmp_path / "calm.db"))
    with memory_mongodb() as server, relay(server) as line:
        straight = get_store(f"{server}/trial")
        words = ("campaign", "submit", "campaign.yaml", "--workers", "2")
        driver = start(*words, folder=tmp_path, FIELDFLOWS_STORE=f"{line.uri}/trial")
        share = 0.3 if when == "middle" else 0.95
        wait_for(lambda: len(results_of(straight)) > share * len(expected))
        _gone_for(line, 60.0)
        assert driver.wait(600) == 1
        assert survey(straight, Campaigns.of(straight).require("salts")).complete
        assert results_of(straight) == expected


def _gone_for(line: Relay, seconds: float) -> None:
    line.away()
    time.sleep(seconds)
    line.back()


@pytest.mark.skipif(sys.platform != "linux", reason="tells live from dead processes by /proc")
def test_two_drivers_share_the_work(tmp_path: Path) -> None:
    count, chunk = 60, 6
    write(tmp_path / "many.extxyz", crystals(count), format="extxyz")
    (tmp_path / "broken.cif").write_text("nothing\n")
    (tmp_path / "campaign.yaml").write_text(FILE % chunk)
    assert run("campaign", "submit", "campaign.yaml", "--store", "s.db", "--only-write", folder=tmp_path) == 0
    words = ("campaign", "resume", "salts", "--store", "s.db")
    drivers = [start(*words, folder=tmp_path) for _ in range(2)]
    assert [driver.wait(300) for driver in drivers] == [1, 1]
    store = get_store(tmp_path / "s.db")
    assert survey(store, Campaigns.of(store).require("salts")).complete
    outputs = [row["output"] for row in store.query({"output.task": "campaign_chunk"})]
    computed = sum(s["computed"] for output in outputs for s in output["stages"] if s["name"] == "optical")
    assert count <= computed <= count + 2 * chunk
