"""``fieldflows dataset``: build labeled datasets, look into them, check them, and compare them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fieldflows.cli.options import JsonOption

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fieldflows.datasets.dataset import Dataset
    from fieldflows.datasets.source import Progress
    from fieldflows.schemas.dataset import DatasetDiff, DatasetManifest, FrameChange

MAX_ROWS = 40
"""Rows of a list of rejects or flags that are shown unless all are asked for."""

EXIT_FOUND = 1
"""The work was done, and found what the exit status is to tell: datasets differ, or a check does not hold."""


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    group = typer.Typer(help="Build, inspect, validate and compare labeled datasets.")
    group.command("build")(build)
    group.command("inspect")(inspect)
    group.command("validate")(validate)
    group.command("diff")(diff)
    app.add_typer(group, name="dataset")


def build(
    config: Annotated[Path, typer.Argument(help="YAML file: sources, thresholds, split.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for frames.extxyz and manifest.json.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a dataset that is already there.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Also keep it as one file on this machine, where its digest finds it.")
    ] = False,
    figure: Annotated[bool, typer.Option("--figure/--no-figure", help="Draw summary.png beside the manifest.")] = True,
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask public services again for what is kept.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Take only what is kept of public services.")] = False,
) -> None:
    """Read the sources, convert, clean, split, and write a dataset."""
    from rich.console import Console

    from fieldflows.datasets.config import DatasetConfig
    from fieldflows.datasets.dataset import build_dataset, check_target
    from fieldflows.errors import DataError

    settings = DatasetConfig.from_yaml(config).asking(refresh, offline)
    check_target(out, force)
    with _reporting() as report:
        dataset = build_dataset(settings, report)
        dataset.save(out, overwrite=force, progress=report)
        if figure:
            report("drawing", 0, 1)
            try:
                _draw(dataset, out / SUMMARY_NAME)
            except DataError as error:  # the dataset is there and whole
                typer.echo(f"No figure: {error}", err=True)
            report("drawing", 1, 1)
    console = Console()
    _overview(console, dataset.manifest, str(out))
    if keep:
        from fieldflows.datasets import archive

        archive.keep(dataset)
        console.print(
            f"Kept; in a training file: dataset: {{digest: {dataset.digest}}}", highlight=False, soft_wrap=True
        )


SUMMARY_NAME = "summary.png"
"""Figure beside the manifest."""


def _draw(dataset: Dataset, path: Path) -> None:
    """Save the summary figure.

    Raises:
        DataError: If it cannot be written there.
    """
    from fieldflows.errors import DataError
    from fieldflows.plotting import dataset_summary

    try:
        dataset_summary(dataset, path)
    except (OSError, ValueError) as error:
        raise DataError(f"The figure cannot be written to {path}: {error}.") from error


def inspect(
    directory: Annotated[Path, typer.Argument(help="Folder of a dataset.")],
    rejects: Annotated[bool, typer.Option("--rejects", help="List every reject and its reason.")] = False,
    flags: Annotated[bool, typer.Option("--flags", help="List every flag.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read all frames and check the digest.")] = False,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="Draw the summary into this file; the ending decides the format.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Show what a dataset holds: counts, distributions, rejects, sources."""
    from rich.console import Console

    from fieldflows.datasets.dataset import Dataset, read_manifest

    manifest = read_manifest(directory)
    if verify or figure:
        dataset = Dataset.load(directory)
        if figure:
            _draw(dataset, figure)
    if as_json:
        typer.echo(manifest.model_dump_json(indent=1))
        return
    console = Console()
    _overview(console, manifest, str(directory))
    if verify:
        console.print(f"The frames match the digest {manifest.digest[:12]}...")
    _findings(console, manifest, "rejects", everything=rejects)
    if flags:
        _findings(console, manifest, "flags", everything=True)


def validate(
    place: Annotated[Path, typer.Argument(help="Folder of a dataset, or the YAML file of one to be built.")],
    as_json: JsonOption = False,
) -> None:
    """Check content, conventions, symmetry, sum rule, subsets and licenses.

    Exit code 1: a check does not hold.
    """
    from fieldflows.cli.output import console, print_json, table
    from fieldflows.datasets.validation import validate_place

    with _reporting() as report:
        found = validate_place(place, report)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        rows = [
            [check.code, "holds" if check.passed else "FAILS", "\n".join([check.message, *check.where])]
            for check in found.checks
        ]
        title = f"{found.name}, {found.n_frames} frames, digest {found.digest[:12]}"
        console().print(table(title, ["check", "", "found"], rows, left=3))
    if not found.valid:
        raise typer.Exit(EXIT_FOUND)


def diff(
    first: Annotated[str, typer.Argument(help="Folder or digest of a dataset.")],
    second: Annotated[str, typer.Argument(help="Folder or digest of another one.")],
    as_json: JsonOption = False,
) -> None:
    """Show what came, went, changed and moved from one dataset to another, and what they share.

    Exit code 1: they differ.
    """
    from fieldflows.cli.output import print_json
    from fieldflows.datasets.comparison import compare_datasets
    from fieldflows.datasets.overlap import open_dataset

    one, two = (open_dataset(Path(place) if Path(place).exists() else place) for place in (first, second))
    found = compare_datasets(one, two)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        _show_diff(found)
    if not found.same:
        raise typer.Exit(EXIT_FOUND)


def _show_diff(found: DatasetDiff) -> None:
    from fieldflows.cli.output import console, table

    output = console()
    for word, side in (("first", found.first), ("second", found.second)):
        output.print(f"{word}: {side.name}, {side.n_frames} frames, {side.n_materials} materials, {side.digest[:12]}")
    verdict = "the same frames" if found.same else "not the same"
    output.print(
        f"{verdict}: {found.n_unchanged} unchanged, {len(found.added)} added, {len(found.removed)} removed, "
        f"{len(found.changed)} changed, {len(found.moved)} moved"
    )
    lists = {
        "added": found.added,
        "removed": found.removed,
        "changed": [f"{item.frame}: {', '.join(_step(item, word) for word in item.what)}" for item in found.changed],
        "moved": [f"{item.frame}: {item.before} to {item.after}" for item in found.moved],
        "settings": [f"{key}: {one} to {two}" for key, (one, two) in found.configuration.items()],
        "files of sources": list(found.sources),
    }
    for name, lines in lists.items():
        for line in lines[:MAX_ROWS]:
            output.print(f"{name}: {line}", markup=False)
        if len(lines) > MAX_ROWS:
            output.print(f"... and {len(lines) - MAX_ROWS} more {name} (--json lists all)")
    rows = [
        [one, two, str(len(formulas)), ", ".join(formulas[:6]) + (", ..." if len(formulas) > 6 else "")]
        for one, row in found.shared_materials.items()
        for two, formulas in row.items()
    ]
    output.print(table("Materials in both", ["first", "second", "materials", "which"], rows, left=2))


def _step(item: FrameChange, word: str) -> str:
    from fieldflows.datasets.frame import LABEL_UNITS

    step = item.largest.get(word)
    return word if step is None else f"{word} by {step:.3g} {LABEL_UNITS[word]}"


@contextmanager
def _reporting() -> Iterator[Progress]:
    """Show a bar for each stage on standard error."""
    from rich.console import Console

    with _progress(Console(stderr=True)) as bar:
        tasks: dict[str, int] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield report


def _progress(console: Console):  # type: ignore[no-untyped-def]
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def _overview(console: Console, manifest: DatasetManifest, where: str) -> None:
    console.print(
        f"[bold]{manifest.name}[/bold] in {where}: {manifest.n_frames} frames, {manifest.n_materials} materials, "
        f"{len(manifest.elements)} elements; digest {manifest.digest[:12]}"
    )
    console.print(
        f"rejected {len(manifest.rejects)}, flagged {len(manifest.flags)}, copies left out {len(manifest.duplicates)}, "
        f"in gaps {manifest.n_gap}"
    )
    counts = _table("Counts", "", *manifest.counts)
    for key in manifest.counts["all"]:
        counts.add_row(key, *(str(column.get(key, 0)) for column in manifest.counts.values()))
    console.print(counts)
    labels = _table("Labels, all subsets", "label", "unit", "mean", "std", "min", "max")
    for row in manifest.statistics:
        if row.split == "all":
            numbers = (row.mean, row.std, row.minimum, row.maximum)
            labels.add_row(row.label, row.unit, *(_number(x) for x in numbers))
    console.print(labels)
    for source in manifest.sources:
        console.print(
            f"[bold]{source.name}[/bold] ({source.type}): {source.n_kept} of {source.n_frames} frames; "
            f"license: {source.license}",
            highlight=False,
        )
        for line in [*source.conversions, *source.notes]:
            console.print(f"  {line}", highlight=False)
    for item in manifest.overlap:
        console.print(
            f"shared with [bold]{item.name}[/bold] ({item.kind}): {len(item.shared_formulas)} formulas, "
            f"{len({(match.source, match.source_index) for match in item.matches})} frames whose crystal is there",
            highlight=False,
        )
        for pair in item.subsets:
            console.print(
                f"  {pair.split} and {pair.other_split}: {pair.n_formulas} formulas, {pair.n_structures} crystals",
                highlight=False,
            )


def _number(x: float) -> str:
    return "0" if abs(x) < 1e-12 else f"{x:.3g}"


def _findings(console: Console, manifest: DatasetManifest, kind: str, everything: bool) -> None:
    from rich import box
    from rich.table import Table

    rows = manifest.rejects if kind == "rejects" else manifest.flags
    if not rows:
        return
    shown = rows if everything else rows[:MAX_ROWS]
    table = Table(title=f"{kind.capitalize()} ({len(rows)})", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("formula", "frame", "found"):
        table.add_column(column, no_wrap=column == "formula", overflow="fold")
    for row in shown:
        for finding in row.findings:
            limit = "" if finding.threshold is None else f" (limit {finding.threshold:.3g} {finding.unit})"
            table.add_row(row.formula, f"{row.source}:{row.source_index}", finding.message + limit)
    console.print(table)
    if len(shown) < len(rows):
        console.print(f"... and {len(rows) - len(shown)} more: --{kind} lists all.")
