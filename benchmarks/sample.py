"""The pipeline to ε_ion over a random sample of crystals: total time, growth with the number of atoms, memory."""

from __future__ import annotations

import io
import itertools
import lzma
import os
import re
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms

from benchmarks.cases import bare, primitive, read_frames
from benchmarks.ionic import SETTINGS, pipeline
from benchmarks.response import SYMMETRIC, forget_crystals
from fieldflows.backends.mace_field.model import MACEFieldModel
from fieldflows.errors import FieldflowsError
from fieldflows.properties.dielectric import DielectricProperty
from fieldflows.properties.run import run_property
from fieldflows.schemas.dielectric import DielectricDocument

COMMON = ("dielectric_valid_dev.extxyz.xz", "dielectric_test_dev.extxyz.xz")
"""Files that most of the sample is drawn from; their largest crystals have 84 atoms."""

LARGE = "ferroelectric_paths_dev.extxyz.xz"
"""File that the largest crystals are drawn from."""

LEAST_LARGE, MOST_ATOMS = 85, 200
"""Atoms in the primitive cells of the large ones."""

FITTED_FROM = 8
"""The exponent is fitted to crystals of at least so many atoms; below, the time is that of calling Python."""


def sample_crystals(count: int = 200, large: int = 5, seed: int = 0) -> list[Atoms] | None:
    """Return primitive cells drawn at random from the shared data files, smallest first; None without the files.

    Args:
        count: How many in all.
        large: How many of them to draw among crystals with 85 to 200 atoms, of which the common files have none.
        seed: Seed of the draw.
    """
    folder = Path(os.environ.get("FIELDFLOWS_DATA", ""))
    if not all((folder / name).is_file() for name in (*COMMON, LARGE)):
        return None
    random = np.random.default_rng(seed)
    common = [atoms for name in COMMON for atoms in read_frames(folder / name)]
    drawn = [_primitive(common[i]) for i in random.permutation(len(common))[: count - large]]
    ends = list(path_ends(folder / LARGE))
    taken: list[Atoms] = []
    for i in random.permutation(len(ends)):
        cell = _primitive(ends[i])
        if LEAST_LARGE <= len(cell) <= MOST_ATOMS and len(taken) < large:
            taken.append(cell)
    return sorted(drawn + taken, key=len)


def path_ends(path: Path) -> Iterator[Atoms]:
    """Yield the polar ends of the paths with many atoms; neighbors along a path are nearly the same crystal."""
    with lzma.open(path, "rt") as file:
        for first in file:
            lines = [first, *itertools.islice(file, int(first) + 1)]
            if int(first) >= LEAST_LARGE and re.search(r"\bpath_index=9\b", lines[1]):
                yield ase.io.read(io.StringIO("".join(lines)), format="extxyz")


def published_sample(crystals: Sequence[Atoms]) -> list[Atoms]:
    """Return the primitive cells of some crystals, smallest first, in place of a sample."""
    return sorted((_primitive(atoms) for atoms in crystals), key=len)


def _primitive(atoms: Atoms) -> Atoms:
    try:
        return primitive(bare(atoms))
    except FieldflowsError:
        return bare(atoms)


def peak_memory() -> float:
    """Return the largest resident set of this process so far in bytes."""
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure_sample(model: MACEFieldModel, crystals: Sequence[Atoms]) -> Iterator[dict[str, Any]]:
    """Yield what each crystal took, one after the other, smallest first.

    Next to the time on the wall stands that of the processor, which others on the same machine touch less.  Peak
    memory is that of the process so far, which the largest crystal so far decides.

    Args:
        model: The model.
        crystals: Primitive cells, smallest first.
    """
    for atoms in crystals:
        seconds, busy, outcome, responses = _timed_pipeline(model, atoms)
        symmetry = responses[-1].symmetry if responses else None
        yield {
            "formula": atoms.get_chemical_formula(empirical=True),
            "atoms": len(atoms),
            "edges": _edges(model, atoms),
            "seconds": seconds,
            "cpu_seconds": busy,
            "peak_bytes": peak_memory(),
            "status": outcome.status_ionic if isinstance(outcome, DielectricDocument) else outcome.error_type,
            "field_directions": 3 if symmetry is None else symmetry.n_field_directions,
            "displacements": 3 * len(atoms) if symmetry is None else symmetry.n_displacements,
            "space_group": 1 if symmetry is None else symmetry.space_group,
        }


def add_baseline(
    model: MACEFieldModel, crystals: Sequence[Atoms], records: Sequence[dict[str, Any]], every: int, rows: int = 2
) -> None:
    """Add to every so many-th record what the baseline takes, extrapolated from some rows, and the package beside it.

    This is done after the sample: the memory of the baseline would hide that of the package.
    """
    for atoms, record in list(zip(crystals, records, strict=True))[::every]:
        theirs = pipeline(model, atoms, rows).seconds
        record["beside"] = {"baseline_seconds": theirs, "seconds": _timed_pipeline(model, atoms)[0]}


def _timed_pipeline(model: MACEFieldModel, atoms: Atoms) -> tuple[float, float, Any, list[Any]]:
    """Return seconds on the wall and of the processor, the document or failure, and the responses."""
    forget_crystals()
    responses: list[Any] = []
    start, busy = time.perf_counter(), time.process_time()
    (outcome,) = run_property(
        DielectricProperty(SETTINGS[SYMMETRIC]), [atoms], model, on_responses=lambda _, found: responses.extend(found)
    )
    return time.perf_counter() - start, time.process_time() - busy, outcome, responses


def _edges(model: MACEFieldModel, atoms: Atoms) -> int:
    try:
        return int(model.graph(atoms)["edge_index"].shape[1])
    except FieldflowsError:
        return 0


def exponent(records: Sequence[dict[str, Any]], key: str = "cpu_seconds", least: int = FITTED_FROM) -> float:
    """Return p of the fit time ∝ atomsᵖ, by least squares of the logarithms."""
    points = [(r["atoms"], r[key]) for r in records if r["atoms"] >= least and key in r]
    n, t = np.log(np.array(points)).T
    return float(np.polyfit(n, t, 1)[0])


def summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return totals, fits and the largest memory of a sample."""
    failed = [r for r in records if r["status"] not in ("ok", "unstable", "unstable_summed", "soft", "invalid")]
    both = [r["beside"] for r in records if "beside" in r]
    result: dict[str, Any] = {
        "crystals": len(records),
        "failed": len(failed),
        "smallest": min(r["atoms"] for r in records),
        "largest": max(r["atoms"] for r in records),
        "seconds": sum(r["seconds"] for r in records),
        "cpu_seconds": sum(r["cpu_seconds"] for r in records),
        "median_seconds": float(np.median([r["cpu_seconds"] for r in records])),
        "slowest_seconds": max(r["cpu_seconds"] for r in records),
        "peak_bytes": max(r["peak_bytes"] for r in records),
        "rows": sum(3 * r["atoms"] for r in records),
        "displacements": sum(r["displacements"] for r in records),
    }
    if len({r["atoms"] for r in records if r["atoms"] >= FITTED_FROM}) > 1:
        result["exponent"] = exponent(records)
    if both:
        theirs, ours = sum(r["baseline_seconds"] for r in both), sum(r["seconds"] for r in both)
        result["baseline"] = {
            "crystals": len(both),
            "seconds": theirs,
            "product_seconds": ours,
            "ratio": theirs / ours,
            "median_ratio": float(np.median([r["baseline_seconds"] / r["seconds"] for r in both])),
        }
    return result
