"""What an engine adds to a chunk job: time of a worker that is not spent on the chunk.

The chunks hold one crystal and the model with closed formulas, so that next to nothing is computed.  The database is
the one in memory, behind TCP; what a network adds is not in the numbers.  Everything happens in a process of its own,
because the runner of jobflow-remote takes over the logging: ``python -m benchmarks.engines LAUNCHES WIDTH REMOTE``.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from string import Template
from typing import Any

import yaml
from rich.table import Table

CHUNK_S = 300.0
"""Length of a chunk in a campaign, with which overheads are compared."""

LIMIT = 0.05
"""Largest share of it that an engine may take."""

PROJECT = Path(__file__).parents[1] / "workflows" / "remote" / "fieldflows.yaml"
DELAYS = ("delay_checkout", "delay_check_run_status", "delay_advance_status")
SLOTS = 2
"""Chunks that run at the same time in the local worker of jobflow-remote."""


def measure_engines(launches: int, width: int, remote: int) -> dict[str, Any]:
    """Return the overheads, measured in a process of its own.

    Args:
        launches: Fireworks that are run.
        width: Fireworks in their workflow.
        remote: Chunk jobs that jobflow-remote runs, with each set of delays; 0 for none.
    """
    words = [str(launches), str(width), str(remote)]
    done = subprocess.run([sys.executable, "-m", "benchmarks.engines", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"The engines failed: {done.stderr.strip()[-500:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def timed_engines(launches: int, width: int, remote: int) -> dict[str, Any]:
    """Return what :func:`measure_engines` returns, of this process."""
    from fieldflows.testing.mongodb import memory_mongodb

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name), memory_mongodb() as server:
        folder = Path(name)
        work = _seconds_of_a_chunk(folder)
        rows = [_fireworks(f"{server}/fireworks", folder, launches, width, work)]
        if remote:
            settings = yaml.safe_load(Template(PROJECT.read_text(encoding="utf-8")).safe_substitute())["runner"]
            for label, delays in (
                ("delays of the template", {key: settings[key] for key in DELAYS}),
                ("delays of 1 s", dict.fromkeys(DELAYS, 1)),
            ):
                rows.append(_remote(f"{server}/remote", folder, remote, work, delays) | {"setting": label})
    return {"seconds_of_the_work": work, "chunk_s": CHUNK_S, "engines": rows}


def _chunks(count: int) -> list[Any]:
    from ase.build import bulk

    from fieldflows import DielectricMaker

    crystals = [bulk("MgO", "rocksalt", 4.1 + 1e-4 * number) for number in range(count)]
    jobs = [DielectricMaker(model="toy", chunk_structures=1).make([crystal]).jobs[0] for crystal in crystals]
    for job in jobs:
        job.hosts = []
        job.metadata |= {"campaign": "overhead", "worker": "cpu"}
    return jobs


def _seconds_of_a_chunk(folder: Path, count: int = 10) -> float:
    """Return how long the work of such a chunk takes by itself, after the first."""
    from jobflow import run_locally

    from fieldflows.store import get_store

    store = get_store(folder / "alone.db")
    jobs = _chunks(count + 1)
    run_locally(jobs[0], store=store, log=False, ensure_success=True)
    start = time.perf_counter()
    for job in jobs[1:]:
        run_locally(job, store=store, log=False, ensure_success=True)
    return (time.perf_counter() - start) / count


def _row(engine: str, setting: str, jobs: int, slots: int, submit: float, wall: float, work: float) -> dict[str, Any]:
    overhead = wall * min(slots, jobs) / jobs - work
    return {
        "engine": engine,
        "setting": setting,
        "jobs": jobs,
        "submit_s": submit / jobs,
        "overhead_s": overhead,
        "share": overhead / CHUNK_S,
        "acceptable": overhead <= LIMIT * CHUNK_S,
    }


def _fireworks(address: str, folder: Path, launches: int, width: int, work: float) -> dict[str, Any]:
    from fireworks import LaunchPad
    from fireworks.core.rocket_launcher import rapidfire

    from fieldflows.campaigns.engines.fireworks import FireworksEngine

    os.environ["FIELDFLOWS_STORE"] = address
    place = {"host": address, "uri_mode": True, "name": "fireworks"}
    (folder / "launchpad.yaml").write_text(yaml.safe_dump(place), encoding="utf-8")
    launchpad = LaunchPad(**place, strm_lvl="CRITICAL")
    launchpad.reset("", require_password=False)
    engine, jobs = FireworksEngine(folder / "launchpad.yaml", width=width), _chunks(width)
    start = time.perf_counter()
    ids = engine.submit(jobs, name="overhead", metadata={})
    submitted = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        rapidfire(launchpad, m_dir=str(folder), nlaunches=launches, strm_lvl="CRITICAL")
    wall = time.perf_counter() - submitted
    _check(engine.states(ids)["done"], launches)
    row = _row("FireWorks", f"rapidfire, {width} in a workflow", launches, 1, 0.0, wall, work)
    return row | {"submit_s": (submitted - start) / width}


def _remote(address: str, folder: Path, count: int, work: float, delays: dict[str, float]) -> dict[str, Any]:
    from jobflow_remote import SETTINGS
    from jobflow_remote.jobs.jobcontroller import JobController

    from fieldflows.campaigns.engines.remote import RemoteEngine

    os.environ.pop("FIELDFLOWS_STORE", None)
    text = PROJECT.read_text(encoding="utf-8")
    places = {"FIELDFLOWS_QUEUE": address, "FIELDFLOWS_STORE": address, "HOME": str(folder)}
    project = yaml.safe_load(Template(text).safe_substitute(places))
    local = project["workers"]["local_worker"] | {"pre_run": None, "max_jobs": SLOTS}
    project |= {"workers": {"local_worker": local}}
    project["runner"] |= delays
    (folder / "fieldflows.yaml").write_text(yaml.safe_dump(project), encoding="utf-8")
    SETTINGS.projects_folder = os.environ["JFREMOTE_PROJECTS_FOLDER"] = str(folder)
    SETTINGS.project = os.environ["JFREMOTE_PROJECT"] = "fieldflows"
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    JobController.from_project_name().reset(max_limit=0)
    engine, jobs = RemoteEngine(workers={"cpu": "local_worker"}), _chunks(count)
    start = time.perf_counter()
    ids = engine.submit(jobs, name="overhead", metadata={})
    submitted = time.perf_counter()
    _run(folder)
    wall = time.perf_counter() - submitted
    _check(engine.states(ids)["done"], count)
    return _row("jobflow-remote", "", count, SLOTS, submitted - start, wall, work)


def _run(folder: Path) -> None:
    code = "from jobflow_remote.jobs.runner import Runner; Runner().run_all_jobs(max_seconds=3600)"
    with (folder / "runner.log").open("w", encoding="utf-8") as log:
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, stdout=log, stderr=log)


def _check(done: int, expected: int) -> None:
    if done != expected:
        raise SystemExit(f"{done} of {expected} chunks were done.")


def engines_table(section: dict[str, Any]) -> Table:
    """Return the result as a table for the terminal."""
    result = section["result"]
    table = Table(
        title="What an engine adds to a chunk job",
        caption=f"time of a worker, beyond the {result['seconds_of_the_work']:.3f} s of work; "
        f"acceptable up to {LIMIT:.0%} of a chunk of {result['chunk_s']:.0f} s",
    )
    for name in ("engine", "setting", "chunks", "submission (s)", "overhead (s)", "of a chunk", ""):
        table.add_column(name, justify="left" if name in ("engine", "setting") else "right")
    for row in result["engines"]:
        table.add_row(
            row["engine"],
            row["setting"],
            str(row["jobs"]),
            f"{row['submit_s']:.3f}",
            f"{row['overhead_s']:.2f}",
            f"{row['share']:.2%}",
            "ok" if row["acceptable"] else "too much",
        )
    return table


def _main(words: list[str]) -> None:
    output = sys.stdout
    with contextlib.redirect_stdout(io.StringIO()):
        answer = timed_engines(*(int(word) for word in words))
    output.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1:])
