"""``fieldflows train``: train a model, or go on with a run that stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from fieldflows.training.config import TrainingConfig
    from fieldflows.training.result import TrainingResult


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
    device: Annotated[
        str | None, typer.Option("--device", help="'cpu' or 'cuda', in place of run.device.", show_default=False)
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Passes over the training frames, in place of run.epochs.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any other key of the file, such as run.seed=1; can be repeated."
        ),
    ] = None,
    register: Annotated[
        str | None,
        typer.Option("--register", metavar="NAME", help="Register the model under this name.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan, train nothing.")] = False,
) -> None:
    """Train a model on labeled crystals and write checkpoint, metrics and figures into the run directory.

    On several GPUs: torchrun --nproc-per-node N $(which fieldflows) train CONFIG.
    """
    from rich.console import Console

    from fieldflows.errors import SettingsError
    from fieldflows.training.config import TrainingConfig
    from fieldflows.training.distributed import environment_size

    rank, size = environment_size()
    console = Console(quiet=rank > 0)
    if max_minutes is not None and max_minutes <= 0:
        raise SettingsError(f"--max-minutes must be positive, found {max_minutes:g}.")
    if register is not None:
        from fieldflows.models.find import registry

        registry().check_name(register)
    options = {"run.max_minutes": max_minutes, "run.device": device, "run.epochs": epochs}
    settings, told = _changed(
        TrainingConfig.from_yaml(config), {key: v for key, v in options.items() if v is not None}, changes or []
    )
    for line in told:
        console.print(line, highlight=False, markup=False)
    directory = out or Path("runs") / config.stem
    if dry_run:
        if rank == 0:
            _plan(console, settings, directory, size)
        return

    from fieldflows.training.loop import train as run
    from fieldflows.training.progress import ProgressBar

    reporter = ProgressBar(console, settings.run.max_minutes)
    try:
        result = run(settings, directory, fresh=not resume, reporter=reporter)
    finally:
        reporter.close()
    if result.status == "interrupted":
        console.print(f"Run the same command again to go on: fieldflows train {config} --out {directory}")
        raise typer.Exit(130)
    if rank == 0:
        _summary(console, result)
        if register is not None and result.checkpoint is not None:
            entry = registry().register(result.checkpoint, register, new_version=True)
            console.print(f"Registered {entry.title}, sha256 {entry.sha256}.", highlight=False)


def _changed(
    settings: TrainingConfig, options: Mapping[str, Any], changes: Sequence[str]
) -> tuple[TrainingConfig, list[str]]:
    """Return the settings with keys replaced, and a line for each that differs from the file.

    Raises:
        SettingsError: If a change is not KEY=VALUE, or its key or value is wrong.
    """
    import yaml

    from fieldflows.errors import SettingsError
    from fieldflows.training.config import TrainingConfig

    wanted = dict(options)
    for change in changes:
        key, separator, text = change.partition("=")
        if not separator or not key.strip():
            raise SettingsError(f"--set takes KEY=VALUE, found {change!r}.", "For example: --set run.seed=1.")
        try:
            wanted[key.strip()] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise SettingsError(f"--set {key}: {text!r} is no YAML value.") from None
    if not wanted:
        return settings, []
    data, told = settings.model_dump(mode="json"), []
    for key, value in wanted.items():
        place: Any = data
        *folders, last = key.split(".")
        for folder in folders:
            place = place.setdefault(folder, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise SettingsError(f"--set {key}: there is no such place in the configuration.")
        if place.get(last) != value:
            told.append(f"{key}: {value} in place of {place.get(last)}.")
        place[last] = value
    return TrainingConfig.from_dict(data, origin="The configuration with --set"), told


def _plan(console: Console, settings: TrainingConfig, directory: Path, ranks: int) -> None:
    """Show what a run would do: frames, labels, size of the network, batches."""
    from fieldflows.training.plan import make_plan
    from fieldflows.training.setup import load_dataset, prepare
    from fieldflows.training.state import load_state
    from fieldflows.training.symmetry import describe

    # on the processor, whatever the device of the run
    here = settings.model_copy(update={"run": settings.run.model_copy(update={"device": "cpu"})})
    data = load_dataset(here)
    setup = prepare(here, {split: data.subset(split) for split in ("train", "valid", "test")})
    state = load_state(directory) if directory.is_dir() else None
    console.print(settings.to_yaml(), markup=False, highlight=False)
    console.print(
        f"{', '.join(f'{split} {len(frames)}' for split, frames in setup.frames.items())} frames with "
        f"{', '.join(setup.labels)}; {sum(p.numel() for p in setup.parameters.values()):,} parameters; "
        f"{settings.run.epochs} epochs. "
        + (f"Would go on at epoch {state.epoch}, step {state.step}" if state else "Would start")
        + f" in {directory}.",
        highlight=False,
    )
    for line in [*make_plan(settings, setup, ranks).lines(), *getattr(data, "notes", ()), *setup.notes()]:
        console.print(f"{line}.", highlight=False, markup=False)
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
