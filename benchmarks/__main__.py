"""Run benchmarks: ``python -m benchmarks [speed] --help``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from ase import Atoms
from rich.console import Console

from benchmarks import figures, page, report
from benchmarks.campaign import campaign_table, measure_campaign
from benchmarks.cases import TAGS, headline_crystals, primitive, random_model
from benchmarks.datasets import datasets_table, measure_datasets
from benchmarks.dynamics import measure_dynamics
from benchmarks.engines import engines_table, measure_engines
from benchmarks.environment import environment
from benchmarks.gpu import measure_gpu, on_device
from benchmarks.ionic import measure_ionic
from benchmarks.precision import measure_precision
from benchmarks.queries import measure_queries, queries_table
from benchmarks.response import measure_hessian, measure_response, measure_scripted
from benchmarks.sample import add_baseline, measure_sample, published_sample, sample_crystals
from benchmarks.sample import summary as sample_summary
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
            chosen = {tag: primitive(crystals[tag]) for tag in options.crystals}
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
        report.update(options.output, task, report.joined(report.load(options.output).get(task), section))
    console.print(f"written to {options.output}")
    return 0


def drawn_sample(options: argparse.Namespace) -> tuple[str, list[Atoms]]:
    """Return where the sample comes from, and its crystals, smallest first."""
    found = None if options.source == "published" else sample_crystals(options.count, options.large, options.seed)
    if found is not None:
        return "data", found
    if options.source == "data":
        raise SystemExit("The data files were asked for, but FIELDFLOWS_DATA does not hold them.")
    return "published", published_sample(list(headline_crystals("published")[1].values()))[: options.count]


def sample(options: argparse.Namespace, console: Console) -> int:
    """Time the pipeline on a sample, one crystal after the other."""
    source, crystals = drawn_sample(options)
    model = random_model(crystals, options.channels, DTYPES[options.dtype])
    records = []
    with console.status("warming up") as status:
        list(measure_sample(model, crystals[:1]))
        for record in measure_sample(model, crystals):
            records.append(record)
            status.update(f"{len(records)} of {len(crystals)}, {record['atoms']} atoms: {record['seconds']:.1f} s")
        if options.baseline_every:
            status.update("the baseline")
            add_baseline(model, crystals, records, options.baseline_every)
    settings = {"channels": options.channels, "dtype": options.dtype, "crystals": source, "seed": options.seed}
    section = {
        "environment": environment(),
        "settings": settings,
        "summary": sample_summary(records),
        "records": records,
    }
    report.update(options.output, "sample", section)
    console.print(section["summary"])
    return 0


def gpu(options: argparse.Namespace, console: Console) -> int:
    """Measure rates in batches on a GPU, or on the CPU to see that it works."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        console.print("No GPU: the numbers only show that the benchmark works.")
    source, crystals = drawn_sample(options)
    model = on_device(random_model(crystals, options.channels, DTYPES[options.dtype]), device)
    result = measure_gpu(model, crystals, options.times, options.baseline_crystals)
    settings = {"channels": options.channels, "dtype": options.dtype, "crystals": source, "seed": options.seed}
    report.update(options.output, "gpu", {"environment": environment(), "settings": settings, "result": result})
    console.print({key: value for key, value in result.items() if key != "profile"})
    return 0


def datasets(options: argparse.Namespace, console: Console) -> int:
    """Time the build of a dataset, stage by stage, and take its memory."""
    with console.status("making crystals, and a dataset of them"):
        result = measure_datasets(options.count, options.seed)
    settings = {"count": options.count, "seed": options.seed}
    section = {"environment": environment(), "settings": settings, "result": result}
    report.update(options.output, "datasets", section)
    console.print(datasets_table(section))
    return 0


def queries(options: argparse.Namespace, console: Console) -> int:
    """Time questions to an embedded store of many results."""
    with console.status("filling a store, and asking it"):
        result = measure_queries(options.count, options.seed, options.repeats, options.compare)
    settings = {"count": options.count, "seed": options.seed, "repeats": options.repeats}
    section = {"environment": environment(), "settings": settings, "result": result}
    report.update(options.output, "queries", section)
    console.print(queries_table(section))
    return 0


def campaign(options: argparse.Namespace, console: Console) -> int:
    """Time what a campaign adds to the computation of a crystal; 1 if it is too much."""
    with console.status("running a campaign"):
        result = measure_campaign(options.count, options.seed)
    settings = {"count": options.count, "seed": options.seed}
    section = {"environment": environment(), "settings": settings, "result": result}
    report.update(options.output, "campaign", section)
    console.print(campaign_table(section))
    return 0 if result["acceptable"] else 1


def engines(options: argparse.Namespace, console: Console) -> int:
    """Time what engines add to chunk jobs; 1 if it is too much."""
    with console.status("running chunks that do next to nothing"):
        result = measure_engines(options.launches, options.width, options.remote)
    settings = {"launches": options.launches, "width": options.width, "remote": options.remote}
    section = {"environment": environment(), "settings": settings, "result": result}
    report.update(options.output, "engines", section)
    console.print(engines_table(section))
    return 0 if all(row["acceptable"] for row in result["engines"]) else 1


def pages(options: argparse.Namespace, console: Console) -> int:
    """Put the results into the documentation: tables and figures."""
    sections = report.load(options.output)
    if not sections:
        raise SystemExit(f"There are no results in {options.output}.")
    page.PAGE.write_text(page.render(page.PAGE.read_text(encoding="utf-8"), sections), encoding="utf-8")
    figures.ratios(sections, Path("docs/images/speed.png"))
    if "sample" in sections:
        figures.growth(sections["sample"], Path("docs/images/speed_growth.png"))
    console.print(f"{page.PAGE} and its figures follow {options.output}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    words = top.add_subparsers(dest="word", required=True)
    word = words.add_parser("speed", help="the package against the baseline, one thread")
    _common(word, "float64")
    word.add_argument("--repeats", type=int, default=5)
    word.add_argument(
        "--rows", type=int, default=8, help="rows of the baseline's Hessian, where it has four times more"
    )
    word.add_argument("--crystals", nargs="*", choices=TAGS, default=list(TAGS))
    word.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    word.add_argument("--quick", action="store_true", help="a few channels and repeats: does it work?")
    word.set_defaults(run=speed)
    word = words.add_parser("sample", help="the pipeline to ε_ion over a random sample of crystals")
    _common(word, "float64")
    _drawn(word)
    word.add_argument("--baseline-every", type=int, default=None, help="let the baseline do every so many-th as well")
    word.set_defaults(run=sample)
    word = words.add_parser("gpu", help="crystals per second in batches")
    _common(word, "float32")
    _drawn(word)
    word.add_argument("--device", default=None, help="torch device; cuda if there is one")
    word.add_argument("--times", type=int, default=5, help="how often the sample is repeated")
    word.add_argument("--baseline-crystals", type=int, default=8, help="crystals that the baseline computes")
    word.set_defaults(run=gpu)
    word = words.add_parser("datasets", help="ten thousand crystals read, cleaned, split and written")
    word.add_argument("--count", type=int, default=10_000, help="crystals")
    word.add_argument("--seed", type=int, default=0)
    word.add_argument("--output", type=Path, default=report.RESULTS)
    word.set_defaults(run=datasets)
    word = words.add_parser("queries", help="questions to an embedded store of a hundred thousand results")
    word.add_argument("--count", type=int, default=100_000, help="results")
    word.add_argument("--seed", type=int, default=0)
    word.add_argument("--repeats", type=int, default=9, help="how often each question is asked")
    word.add_argument("--compare", action="store_true", help="also without the table of fields: minutes")
    word.add_argument("--output", type=Path, default=report.RESULTS)
    word.set_defaults(run=queries)
    word = words.add_parser("campaign", help="what a campaign of ten thousand crystals costs beside the computation")
    word.add_argument("--count", type=int, default=10_000, help="crystals")
    word.add_argument("--seed", type=int, default=0)
    word.add_argument("--output", type=Path, default=report.RESULTS)
    word.set_defaults(run=campaign)
    word = words.add_parser("engines", help="what FireWorks and jobflow-remote add to a chunk job")
    word.add_argument("--launches", type=int, default=30, help="fireworks that are run")
    word.add_argument("--width", type=int, default=200, help="fireworks in their workflow")
    word.add_argument("--remote", type=int, default=8, help="chunk jobs of jobflow-remote, for each set of delays")
    word.add_argument("--output", type=Path, default=report.RESULTS)
    word.set_defaults(run=engines)
    word = words.add_parser("page", help="tables and figures of the documentation from the results")
    word.add_argument("--output", type=Path, default=page.DATA, help="the results")
    word.set_defaults(run=pages)
    return top


def _common(word: argparse.ArgumentParser, dtype: str) -> None:
    word.add_argument("--channels", type=int, default=128, help="channels of the network")
    word.add_argument("--dtype", choices=DTYPES, default=dtype)
    word.add_argument("--source", choices=["data", "published"], default=None, help="where the crystals come from")
    word.add_argument("--output", type=Path, default=report.RESULTS)


def _drawn(word: argparse.ArgumentParser) -> None:
    word.add_argument("--count", type=int, default=200, help="crystals in the sample")
    word.add_argument("--large", type=int, default=5, help="of these, crystals of 85 to 200 atoms")
    word.add_argument("--seed", type=int, default=0)


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
