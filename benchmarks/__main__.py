"""Run benchmarks: ``python -m benchmarks [speed] --help``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console

from benchmarks import report
from benchmarks.cases import TAGS, headline_crystals, random_model
from benchmarks.environment import environment
from benchmarks.response import measure_hessian, measure_response
from benchmarks.timing import Timing

DTYPES = {"float64": torch.float64, "float32": torch.float32}
TASKS = ("response", "hessian")


def measure(options: argparse.Namespace) -> Iterator[Timing]:
    """Yield the timings of the chosen tasks and crystals."""
    _, crystals = headline_crystals(options.source)
    model = random_model(crystals.values(), options.channels, DTYPES[options.dtype])
    chosen = {tag: crystals[tag] for tag in options.crystals}
    for task in options.tasks:
        if task == "response":
            yield from measure_response(model, chosen, options.repeats)
        elif task == "hessian":
            yield from measure_hessian(model, chosen, options.repeats, options.rows)


def speed(options: argparse.Namespace, console: Console) -> int:
    """Time the tasks, print a table, write JSON."""
    timings = []
    with console.status("warming up") as status:
        for timing in measure(options):
            timings.append(timing)
            status.update(f"{timing.task} of {timing.tag}, {timing.variant}: {timing.ratio:.2f}")
    settings = {
        "channels": options.channels,
        "dtype": options.dtype,
        "repeats": options.repeats,
        "crystals": headline_crystals(options.source)[0],
    }
    for task in options.tasks:
        section = {
            "environment": environment(),
            "settings": settings,
            "timings": [t.as_dict() for t in timings if t.task == task],
        }
        report.update(options.output, task, section)
        console.print(report.table(section))
    console.print(f"written to {options.output}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    words = top.add_subparsers(dest="word", required=True)
    word = words.add_parser("speed", help="the package against the baseline, one thread")
    word.add_argument("--channels", type=int, default=128, help="channels of the network")
    word.add_argument("--dtype", choices=DTYPES, default="float64")
    word.add_argument("--repeats", type=int, default=7)
    word.add_argument("--rows", type=int, default=None, help="rows of the baseline's Hessian; all by default")
    word.add_argument("--source", choices=["data", "published"], default=None, help="where the crystals come from")
    word.add_argument("--crystals", nargs="*", choices=TAGS, default=list(TAGS))
    word.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    word.add_argument("--output", type=Path, default=report.RESULTS)
    word.set_defaults(run=speed)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run a word of the command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0].startswith("--"):
        given.insert(0, "speed")
    options = parser().parse_args(given)
    torch.set_num_threads(1)
    return int(options.run(options, Console(width=None if sys.stdout.isatty() else 120)))


if __name__ == "__main__":
    sys.exit(main())
