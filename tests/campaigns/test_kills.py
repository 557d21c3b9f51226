"""Workers and driver are killed at random; in the end the documents are those of a run that nobody disturbed."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import pytest
from ase.io import write

from fieldflows.campaigns.records import Campaigns
from fieldflows.campaigns.survey import survey
from fieldflows.store import get_store
from tests.campaigns.made import crystals, failures_of, results_of
from tests.campaigns.processes import children, kill, run, start

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds worker processes in /proc")

FILE = """\
name: salts
inputs: [{files: [many.extxyz, broken.cif]}]
model: {name: toy}
stages:
  - {name: optical, settings: {ionic: false}}
  - {name: lattice, where: n < 1.9, settings: {ionic: true}}
chunks: {structures: %d}
"""


def prepared(folder: Path, count: int, chunk: int) -> Path:
    write(folder / "many.extxyz", crystals(count), format="extxyz")
    (folder / "broken.cif").write_text("nothing\n")
    (folder / "campaign.yaml").write_text(FILE % chunk)
    return folder


def undisturbed(folder: Path) -> tuple[dict, dict]:
    assert run("campaign", "submit", "campaign.yaml", "--store", "calm.db", folder=folder) == 1  # one input is broken
    store = get_store(folder / "calm.db")
    return results_of(store), failures_of(store)


def disturbed(folder: Path, kills: int, seed: int) -> tuple[int, int]:
    """Run with two workers, kill workers and driver at random, and return how many of each."""
    random_ = random.Random(seed)
    workers = drivers = 0
    words = ("campaign", "submit", "campaign.yaml", "--store", "killed.db", "--workers", "2")
    driver = start(*words, folder=folder)
    while workers + drivers < kills:
        time.sleep(random_.uniform(0.3, 2.5))
        if driver.poll() is not None:
            break  # everything is done: nobody is left to kill
        victims = children(driver.pid)
        if not victims:
            continue  # it has only just begun
        if random_.random() < 0.3:
            kill(driver.pid)
            driver.wait()
            drivers += 1
            driver = start(*words, folder=folder)
        else:
            workers += kill(random_.choice(victims))
    if driver.poll() is None:
        assert driver.wait(600) in (0, 1)
    assert run(*words, folder=folder) == 1
    return workers, drivers


def check(folder: Path, count: int) -> None:
    expected_results, expected_failures = undisturbed(folder)
    store = get_store(folder / "killed.db")
    assert survey(store, Campaigns.of(store).require("salts")).complete
    found = results_of(store)
    assert len(found) == count
    assert found == expected_results
    assert failures_of(store) == expected_failures


def test_a_few_kills(tmp_path: Path, journals: Path) -> None:
    folder = prepared(tmp_path, 60, 6)
    workers, drivers = disturbed(folder, 4, seed=1)
    assert workers + drivers >= 2
    check(folder, 60)
    assert list(journals.rglob("*.jsonl")) == []


@pytest.mark.slow
def test_a_hundred_kills(tmp_path: Path, journals: Path) -> None:
    folder = prepared(tmp_path, 2000, 40)
    workers, drivers = disturbed(folder, 100, seed=2)
    assert workers + drivers == 100, (workers, drivers)
    assert min(workers, drivers) > 10
    check(folder, 2000)
    assert list(journals.rglob("*.jsonl")) == []
