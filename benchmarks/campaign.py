"""What a campaign costs beside the computation: ten thousand crystals with the closed-form model, on this machine.

Everything that is not plan, evaluation and analysis of a crystal counts as overhead: writing the campaign, claims,
journal with fsync, results into the embedded store, outputs of jobs.  Each size runs in a process of its own, so that
its memory can be told: ``python -m benchmarks.campaign COUNT SEED``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from rich.table import Table

from benchmarks.datasets import peak_megabytes

LIMIT_S = 2e-3
"""Largest overhead for each crystal."""

CATIONS = ("Li", "Na", "K", "Rb", "Cs", "Mg", "Ca", "Sr", "Ba", "Zn", "Cd", "Al", "Ga", "In", "Ti", "Zr", "Y", "La")
ANIONS = ("F", "Cl", "Br", "I", "O", "S", "Se", "Te", "N", "P", "As")
STAGES = [
    {"name": "optical", "settings": {"ionic": False}},
    {"name": "lattice", "where": "n < 1.8", "settings": {"ionic": True}},
]


def made_crystals(count: int, seed: int = 0) -> list[Atoms]:
    """Return distinct crystals of two atoms, a third of them strained so that hardly any symmetry is left.

    Args:
        count: Number of crystals.
        seed: Another seed, other crystals.
    """
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        name = f"{random.choice(CATIONS)}{random.choice(ANIONS)}"
        structure = str(random.choice(["rocksalt", "zincblende"]))
        length = float(random.uniform(4.2, 6.8)) * (1.0 if structure == "rocksalt" else 1.05)
        crystal = bulk(name, structure, length)
        if random.random() < 1 / 3:
            strain = np.eye(3) + random.normal(scale=0.01, size=(3, 3))
            crystal.set_cell(crystal.cell[:] @ strain, scale_atoms=True)
        made.append(crystal)
    return made


def measure_campaign(count: int, seed: int = 0) -> dict[str, Any]:
    """Return times and memory of a campaign of this size, and the memory of one of a tenth.

    Args:
        count: Number of crystals.
        seed: Of the crystals.
    """
    small, large = (_in_a_process(number, seed) for number in (max(count // 10, 1), count))
    return large | {"peak_megabytes_of_a_tenth": small["peak_megabytes"], "overhead_s_of_a_tenth": small["overhead_s"]}


def _in_a_process(count: int, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        words = [sys.executable, "-m", "benchmarks.campaign", str(count), str(seed), name]
        environment = os.environ | {"FIELDFLOWS_JOURNALS": f"{name}/journals"}
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"The campaign failed: {done.stderr.strip()[-500:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def timed_campaign(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run a campaign in this process, and return what :func:`measure_campaign` returns of it."""
    from fieldflows.campaigns.campaign import Campaign, write_campaign
    from fieldflows.campaigns.dispatch import status_of
    from fieldflows.campaigns.export import rows
    from fieldflows.campaigns.records import Campaigns
    from fieldflows.store import get_store

    warnings.simplefilter("ignore")
    store = get_store(folder / "store.db")
    campaign = Campaign.of("benchmark", made_crystals(count, seed), model="toy", stages=STAGES)
    times: dict[str, float] = {}

    def timed(name: str, action: Any) -> Any:
        start = time.perf_counter()
        result = action()
        times[name] = time.perf_counter() - start
        return result

    plans = [timed("plan", lambda: campaign.plan(store))]
    timed("write", lambda: write_campaign(plans.pop(), store, "benchmark"))
    computing = timed("work", lambda: _work(store))
    found = timed("status", lambda: status_of(store, "benchmark"))
    timed("again", lambda: _work(store))
    manifest = Campaigns.of(store).require("benchmark")
    exported = timed("export", lambda: sum(1 for _ in rows(store, manifest)))
    assert found.complete
    assert exported == count
    return {
        "crystals": found.crystals,
        "stages": [stage.to_dict() for stage in found.stages],
        "chunks": manifest["chunks"],
        "seconds": times,
        "computing_s": computing,
        "overhead_s": (times["write"] + times["work"] - computing) / found.crystals,
        "acceptable": (times["write"] + times["work"] - computing) / found.crystals <= LIMIT_S,
        "file_megabytes": (folder / "store.db").stat().st_size / 1e6,
        "peak_megabytes": peak_megabytes(),
    }


def _work(store: Any) -> float:
    """Work on what is left, and return the seconds of plan, evaluation and analysis."""
    from fieldflows.campaigns.campaign import work_locally
    from fieldflows.campaigns.records import Progress

    outcome = work_locally(store, "benchmark")
    assert not outcome.left
    noted = Progress.of(store).of_campaign("benchmark")
    return float(sum(stage["seconds"] for row in noted for stage in row["stages"]))


def campaign_table(section: dict[str, Any]) -> Table:
    """Return the result as a table for the terminal."""
    result = section["result"]
    table = Table(
        title=f"Campaign of {result['crystals']} crystals in {result['chunks']} chunks",
        caption=f"peak memory {result['peak_megabytes']:.0f} MB (a tenth of the crystals: "
        f"{result['peak_megabytes_of_a_tenth']:.0f} MB), store {result['file_megabytes']:.0f} MB",
    )
    table.add_column("what")
    table.add_column("seconds", justify="right")
    table.add_column("ms for a crystal", justify="right")
    count = result["crystals"]
    lines = {
        "plan: keys, costs, chunks": result["seconds"]["plan"],
        "computing: plan, evaluation, analysis": result["computing_s"],
        "overhead: writing, claims, journal, store": result["overhead_s"] * count,
        "status": result["seconds"]["status"],
        "nothing left to do": result["seconds"]["again"],
        "export": result["seconds"]["export"],
    }
    for name, seconds in lines.items():
        table.add_row(name, f"{seconds:.1f}", f"{1e3 * seconds / count:.2f}")
    return table


if __name__ == "__main__":
    answer = timed_campaign(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    sys.stdout.write(json.dumps(answer) + "\n")
