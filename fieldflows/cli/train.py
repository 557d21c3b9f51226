"""``fieldflows train``: train a model, or go on with a run that stopped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fieldflows.training.result import Reporter, TrainingResult


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("train")(train)


def train(
    config: Annotated[Path, typer.Argument(help="YAML file: dataset, model, loss, optimizer, run.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run directory; runs/<name of the file> by default.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on with the run in the directory, or start it again.")
    ] = True,
    max_minutes: Annotated[
        float | None, typer.Option("--max-minutes", help="Wall time in minutes, in place of run.max_minutes.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan, train nothing.")] = False,
) -> None:
    """Train a model on labeled crystals and write checkpoint, metrics and figures into the run directory."""
    from rich.console import Console

    from fieldflows.errors import SettingsError
    from fieldflows.training.config import TrainingConfig

    console = Console()
    settings = TrainingConfig.from_yaml(config)
    if max_minutes is not None:
        if max_minutes <= 0:
            raise SettingsError(f"--max-minutes must be positive, found {max_minutes:g}.")
        settings = settings.model_copy(update={"run": settings.run.model_copy(update={"max_minutes": max_minutes})})
    directory = out or Path("runs") / config.stem
    if dry_run:
        _plan(console, settings, directory)
        return

    from fieldflows.training.loop import train as run

    reporter = make_reporter(console)
    try:
        result = run(settings, directory, fresh=not resume, reporter=reporter)
    finally:
        reporter.close()  # type: ignore[attr-defined]
    if result.status == "interrupted":
        console.print(f"Run the same command again to go on: fieldflows train {config} --out {directory}")
        raise typer.Exit(130)
    _summary(console, result)


def make_reporter(console: Any) -> Reporter:
    """Return a reporter that shows a progress bar and one line per evaluation."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from fieldflows.training.result import Reporter
    from fieldflows.training.setup import Setup
    from fieldflows.training.state import TrainingState

    class Bar(Reporter):
        def __init__(self) -> None:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
            self.task: Any = None
            self.per_epoch = 1

        def start(self, setup: Setup, state: TrainingState, steps_per_epoch: int, epochs: int) -> None:
            sizes = ", ".join(f"{split} {len(frames)}" for split, frames in setup.frames.items())
            weights = sum(p.numel() for p in setup.parameters.values())
            console.print(f"Frames: {sizes}. Labels: {', '.join(setup.labels)}. Parameters: {weights:,}.")
            self.per_epoch = steps_per_epoch
            self.task = self.progress.add_task(
                "epoch 0",
                total=steps_per_epoch * epochs,
                completed=state.epoch * steps_per_epoch + state.batch,
                note="",
            )
            self.progress.start()

        def step(self, state: TrainingState, loss: float, learning_rate: float) -> None:
            self.progress.update(
                self.task,
                completed=state.epoch * self.per_epoch + state.batch,
                description=f"epoch {state.epoch + 1}",
                note=f"loss {loss:.4g}",
            )

        def evaluation(self, record: dict[str, Any], text: str) -> None:
            console.print(
                f"epoch {record['epoch']:g}: loss {record['train'].get('loss', float('nan')):.4g} (train), "
                f"{record['score']:.4g} (valid); MAE {text or 'without validation frames'}",
                highlight=False,
            )

        def message(self, text: str) -> None:
            console.print(text, highlight=False)

        def close(self) -> None:
            self.progress.stop()

    return Bar()


def _plan(console: Any, settings: Any, directory: Path) -> None:
    """Show what a run would do: frames, labels, size of the network, batches."""
    from fieldflows.training.sampler import BatchLimits, epoch_batches
    from fieldflows.training.setup import load_dataset, prepare
    from fieldflows.training.state import load_state
    from fieldflows.training.symmetry import describe

    data = load_dataset(settings)
    setup = prepare(settings, {split: data.subset(split) for split in ("train", "valid", "test")})
    run = settings.run
    limits = BatchLimits(run.batch_structures, run.batch_atoms, run.batch_edges)
    batches = len(epoch_batches([frame.cost for frame in setup.frames["train"]], limits, run.seed, 0))
    state = load_state(directory) if directory.is_dir() else None
    console.print(settings.to_yaml(), markup=False, highlight=False)
    console.print(
        f"{', '.join(f'{split} {len(frames)}' for split, frames in setup.frames.items())} frames with "
        f"{', '.join(setup.labels)}; {sum(p.numel() for p in setup.parameters.values()):,} parameters; "
        f"{run.epochs} epochs of {batches} batches. "
        + (f"Would go on at epoch {state.epoch}, step {state.step}" if state else "Would start")
        + f" in {directory}.",
        highlight=False,
    )
    for line in [*getattr(data, "notes", ()), *setup.notes()]:
        console.print(f"{line}.", highlight=False)
    for split, summary in setup.symmetry().items():
        console.print(f"{split}: {describe(summary)}.", highlight=False)


def _summary(console: Any, result: TrainingResult) -> None:
    from rich import box
    from rich.table import Table

    from fieldflows.training.metrics import QUANTITIES

    splits = list(result.metrics)
    table = Table(title="Mean absolute errors (trivial predictor)", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("quantity", "unit", *splits):
        table.add_column(name)
    for quantity in QUANTITIES:
        cells = [
            f"{result.metrics[split][quantity.name]['mae']:.3g} ({result.baselines[split][quantity.name]['mae']:.3g})"
            if quantity.name in result.metrics[split]
            else ""
            for split in splits
        ]
        if any(cells):
            table.add_row(quantity.symbol, quantity.unit, *cells)
    console.print(table)
    console.print(
        f"{result.epochs} epochs, {result.steps} steps in {result.seconds / 60:.1f} min; ended by: {result.status}. "
        f"Model: {result.checkpoint}",
        highlight=False,
    )
