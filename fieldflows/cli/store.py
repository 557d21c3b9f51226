"""``fieldflows store``: what concerns a store as a whole."""

from __future__ import annotations

from typing import Annotated

import typer

from fieldflows.cli import output
from fieldflows.cli.options import JsonOption, StoreOption


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(help="Bring the documents of a store up to date.", no_args_is_help=True)
    group.callback()(_group)
    group.command("migrate")(migrate_store)
    app.add_typer(group, name="store")


def _group() -> None:
    """Bring the documents of a store up to date."""


def migrate_store(
    store: StoreOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would be done, and write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Rewrite results and failures of older schema versions in the present one, under the keys of today.

    Reading and publishing do that by themselves; new computations find a result of an older version only once it has
    been rewritten.  Of two results that get one key, the one with the ionic part stays, or else the later one.
    """
    from dataclasses import asdict

    from fieldflows.store import FailuresCollection, ResultsCollection, get_store
    from fieldflows.store.versions import migrate

    job_store = get_store(store, must_exist=True)
    try:
        with output.console(error=True).status("rewriting"):
            found = {
                "results": migrate(ResultsCollection.of(job_store), dry_run),
                "failures": migrate(FailuresCollection.of(job_store), dry_run),
            }
    finally:
        job_store.close()
    if as_json:
        output.print_json({name: asdict(counts) for name, counts in found.items()} | {"dry_run": dry_run})
    else:
        rows = [(name, str(c.migrated), str(c.merged), str(c.unreadable)) for name, c in found.items()]
        title = "Would be brought up to date" if dry_run else "Brought up to date"
        output.console().print(output.table(title, ["", "documents", "merged", "unreadable"], rows))
    problems = [problem for counts in found.values() for problem in counts.problems]
    for problem in problems:
        output.console(error=True).print(problem, markup=False)
    if problems:
        raise typer.Exit(1)
