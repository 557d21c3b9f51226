"""Questions to the embedded store at scale: a hundred thousand flat results, and how long answers take.

Filling and asking happen in a process of their own, so that their memory is their own:
``python -m benchmarks.queries COUNT SEED REPEATS FILE``.
"""

from __future__ import annotations

import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from rich.table import Table

from benchmarks.crystals import labeled_crystals
from benchmarks.datasets import peak_megabytes

LIMIT = 100
"""Hits that a question asks for."""


WAYS: dict[str, list[str] | None] = {
    "found": ["key"],
    "fields": ["key", "material_id", "formula_pretty", "spacegroup_symbol", "n", "e_electronic", "e_ionic", "e_total"],
    "whole documents": None,
}
"""What of the hits is returned: their keys; what a table shows; everything."""

TEMPLATES = 60
_PORTION = 500


def flat_results(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield flat result documents as a screening publishes them, all different.

    Some crystals of 2 to 100 atoms are computed with the closed-form model.  The others are these with other elements,
    identifiers and numbers, two models for each material.

    Args:
        count: Number of documents.
        seed: Another seed, other documents.
    """
    random = np.random.default_rng(seed)
    templates = _templates(seed)
    for index in range(count):
        document = copy.deepcopy(templates[int(random.integers(len(templates)))])
        symbols = sorted({chemical_symbols[number] for number in random.integers(1, 95, document["nelements"])})
        digits = random.integers(1, 7, len(symbols))
        document |= {
            "key": f"{seed:08x}-0000-5000-8000-{index:012x}",
            "material_id": f"mp-{index // 2}",
            "formula_pretty": "".join(f"{s}{d}" if d > 1 else s for s, d in zip(symbols, digits, strict=True)),
            "chemsys": "-".join(symbols),
            "elements": symbols,
            "nelements": len(symbols),
            "spacegroup_number": int(random.integers(1, 231)),
            "band_gap": max(0.0, float(random.normal(1.0, 1.5))),
            "status_ionic": "unstable" if random.random() < 0.2 else "ok",
        }
        document["e_electronic"] = 1 + float(random.lognormal(1.2, 0.6))
        document["n"] = float(np.sqrt(document["e_electronic"]))
        is_stable = document["status_ionic"] == "ok"
        document["e_ionic"] = float(random.lognormal(1.8, 0.9)) if is_stable else None
        document["e_total"] = document["e_electronic"] + document["e_ionic"] if is_stable else None
        document["provenance"]["model"]["name"] = f"model-{index % 2}"
        yield document


def _templates(seed: int) -> list[dict[str, Any]]:
    from fieldflows.backends.toy import ToyModel
    from fieldflows.properties.dielectric import DielectricProperty
    from fieldflows.properties.run import run_property
    from fieldflows.schemas.dielectric import DielectricDocument

    crystals = [raw.atoms() for raw in islice(labeled_crystals(10_000, seed), TEMPLATES)]
    found = run_property(DielectricProperty(), crystals, ToyModel())
    return [document.to_json_dict() for document in found if isinstance(document, DielectricDocument)]


def questions(count: int) -> dict[str, tuple[str, dict[str, int]]]:
    """Return the questions: an expression and a sort order by name."""
    return {
        "one material": (f'material_id == "mp-{count // 3}"', {}),
        "one formula": ('formula == "SrTiO3"', {}),
        "e_total > 15": ("e_total > 15", {}),
        "e_total > 15, largest first": ("e_total > 15", {"e_total": -1}),
        "1.5 < n < 2, largest e_total first": ("1.5 < n < 2", {"e_total": -1}),
        "n > 2 and e_total > 15, by n": ("n > 2 and e_total > 15", {"n": 1}),
        "with O and Ti": ('"O" in elements and "Ti" in elements', {}),
        "with O, n > 2, by n": ('"O" in elements and n > 2', {"n": -1}),
        "one system, one model": ('chemsys == "O-Ti" and model == "model-1"', {}),
        "space group, gap, by e_ionic": ("spacegroup == 225 and band_gap > 3", {"e_ionic": -1}),
        "two tails, no hits": ("n < 1.05 and e_total > 500", {}),
        "all, largest n first": ("", {"n": -1}),
    }


def as_asked(text: str) -> dict[str, Any]:
    """Return the filter of a question as ``fieldflows query`` asks it: of dielectric results."""
    from fieldflows.store.query import parse_query

    criteria = parse_query(text)
    return {"$and": [{"task": "dielectric"}, criteria]} if criteria else {"task": "dielectric"}


def measure_queries(count: int, seed: int = 0, repeats: int = 9, compare: bool = False) -> dict[str, Any]:
    """Return what filling and questions took, of a process of its own.

    Args:
        count: Number of documents.
        seed: Of the documents.
        repeats: How often each question is asked; the median counts.
        compare: Whether each question is also asked once without the table of fields, and answers compared.
    """
    with tempfile.TemporaryDirectory() as name:
        words = [str(count), str(seed), str(repeats), str(Path(name) / "store.db"), "compare" if compare else ""]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.queries", *words], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"The questions failed: {done.stderr.strip()[-500:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def timed_queries(count: int, seed: int, repeats: int, path: Path, compare: bool) -> dict[str, Any]:
    """Fill a store and ask; return what :func:`measure_queries` returns of this process."""
    from fieldflows.store import ResultsCollection, SQLiteStore

    results = ResultsCollection(SQLiteStore(path, "results", key="key"))
    documents = flat_results(count, seed)
    seconds = 0.0
    while portion := list(islice(documents, _PORTION)):
        start = time.perf_counter()
        results.put(portion)
        seconds += time.perf_counter() - start
    plain = SQLiteStore(path, "results", key="key")
    found: dict[str, Any] = {}
    for name, (text, sort) in questions(count).items():
        criteria, medians, slowest, hits = as_asked(text), {}, {}, 0
        for way, properties in WAYS.items():
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                hits = len(list(results.query(criteria, properties, sort or None, LIMIT)))
                times.append(1e3 * (time.perf_counter() - start))
            medians[way], slowest[way] = statistics.median(times), max(times)
        found[name] = {"hits": hits, "milliseconds": medians, "slowest": slowest}
    memory = peak_megabytes()  # without the table, sorting holds every document
    for name, (text, sort) in questions(count).items() if compare else ():
        start = time.perf_counter()
        same = list(plain.query(as_asked(text), sort=sort or None, limit=LIMIT))
        found[name]["without_table"] = 1e3 * (time.perf_counter() - start)
        again = list(results.query(as_asked(text), sort=sort or None, limit=LIMIT))
        found[name]["agrees"] = [doc["key"] for doc in same] == [doc["key"] for doc in again]
    return {
        "documents": count,
        "file_megabytes": path.stat().st_size / 1e6,
        "milliseconds_to_write": 1e3 * seconds / count,
        "peak_megabytes": memory,
        "questions": found,
    }


def queries_table(section: dict[str, Any]) -> Table:
    """Return the result as a table for the terminal."""
    result = section["result"]
    table = Table(
        title=f"{result['documents']} results, up to {LIMIT} hits, median times in ms",
        caption=f"{result['milliseconds_to_write']:.2f} ms to write a document, "
        f"file {result['file_megabytes']:.0f} MB, peak memory {result['peak_megabytes']:.0f} MB",
    )
    table.add_column("question")
    for name in ("hits", *WAYS, "without table"):
        table.add_column(name, justify="right")
    for name, item in result["questions"].items():
        before = f"{item['without_table']:.0f}" if "without_table" in item else "–"
        table.add_row(name, str(item["hits"]), *(f"{item['milliseconds'][way]:.1f}" for way in WAYS), before)
    return table


if __name__ == "__main__":
    given = sys.argv[1:]
    answer = timed_queries(int(given[0]), int(given[1]), int(given[2]), Path(given[3]), given[4:] == ["compare"])
    sys.stdout.write(json.dumps(answer) + "\n")
