"""The dataset layer at scale: ten thousand crystals read, cleaned, compared, split, written and drawn.

The build runs in a process of its own, so that its memory is its own: ``python -m benchmarks.datasets FILE OUT``.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from benchmarks.crystals import labeled_crystals
from fieldflows.datasets.extxyz import write_extxyz

LABELS = {
    "polarizability": "gaussian",
    "born_effective_charges": "polarization_displacement",
    "polarization": "e_per_angstrom2",
}
"""Conventions of the made labels."""

LIMITS = {"seconds": 180.0, "megabytes": 2048.0}
"""What a build of ten thousand crystals may take."""


def write_inputs(folder: Path, count: int, seed: int = 0) -> Path:
    """Write the crystals, three in four as extended XYZ and the others as JSON lines; return the configuration."""
    crystals = labeled_crystals(count, seed)
    with (folder / "crystals.extxyz").open("w", encoding="utf-8") as handle:
        write_extxyz(handle, islice(crystals, count - count // 4))
    with (folder / "export.jsonl").open("w", encoding="utf-8") as handle:
        for raw in crystals:
            line = {
                "atoms": {"numbers": raw.numbers.tolist(), "positions": raw.positions.tolist(),
                          "cell": raw.cell.tolist(), "pbc": True},
                "labels": {key: value.tolist() for key, value in (raw.info | raw.arrays).items()},
            }  # fmt: skip
            handle.write(json.dumps(line) + "\n")
    sources = [
        {"type": kind, "path": name, "license": "made by the benchmark", "labels": LABELS}
        for kind, name in (("extxyz", "crystals.extxyz"), ("jsonl", "export.jsonl"))
    ]
    config = folder / "config.yaml"
    config.write_text(json.dumps({"name": "benchmark", "sources": sources}), encoding="utf-8")  # JSON is YAML
    return config


def measure_datasets(count: int, seed: int = 0) -> dict[str, Any]:
    """Return seconds by stage, processor seconds, peak memory and counts of a build in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        config = write_inputs(folder, count, seed)
        making = time.perf_counter() - start
        command = [sys.executable, "-m", "benchmarks.datasets", str(config), str(folder / "out")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"The build failed: {done.stderr.strip()[-500:]}")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        result["frames"]["file_megabytes"] = (folder / "out" / "frames.extxyz").stat().st_size / 1e6
    return result | {"making_seconds": making}


class Mark(NamedTuple):
    """When a stage began: wall and processor time in s."""

    stage: str
    wall: float
    processor: float


def timed_build(config: Path, out: Path) -> dict[str, Any]:
    """Build and save a dataset with its figure; return what :func:`measure_datasets` returns of this process."""
    start = Mark("importing", time.perf_counter(), time.process_time())
    from fieldflows.datasets.config import DatasetConfig
    from fieldflows.datasets.dataset import build_dataset
    from fieldflows.plotting import dataset_summary

    marks = [start]

    def report(stage: str, done: int, total: int) -> None:
        if marks[-1].stage != stage:
            marks.append(Mark(stage, time.perf_counter(), time.process_time()))

    dataset = build_dataset(DatasetConfig.from_yaml(config), report)
    dataset.save(out, progress=report)
    report("drawing", 0, 1)
    dataset_summary(dataset, out / "summary.png")
    report("end", 0, 0)
    manifest = dataset.manifest
    sizes = [len(frame) for frame in dataset.frames]
    return {
        "stages": {
            one.stage: {"seconds": two.wall - one.wall, "processor_seconds": two.processor - one.processor}
            for one, two in pairwise(marks)
        },
        "seconds": marks[-1].wall - start.wall,
        "processor_seconds": marks[-1].processor - start.processor,
        "peak_megabytes": peak_megabytes(),
        "frames": {
            "read": sum(source.n_frames for source in manifest.sources),
            "kept": manifest.n_frames,
            "rejected": len(manifest.rejects),
            "copies": len(manifest.duplicates),
            "materials": manifest.n_materials,
            "smallest": min(sizes),
            "mean": sum(sizes) / len(sizes),
            "largest": max(sizes),
        },
    }


def peak_megabytes() -> float:
    """Return the largest resident memory of this process in MB.

    On Linux from its own status: the usage of a child begins with that of the parent that it was forked from.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes where there is no such file


def datasets_table(section: dict[str, Any]) -> Table:
    """Return the result as a table for the terminal."""
    result, frames = section["result"], section["result"]["frames"]
    table = Table(
        title=f"{frames['read']} crystals, {frames['kept']} kept",
        caption=f"peak memory {result['peak_megabytes']:.0f} MB",
    )
    table.add_column("stage")
    table.add_column("processor time (s)", justify="right")
    table.add_column("wall time (s)", justify="right")
    for stage, item in (*result["stages"].items(), ("all", result)):
        table.add_row(stage, f"{item['processor_seconds']:.1f}", f"{item['seconds']:.1f}")
    return table


if __name__ == "__main__":
    sys.stdout.write(json.dumps(timed_build(Path(sys.argv[1]), Path(sys.argv[2]))) + "\n")
