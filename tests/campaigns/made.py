"""Campaigns for tests: small rock salts, each of another lattice constant, and ways to compare what came of them."""

from __future__ import annotations

import copy
from typing import Any

from ase import Atoms
from ase.build import bulk
from jobflow import JobStore

from fieldflows.campaigns import Campaign
from fieldflows.store import FailuresCollection, ResultsCollection

PAIRS = (("MgO", 4.21), ("NaCl", 5.64), ("LiF", 4.03), ("KBr", 6.60), ("CaO", 4.81))

ELECTRONIC = {"name": "optical", "settings": {"ionic": False}}
LATTICE = {"name": "lattice", "where": "n < 1.9", "settings": {"ionic": True}}
FUNNEL = [ELECTRONIC, LATTICE]


def crystals(count: int) -> list[Atoms]:
    """Return distinct crystals, some of which pass the condition of LATTICE."""
    made = []
    for number in range(count):
        name, length = PAIRS[number % len(PAIRS)]
        made.append(bulk(name, "rocksalt", length * (1 + 1e-4 * (number // len(PAIRS)))))
    return made


def campaign(name: str = "salts", count: int = 12, **settings: Any) -> Campaign:
    settings = {"stages": FUNNEL, "chunks": {"structures": 5}} | settings
    return Campaign.of(name, crystals(count), model="toy", **copy.deepcopy(settings))


def results_of(store: JobStore) -> dict[str, dict[str, Any]]:
    """Return the stored results by key, without times."""
    found = {}
    for row in ResultsCollection.of(store).query():
        row["provenance"].pop("created_at")
        assert row["key"] not in found
        found[row["key"]] = row
    return found


def failures_of(store: JobStore) -> dict[str, dict[str, Any]]:
    """Return the stored failures by key, without times and numbers of attempts."""
    found = {}
    for row in FailuresCollection.of(store).query():
        row.pop("created_at")
        row.pop("attempts")
        assert row["failure_key"] not in found
        found[row["failure_key"]] = row
    return found
