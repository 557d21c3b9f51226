"""``fieldflows publish``: copy results and failures from one store to another."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from fieldflows.cli import output
from fieldflows.cli.options import JsonOption
from fieldflows.errors import SettingsError

if TYPE_CHECKING:
    from fieldflows.store.transfer import Counts

EXIT_UNREADABLE = 1


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("publish")(publish)


def publish(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Where results are: a file, a mongodb:// address, or a YAML file."),
    ],
    target: Annotated[
        str | None,
        typer.Argument(metavar="[TARGET]", help="Where they go: likewise; a new file is made.", show_default=False),
    ] = None,
    where: Annotated[
        str,
        typer.Option("--where", metavar="EXPRESSION", help="Only results such as 'n > 2'; failures stay behind."),
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would be done, and write nothing.")] = False,
    from_outputs: Annotated[
        bool,
        typer.Option("--from-outputs", help="Copy results from outputs of jobs of SOURCE to its results first."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy results and failures from one store to another; copying again changes nothing.

    Documents of older versions are brought up to date on the way.  Of two results under one key, the one with the ionic
    part stays, or else the later one.  An interrupted copy goes on when the same command is given again.
    """
    from dataclasses import asdict

    from fieldflows.store import get_store, publish_results
    from fieldflows.store import publish as publish_outputs
    from fieldflows.store.query import parse_query

    criteria = parse_query(where)
    if target is None and not from_outputs:
        raise SettingsError("publish needs a TARGET.", "Or --from-outputs, for results in the outputs of jobs.")
    if from_outputs and dry_run:
        raise SettingsError("--from-outputs and --dry-run exclude each other.", "Choose one.")
    job_store = get_store(source, must_exist=True)
    answer: dict[str, object] = {}
    try:
        if from_outputs:
            answer["from_outputs"] = publish_outputs(job_store)
        if target is not None:
            with _progress() as report:
                done = publish_results(job_store, target, criteria, report, dry_run)
            answer |= asdict(done)
    finally:
        job_store.close()
    if as_json:
        output.print_json({**answer, "dry_run": dry_run})
    else:
        console = output.console()
        if from_outputs:
            console.print(f"{answer['from_outputs']} results of job outputs are in the results now.")
        if target is not None:
            console.print(_table({"results": done.results, "failures": done.failures}, dry_run))
    if target is not None and done.results.unreadable + done.failures.unreadable:
        for problem in done.results.problems + done.failures.problems:
            output.console(error=True).print(problem, markup=False)
        raise typer.Exit(EXIT_UNREADABLE)


def _table(found: dict[str, Counts], dry_run: bool) -> object:
    names = ("new", "replaced", "unchanged", "kept", "unreadable")
    rows = [(name, *(str(getattr(counts, word)) for word in names)) for name, counts in found.items()]
    columns = ["", "new", "replaced", "unchanged", "better in target", "unreadable"]
    return output.table("Would be published" if dry_run else "Published", columns, rows)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Show how far the copy is, on terminals."""
    console = output.console(error=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    with console.status("reading keys") as status:
        yield lambda done, total: status.update(f"{done} of {total}")
