"""``fieldflows dataset``: build labeled datasets and look into them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fieldflows.schemas.dataset import DatasetManifest

MAX_ROWS = 40
"""Rows of a list of rejects or flags that are shown unless all are asked for."""


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    group = typer.Typer(help="Build and inspect labeled datasets.")
    group.command("build")(build)
    group.command("inspect")(inspect)
    app.add_typer(group, name="dataset")


def build(
    config: Annotated[Path, typer.Argument(help="YAML file: sources, thresholds, split.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for frames.extxyz and manifest.json.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a dataset that is already there.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Also keep it as one file on this machine, where its digest finds it.")
    ] = False,
) -> None:
    """Read the sources, convert, clean, split, and write a dataset."""
    from rich.console import Console

    from fieldflows.datasets.config import DatasetConfig
    from fieldflows.datasets.dataset import build_dataset, check_target

    settings = DatasetConfig.from_yaml(config)
    check_target(out, force)
    errors = Console(stderr=True)
    with _progress(errors) as bar:
        tasks: dict[str, int] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        dataset = build_dataset(settings, report)
    dataset.save(out, overwrite=force)
    console = Console()
    _overview(console, dataset.manifest, str(out))
    if keep:
        from fieldflows.datasets import archive

        archive.keep(dataset)
        console.print(
            f"Kept; in a training file: dataset: {{digest: {dataset.digest}}}", highlight=False, soft_wrap=True
        )


def inspect(
    directory: Annotated[Path, typer.Argument(help="Folder of a dataset.")],
    rejects: Annotated[bool, typer.Option("--rejects", help="List every reject and its reason.")] = False,
    flags: Annotated[bool, typer.Option("--flags", help="List every flag.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read all frames and check the digest.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Show what a dataset holds: counts, distributions, rejects, sources."""
    from rich.console import Console

    from fieldflows.datasets.dataset import Dataset, read_manifest

    manifest = read_manifest(directory)
    if verify:
        Dataset.load(directory)
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
