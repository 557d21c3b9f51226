"""Run the benchmark, print a table, write JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.cases import crystals, random_model
from benchmarks.response import measure
from benchmarks.timing import Timing
from fieldflows import __version__

DTYPES = {"float64": torch.float64, "float32": torch.float32}


def table(timings: list[Timing], title: str) -> Table:
    result = Table(
        title=title, caption="ratio: median over interleaved repeats of naive / fieldflows (least to greatest)"
    )
    for name in ("task", "crystal", "atoms", "naive (ms)", "fieldflows (ms)", "ratio", "differs by"):
        result.add_column(name, justify="left" if name in ("task", "crystal") else "right")
    for item in timings:
        result.add_row(
            item.task,
            item.tag,
            str(item.n_atoms),
            f"{item.reference_ms:.1f}",
            f"{item.product_ms:.1f}",
            f"{item.ratio:.2f} ({item.ratio_low:.2f} to {item.ratio_high:.2f})",
            f"{item.difference:.0e}",
        )
    return result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--channels", type=int, default=128, help="channels of the network")
    parser.add_argument("--dtype", choices=DTYPES, default="float64")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--crystals", nargs="*", choices=list(crystals()), default=list(crystals()))
    parser.add_argument("--tasks", nargs="*", choices=["response", "hessian"], default=["response", "hessian"])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/response.json"))
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 120)
    model = random_model(options.channels, DTYPES[options.dtype])
    chosen = {tag: atoms for tag, atoms in crystals().items() if tag in options.crystals}
    timings = []
    with console.status("warming up") as status:
        for timing in measure(model, chosen, options.repeats, options.tasks):
            timings.append(timing)
            status.update(f"{timing.task} of {timing.tag} done")
    title = f"{options.channels} channels, {options.dtype}, one thread, {options.repeats} repeats"
    console.print(table(timings, title))
    report = {
        "fieldflows": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "channels": options.channels,
        "dtype": options.dtype,
        "threads": 1,
        "timings": [timing.as_dict() for timing in timings],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
