"""``fieldflows query``: find stored results."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fieldflows.cli import output
from fieldflows.cli.options import JsonOption, StoreOption
from fieldflows.errors import SettingsError

if TYPE_CHECKING:
    from fieldflows.store import ResultsCollection
    from fieldflows.store.query import QueryField

CSV_COLUMNS = (
    "key",
    "material_id",
    "formula_pretty",
    "spacegroup_symbol",
    "nsites",
    "n",
    "e_electronic",
    "e_ionic",
    "e_total",
    "born_charge_min",
    "born_charge_max",
    "insulating",
    "band_gap",
    "status_electronic",
    "status_ionic",
    "flags.code",
    "source",
    "provenance.model.name",
    "provenance.model.sha256",
)
"""Columns of the CSV and Parquet outputs unless others are asked for."""

TASK_COLUMNS: dict[str, tuple[str, ...]] = {
    "dielectric": CSV_COLUMNS,
    "relax": (
        "key",
        "material_id",
        "formula_pretty",
        "nsites",
        "volume",
        "relaxation.converged",
        "relaxation.n_steps",
        "relaxation.max_force",
        "relaxation.volume_change",
        "source",
        "provenance.model.name",
    ),
    "spontaneous_polarization": (
        "key",
        "material_id",
        "formula_pretty",
        "spacegroup_symbol",
        "nonpolar_spacegroup_symbol",
        "ps_norm",
        "uncertainty",
        "band_low",
        "band_high",
        "largest_displacement",
        "energy_difference",
        "barrier",
        "status",
        "flags.code",
        "source",
        "provenance.model.name",
    ),
}
"""Columns of the outputs for other tasks, and of their tables."""

TABLE_FIELDS = (
    "formula_pretty",
    "material_id",
    "spacegroup_symbol",
    "n",
    "epsilon_electronic_principal",
    "e_ionic",
    "e_total",
    "born_charge_min",
    "born_charge_max",
    "flags",
)
"""Fields that the table for people shows."""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("query")(query)


def query(
    expression: Annotated[
        str,
        typer.Argument(
            metavar="[EXPRESSION]",
            help="Such as 'n > 2 and \"O\" in elements', or a Mongo filter in JSON; empty for all.",
        ),
    ] = "",
    store: StoreOption = None,
    task: Annotated[
        str, typer.Option("--task", help="Kind of results: dielectric, relax, ...; 'all' for every kind.")
    ] = "dielectric",
    sort: Annotated[
        str | None, typer.Option("--sort", metavar="FIELD", help="Sort by a field, largest first.", show_default=False)
    ] = None,
    ascending: Annotated[bool, typer.Option("--ascending", help="Sort smallest first.")] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=0,
            help="Largest number of results; 0 for all. A table stops at 200 by itself.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV to standard output instead of a table.")] = False,
    parquet: Annotated[
        Path | None,
        typer.Option("--parquet", metavar="FILE", help="Write a Parquet file instead.", show_default=False),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option("--columns", metavar="A,B,...", help="Fields for --csv, --json or --parquet.", show_default=False),
    ] = None,
    fields: Annotated[bool, typer.Option("--fields", help="List all fields, with units, and stop.")] = False,
) -> None:
    """Find stored results by what they are.

    Results whose value is absent (null) are sorted last and never fulfill a comparison by size.
    """
    from fieldflows.store import ResultsCollection, get_store
    from fieldflows.store.export import write_csv, write_json, write_parquet
    from fieldflows.store.query import parse_query, query_fields, resolve_field

    if fields:
        _list_fields(query_fields().values(), as_json)
        return
    if as_json + as_csv + (parquet is not None) > 1:
        raise SettingsError("--json, --csv and --parquet exclude each other.", "Choose one.")
    criteria = _of_task(parse_query(expression), task)
    chosen = [resolve_field(name.strip()) for name in columns.split(",")] if columns else None
    paths = [field.path for field in chosen] if chosen else list(TASK_COLUMNS.get(task, CSV_COLUMNS))
    order = resolve_field(sort) if sort else None
    job_store = get_store(store, must_exist=True)
    try:
        results = ResultsCollection.of(job_store)
        if as_json:
            found = _found(results, criteria, order, ascending, limit or 0, paths if chosen else None)
            write_json((_pick(doc, paths) for doc in found) if chosen else found, sys.stdout)
        elif as_csv or parquet:
            found = _found(results, criteria, order, ascending, limit or 0, paths)
            if parquet:
                count = write_parquet(found, [resolve_field(path) for path in paths], parquet)
                output.console(error=True).print(f"{count} results written to {parquet}")
            else:
                write_csv(found, paths, sys.stdout)
        else:
            _print_table(results, criteria, order, ascending, limit, task)
    finally:
        job_store.close()


def _of_task(criteria: dict[str, Any], task: str) -> dict[str, Any]:
    """Return a filter for results of one kind.

    Raises:
        SettingsError: If there is no such kind.
    """
    from fieldflows.errors import suggestion
    from fieldflows.store.versions import RESULT_CLASSES

    if task == "all":
        return criteria
    if task not in RESULT_CLASSES:
        raise SettingsError(f"There is no kind of results {task!r}.", suggestion(task, [*RESULT_CLASSES, "all"]))
    return {"$and": [{"task": task}, criteria]} if criteria else {"task": task}


def _print_table(
    results: ResultsCollection,
    criteria: dict[str, Any],
    order: QueryField | None,
    ascending: bool,
    limit: int | None,
    task: str,
) -> None:
    plain = task in ("dielectric", "all")
    columns = list(TABLE_FIELDS if plain else TASK_COLUMNS[task])
    most = output.MAX_ROWS if limit is None else limit
    asked = output.MAX_ROWS + 1 if limit is None else limit
    documents = list(_found(results, criteria, order, ascending, asked, columns))
    console, total = output.console(), results.count(_of_task({}, task))
    if not documents:
        console.print(f"None of {total} results fits.")
        return
    is_cut = limit is None and len(documents) > most
    title = f"{results.count(criteria) if is_cut else len(documents)} of {total} results"
    if is_cut:
        title += f" (the first {most} are shown; --limit 0 shows all)"
        documents = documents[:most]
    if task == "spontaneous_polarization":
        console.print(output.polarization_table(documents, title))
    elif plain:
        console.print(output.result_table([doc for doc in documents if "born_charge_min" in doc], title))
    else:
        console.print(output.plain_table(documents, columns, title))


def _found(
    results: ResultsCollection,
    criteria: dict[str, Any],
    order: QueryField | None,
    ascending: bool,
    limit: int,
    paths: list[str] | None,
) -> Iterator[dict[str, Any]]:
    """Return the documents in order, with the fields at the paths at least; all of them if the limit is 0."""
    # A projection knows no places in lists.
    kept = None if paths is None else _outermost(path.split(".")[0] if _has_place(path) else path for path in paths)
    if order is None:
        return results.query(criteria, kept, limit=limit)
    if order.kind in ("number", "text") and not order.is_list and not _has_place(order.path):
        return results.ranked(criteria, order.path, not ascending, kept, limit)
    # Stores sort lists by one of their entries: sorted here, which holds the documents.
    kept = None if kept is None else _outermost([*kept, order.path.split(".")[0]])
    documents = _sorted(list(results.query(criteria, kept)), order.path, ascending)
    return islice(documents, limit or None)


def _has_place(path: str) -> bool:
    return any(part.isdigit() for part in path.split("."))


def _outermost(paths: Iterable[str]) -> list[str]:
    """Return the paths that are not inside another one, because MongoDB refuses a projection with both."""
    found = dict.fromkeys(paths)
    return [path for path in found if not any(path.startswith(f"{other}.") for other in found)]


def _list_fields(fields: Any, as_json: bool) -> None:
    listed: list[QueryField] = sorted(fields, key=lambda field: field.path)
    if as_json:
        output.print_json([vars(field) for field in listed])
        return
    rows = [
        (field.path, f"list of {field.kind}" if field.is_list else field.kind, field.unit or "–", field.description)
        for field in listed
    ]
    output.console().print(output.table("Fields", ["field", "kind", "unit", "meaning"], rows, left=4))


def _sorted(documents: list[dict[str, Any]], path: str, ascending: bool) -> list[dict[str, Any]]:
    from fieldflows.store.export import value_at

    present = [doc for doc in documents if isinstance(value_at(doc, path), int | float | str)]
    absent = [doc for doc in documents if not isinstance(value_at(doc, path), int | float | str)]
    return sorted(present, key=lambda doc: value_at(doc, path), reverse=not ascending) + absent


def _pick(document: dict[str, Any], paths: list[str]) -> dict[str, Any]:
    from fieldflows.store.export import value_at

    return {path: value_at(document, path) for path in paths}
