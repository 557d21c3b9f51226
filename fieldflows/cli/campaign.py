"""``fieldflows campaign``: plan, submit, watch, resume, cancel and export a screening campaign."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fieldflows.cli import output
from fieldflows.cli.options import JsonOption, StoreOption
from fieldflows.errors import SettingsError

if TYPE_CHECKING:
    from jobflow import JobStore

    from fieldflows.campaigns.campaign import Campaign
    from fieldflows.campaigns.config import EngineConfig
    from fieldflows.campaigns.engines.local import LocalOutcome
    from fieldflows.campaigns.survey import Survey

EXIT_SOME_FAILED, EXIT_NOTHING, EXIT_INTERRUPTED = 1, 2, 130
MAX_FAILURES = 20
"""Failures that a table shows; the export has all of them."""

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="Campaign file (YAML); examples in workflows/.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the campaign, or its file.")]
EngineOption = Annotated[
    str | None,
    typer.Option(
        "--engine", metavar="NAME", help="local, fireworks or remote; else as the file says.", show_default=False
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", "-n", min=1, max=256, help="Processes of the local engine.", show_default=False),
]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Also try again what failed for good.")]


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    group = typer.Typer(help="Screen many crystals: plan, submit, watch, resume, cancel, export.")
    group.command("plan")(plan)
    group.command("submit")(submit)
    group.command("status")(status)
    group.command("resume")(resume)
    group.command("cancel")(cancel)
    group.command("export")(export)
    group.command("list")(list_campaigns)
    group.command("remove")(remove)
    app.add_typer(group, name="campaign")


def plan(file: FileArgument, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show what a campaign would do: crystals, stages, cost, and what is there already.  Nothing is written."""
    campaign = _campaign(file)
    with _open_if_there(store or campaign.config.store) as job_store, _reporting() as report:
        made = campaign.plan(job_store, report)
    data = made.to_dict() | {"failures": [item.to_json_dict() for item in made.failures]}
    if as_json:
        output.print_json(data)
        return
    console = output.console()
    console.print(f"Campaign {made.config.name}: nothing is computed or stored.", markup=False)
    for name, count in made.inputs.items():
        console.print(f"  input {name}: {count} crystals", markup=False)
    console.print(
        f"  {data['crystals']} distinct crystals, {data['atoms']} atoms; {data['duplicates']} duplicates, "
        f"{data['unreadable']} that cannot be used"
    )
    console.print(f"  models: {', '.join(data['models'])}", markup=False)
    table_rows = [
        (s.name, s.task, s.where or "–", str(s.at_most), str(s.stored), str(s.failed), _duration(s.seconds))
        for s in made.stage_plans
    ]
    heads = ["stage", "task", "where", "at most", "stored", "failed", "predicted"]
    console.print(output.table("Stages (predicted: on one core, if all come in)", heads, table_rows, left=3))
    console.print(f"{data['chunks']} chunks of at most {made.config.chunks.minutes:g} minutes, predicted", markup=False)
    _show_failures(console, [item.to_json_dict() for item in made.failures])


def submit(
    file: FileArgument,
    store: StoreOption = None,
    engine: EngineOption = None,
    workers: WorkersOption = None,
    retry_failed: RetryOption = False,
    only_write: Annotated[
        bool, typer.Option("--only-write", help="Write the campaign to the store, and leave the work to `resume`.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Submit a campaign: on the local engine, work on it here until it is done.

    Submitting the same file again goes on where it stopped.  Exit code 0: all done; 1: some crystals failed, the others
    are done; 2: nothing was done; 130: interrupted, what was finished is stored.
    """
    campaign = _campaign(file)
    spec = store or campaign.config.store
    with _open(spec) as job_store:
        with _reporting() as report:
            manifest = campaign.submit(job_store, report)
        _say_what_was_found(manifest)
        if only_write:
            typer.echo(f"Written. Work on it with: fieldflows campaign resume {manifest['campaign']}", err=True)
            return
        _dispatch(job_store, manifest["campaign"], campaign.config.engine, spec, engine, workers, retry_failed, as_json)


def resume(
    name: NameArgument,
    store: StoreOption = None,
    engine: EngineOption = None,
    workers: WorkersOption = None,
    retry_failed: RetryOption = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also if jobs of an earlier submission are still in the queue of an engine.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Go on with a campaign: compute what is not in the store, try again what failed for reasons that may have passed.

    Exit codes as of `submit`.
    """
    from fieldflows.campaigns.campaign import ready_manifest
    from fieldflows.campaigns.config import EngineConfig

    title, spec = _named(name, store)
    with _open(spec, must_exist=True) as job_store:
        manifest = ready_manifest(job_store, title)
        settings = EngineConfig(**manifest["config"]["engine"])
        _dispatch(job_store, title, settings, spec, engine, workers, retry_failed, as_json, force)


def status(
    name: NameArgument,
    store: StoreOption = None,
    watch: Annotated[
        float | None,
        typer.Option("--watch", metavar="SECONDS", min=1, help="Show it again and again.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show where a campaign stands: done, failed by reason, rate and time left, stage by stage."""
    from fieldflows.campaigns.dispatch import status_of

    title, spec = _named(name, store)
    with _open(spec, must_exist=True) as job_store:
        while True:
            found = status_of(job_store, title)
            if as_json:
                output.print_json(found.to_dict())
            else:
                _show_status(found)
            if watch is None or found.complete:
                return
            time.sleep(watch)


def cancel(name: NameArgument, store: StoreOption = None) -> None:
    """Stop a campaign: workers end after their batch, queued jobs are taken back.  What is done stays."""
    from fieldflows.campaigns.dispatch import cancel_everywhere

    title, spec = _named(name, store)
    with _open(spec, must_exist=True) as job_store:
        taken = cancel_everywhere(job_store, title)
    typer.echo(f"Campaign {title} is canceled; {taken} queued jobs were taken back. `campaign resume` goes on with it.")


def export(
    name: NameArgument,
    store: StoreOption = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on standard output (the default).")] = False,
    as_json: JsonOption = False,
    parquet: Annotated[
        Path | None, typer.Option("--parquet", metavar="FILE", help="Write a Parquet file.", show_default=False)
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option("--sort", metavar="COLUMN", help="Rank by a column, largest first.", show_default=False),
    ] = None,
    ascending: Annotated[bool, typer.Option("--ascending", help="Rank smallest first.")] = False,
) -> None:
    """Write one row for each crystal: prediction, what the database says, what became of it in each stage."""
    from fieldflows.campaigns.dispatch import collect_outputs
    from fieldflows.campaigns.export import columns, ranked, rows
    from fieldflows.campaigns.records import Campaigns
    from fieldflows.store.export import write_csv, write_json, write_parquet

    if as_csv + as_json + (parquet is not None) > 1:
        raise SettingsError("--json, --csv and --parquet exclude each other.", "Choose one.")
    title, spec = _named(name, store)
    with _open(spec, must_exist=True) as job_store:
        manifest = Campaigns.of(job_store).require(title)
        collect_outputs(job_store, title)
        fields = columns(manifest)
        table = rows(job_store, manifest)
        if sort is not None:
            table = ranked(table, sort, ascending, [field.path for field in fields])
        if parquet is not None:
            count = write_parquet(table, fields, parquet)
            typer.echo(f"{count} rows written to {parquet}", err=True)
        elif as_json:
            write_json(table, sys.stdout)
        else:
            write_csv(table, [field.path for field in fields], sys.stdout)


def list_campaigns(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the campaigns of a store."""
    from fieldflows.campaigns.records import Campaigns

    fields = ["campaign", "description", "crystals", "chunks", "created_at", "canceled_at", "ready"]
    with _open(store, must_exist=True) as job_store:
        found = sorted(Campaigns.of(job_store).query({}, fields), key=lambda row: row["created_at"])
    if as_json:
        output.print_json(found)
        return
    table_rows = [
        (row["campaign"], row["description"] or "–", str(row["crystals"]), str(row["chunks"]), row["created_at"][:16])
        for row in found
    ]
    output.console().print(
        output.table("Campaigns", ["name", "description", "crystals", "chunks", "submitted (UTC)"], table_rows, left=2)
    )


def remove(
    name: NameArgument,
    store: StoreOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a campaign from the store; its results and failures stay."""
    from fieldflows.campaigns import campaign as campaigns

    title, spec = _named(name, store)
    if not yes:
        typer.confirm(f"Remove campaign {title} (results stay)?", abort=True, err=True)
    with _open(spec, must_exist=True) as job_store:
        campaigns.remove(job_store, title)
    typer.echo(f"Campaign {title} is removed; its results are still in the store.")


def _dispatch(
    job_store: JobStore,
    name: str,
    settings: EngineConfig,
    spec: str | None,
    engine: str | None,
    workers: int | None,
    retry_failed: bool,
    as_json: bool,
    force: bool = False,
) -> None:
    from fieldflows.campaigns.dispatch import status_of, submit_to_engine, with_engine

    settings = with_engine(settings, engine, workers)
    if settings.name != "local":
        ids = submit_to_engine(job_store, name, settings, retry_failed, force)
        watch = f"Watch them with: fieldflows campaign status {name}" if ids else "Nothing is left to do."
        typer.echo(f"{len(ids)} jobs submitted to {settings.name}. {watch}", err=True)
        return
    outcome = _work(job_store, name, settings.workers, retry_failed, spec)
    found = status_of(job_store, name)
    if as_json:
        output.print_json(found.to_dict())
    else:
        _show_status(found, job_store)
    for reason in dict.fromkeys(outcome.left.values()):
        if reason != "the run was stopped":
            chunks = sum(text == reason for text in outcome.left.values())
            typer.echo(f"{chunks} chunks were left: {reason}", err=True)
    if outcome.stopped:
        typer.echo(f"Interrupted. Go on with: fieldflows campaign resume {name}", err=True)
        raise typer.Exit(EXIT_INTERRUPTED)
    if found.failures or found.unreadable or outcome.left:
        raise typer.Exit(EXIT_SOME_FAILED if any(stage.done for stage in found.stages) else EXIT_NOTHING)


def _work(job_store: JobStore, name: str, workers: int, retry_failed: bool, spec: str | None) -> LocalOutcome:
    import warnings

    from fieldflows.campaigns.campaign import ready_manifest, work_locally
    from fieldflows.campaigns.survey import survey

    state = survey(job_store, ready_manifest(job_store, name))
    expected = {stage.name: stage.pending + stage.waiting for stage in state.stages}
    with _bars(expected) as advance, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return work_locally(job_store, name, workers, retry_failed, advance, _spec_for_others(spec))


def _spec_for_others(spec: str | None) -> str | None:
    """Return what worker processes are told; None where they find the store by themselves, as this one did."""
    import os

    from fieldflows.store.select import STORE_VARIABLE

    if spec is None:
        return os.environ.get(STORE_VARIABLE, "")
    return spec if "://" in spec else str(Path(spec).expanduser().absolute())


def _campaign(file: Path) -> Campaign:
    from fieldflows.store import require_jobflow

    require_jobflow()
    from fieldflows.campaigns.campaign import Campaign

    return Campaign.from_yaml(file)


def _named(name: str, store: str | None) -> tuple[str, str | None]:
    """Return the name and the store of a campaign that is given by its name or its file."""
    from fieldflows.store import require_jobflow

    require_jobflow()
    if name.endswith((".yaml", ".yml")):
        config = _campaign(Path(name)).config
        return config.name, store or config.store
    return name, store


@contextmanager
def _open(spec: str | None, must_exist: bool = False) -> Iterator[JobStore]:
    from fieldflows.store import get_store, require_jobflow

    require_jobflow()
    job_store = get_store(spec, must_exist)
    try:
        yield job_store
    finally:
        job_store.close()


@contextmanager
def _open_if_there(spec: str | None) -> Iterator[JobStore | None]:
    from fieldflows.store import is_new

    if is_new(spec):
        yield None
        return
    with _open(spec) as job_store:
        yield job_store


def _say_what_was_found(manifest: dict[str, Any]) -> None:
    words = {"duplicates": "duplicates", "unreadable": "inputs that cannot be used"}
    remarks = [f"{manifest[name]} {word}" for name, word in words.items() if manifest[name]]
    more = f" ({', '.join(remarks)})" if remarks else ""
    counts = f"{manifest['crystals']} crystals in {manifest['chunks']} chunks{more}"
    typer.echo(f"Campaign {manifest['campaign']}: {counts}", err=True)


def _show_status(found: Survey, job_store: JobStore | None = None) -> None:
    console = output.console()
    head = f"Campaign {found.campaign}: {found.crystals} crystals"
    head += f", {found.unreadable} inputs could not be used" if found.unreadable else ""
    head += ", canceled" if found.canceled else ", complete" if found.complete else ""
    console.print(head, markup=False)
    table_rows = []
    for stage in found.stages:
        failed = ", ".join(f"{count} {kind}" for kind, count in stage.failed.most_common()) or "–"
        table_rows.append(
            (
                stage.name,
                failed,
                *(str(number) for number in (stage.done, stage.rejected, stage.pending, stage.waiting)),
                "–" if not stage.rate else f"{stage.rate:.2g}/s",
            )
        )
    heads = ["stage", "failed", "done", "rejected", "to do", "waiting", "rate"]
    console.print(output.table("Stages", heads, table_rows, left=2))
    if not found.complete:
        left = "unknown" if found.seconds_left is None else f"about {_duration(found.seconds_left)}"
        console.print(f"{found.workers} workers at work; time left {left}", markup=False)
    for engine, states in found.engines.items():
        counts = ", ".join(f"{count} {state}" for state, count in states.items() if count)
        console.print(f"{engine}: {counts or 'no jobs'}", markup=False)
    if job_store is not None and (found.failures or found.unreadable):
        from fieldflows.store.failures import FailuresCollection

        failures = list(FailuresCollection.of(job_store).query({"campaign": found.campaign}, limit=MAX_FAILURES + 1))
        _show_failures(console, failures)


def _show_failures(console: Any, failures: list[dict[str, Any]]) -> None:
    if not failures:
        return
    console.print(output.failure_table(failures[:MAX_FAILURES]))
    if len(failures) > MAX_FAILURES:
        console.print("More failures are in the export.", markup=False)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


@contextmanager
def _reporting() -> Iterator[Any]:
    """Show one bar for each thing that is being done, where there is a terminal to show it."""
    from rich.progress import Progress

    console = output.console(error=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield report


@contextmanager
def _bars(expected: dict[str, int]) -> Iterator[Any]:
    """Show one bar for each stage that has something to do."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[failed]}"),
    )
    with Progress(*columns, console=output.console(error=True)) as bars:
        tasks = {name: bars.add_task(name, total=total, failed="") for name, total in expected.items() if total}
        lost = dict.fromkeys(expected, 0)

        def advance(stage: str, done: int, failed: int) -> None:
            lost[stage] = lost.get(stage, 0) + failed
            if stage in tasks:
                text = f"{lost[stage]} failed" if lost[stage] else ""
                bars.update(tasks[stage], advance=done + failed, failed=text)

        yield advance
