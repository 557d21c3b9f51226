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
from benchmarks.dynamics import measure_dynamics
from benchmarks.environment import environment
from benchmarks.ionic import measure_ionic
from benchmarks.precision import measure_precision
from benchmarks.response import measure_hessian, measure_response, measure_scripted
from benchmarks.timing import Timing
from benchmarks.training import measure_training

DTYPES = {"float64": torch.float64, "float32": torch.float32}
TIMED = ("response", "ionic", "training", "dynamics", "hessian", "scripted")
TASKS = (*TIMED, "precision")
QUICK = {"channels": 4, "repeats": 2, "rows": 3, "crystals": ["p5", "q9"]}
"""Settings of --quick: whether it works, not how fast."""


def measure(task: str, options: argparse.Namespace) -> Iterator[Timing]:
    """Yield the timings of one task for the chosen crystals."""
    source, crystals = headline_crystals(options.source)
    dtype = DTYPES[options.dtype]
    model = random_model(crystals.values(), options.channels, dtype)
    chosen = {tag: crystals[tag] for tag in options.crystals}
    if task == "response":
        yield from measure_response(model, chosen, options.repeats)
    elif task == "hessian":
        yield from measure_hessian(model, chosen, options.repeats, options.rows)
    elif task == "ionic":
        yield from measure_ionic(model, chosen, options.repeats, options.rows)
    elif task == "dynamics":
        yield from measure_dynamics(model, chosen, options.repeats)
    elif task == "training":
        yield from measure_training(chosen, source, options.repeats, options.channels, dtype)
    elif task == "scripted":
        yield from measure_scripted(model, chosen, options.repeats)


def speed(options: argparse.Namespace, console: Console) -> int:
    """Time the tasks, print tables, write JSON; every task is written when it is done."""
    if options.quick:
        vars(options).update(QUICK)
    source, crystals = headline_crystals(options.source)
    for task in options.tasks:
        settings = {"channels": options.channels, "dtype": options.dtype, "crystals": source}
        section: dict[str, object] = {"environment": environment(), "settings": settings}
        if task == "precision":
            model = random_model(crystals.values(), options.channels)
            chosen = {tag: crystals[tag] for tag in options.crystals}
            section["models"] = list(measure_precision(model, chosen))
            console.print(report.precision_table(section))
        else:
            settings["repeats"] = options.repeats
            timings = []
            with console.status(f"{task}: warming up") as status:
                for timing in measure(task, options):
                    timings.append(timing.as_dict())
                    status.update(f"{task} of {timing.tag}, {timing.variant}: {timing.ratio:.2f}")
            section["timings"] = timings
            console.print(report.table(section))
        report.update(options.output, task, section)
    console.print(f"written to {options.output}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    words = top.add_subparsers(dest="word", required=True)
    word = words.add_parser("speed", help="the package against the baseline, one thread")
    word.add_argument("--channels", type=int, default=128, help="channels of the network")
    word.add_argument("--dtype", choices=DTYPES, default="float64")
    word.add_argument("--repeats", type=int, default=5)
    word.add_argument(
        "--rows", type=int, default=8, help="rows of the baseline's Hessian, where it has four times more"
    )
    word.add_argument("--source", choices=["data", "published"], default=None, help="where the crystals come from")
    word.add_argument("--crystals", nargs="*", choices=TAGS, default=list(TAGS))
    word.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    word.add_argument("--quick", action="store_true", help="a few channels and repeats: does it work?")
    word.add_argument("--output", type=Path, default=report.RESULTS)
    word.set_defaults(run=speed)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run a word of the command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (given[0].startswith("--") and given[0] != "--help"):
        given.insert(0, "speed")
    options = parser().parse_args(given)
    torch.set_num_threads(1)
    return int(options.run(options, Console(width=None if sys.stdout.isatty() else 140)))


if __name__ == "__main__":
    sys.exit(main())
