"""Chunk jobs for the tests of engines, and what engines leave behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

import yaml
from ase.build import bulk
from jobflow import CURRENT_JOB, Job, JobConfig, job
from pymongo import MongoClient

from fieldflows.flows.screening import DielectricMaker
from fieldflows.store import ResultsCollection

ROOT = Path(__file__).parents[2]

PLACES = {
    "HOME": "/users/me",
    "FIREWORKS_HOME": "/users/me/fireworks",
    "CLUSTER_HOST": "login.cluster.example.org",
    "CLUSTER_USER": "me",
    "CLUSTER_WORK": "/lustre/me/fieldflows",
    "FIELDFLOWS_QUEUE": "mongodb://queue:hunter2@db.example.org/fieldflows_queue",
    "FIELDFLOWS_STORE": "mongodb://results:hunter2@db.example.org/fieldflows",
}
"""What the templates in workflows/ are filled in with."""

SECRET = "hunter2"
"""Stands in addresses where a password would stand, which the server in memory does not ask for."""


def chunk_jobs(count: int, size: int = 1, worker: str = "cpu", first: float = 4.1) -> list[Job]:
    """Return chunk jobs of a campaign, all crystals different.

    Args:
        count: Number of jobs.
        size: Crystals in each.
        worker: Resource that they ask for.
        first: Lattice constant of the first crystal in Å.
    """
    crystals = [bulk("MgO", "rocksalt", first + 1e-4 * number) for number in range(count * size)]
    flow = DielectricMaker(model="toy", chunk_structures=size).make(crystals)
    jobs = list(getattr(flow, "jobs", (flow,)))
    for made in jobs:
        made.hosts = []
        made.metadata |= {"campaign": "trial", "worker": worker}
    return jobs


def broken_job(worker: str = "cpu") -> Job:
    """Return a chunk job that fails on its worker, because the model there is another one."""
    (made,) = chunk_jobs(1, 1, worker, 5.0)
    made.function_kwargs["model"] = dataclasses.replace(made.function_kwargs["model"], sha256="0" * 64)
    return made


def filled(template: Path, **changes: str) -> dict[str, Any]:
    """Return the content of a YAML template with its places filled in; one that is left open is an error."""
    content: dict[str, Any] = yaml.safe_load(Template(template.read_text("utf-8")).substitute(PLACES | changes))
    return content


@job(config=JobConfig(expose_store=True))
def count_results() -> int:
    """Return how many results there are when this runs."""
    return ResultsCollection.of(CURRENT_JOB.store).count()


def summary_job() -> Job:
    """Return a job for the end of a campaign."""
    made = count_results()
    made.metadata = {"campaign": "trial", "worker": "cpu"}
    return made


def everything_in(database: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield name and text of every document of a database and every file of a folder."""
    with MongoClient(database) as client:
        content = client.get_default_database()
        for name in content.list_collection_names():
            for document in content[name].find():
                yield name, repr(document)
    for path in folder.rglob("*"):
        if path.is_file():
            yield str(path), path.read_text(encoding="utf-8", errors="replace")
