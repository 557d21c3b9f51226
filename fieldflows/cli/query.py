"""``fieldflows query``: find stored results."""

from __future__ import annotations

import csv
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fieldflows.cli import output
from fieldflows.cli.options import JsonOption, StoreOption
from fieldflows.errors import SettingsError

if TYPE_CHECKING:
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
"""Columns of the CSV output unless others are asked for."""


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
    columns: Annotated[
        str | None,
        typer.Option("--columns", metavar="A,B,...", help="Fields to print with --csv or --json.", show_default=False),
    ] = None,
    fields: Annotated[bool, typer.Option("--fields", help="List all fields, with units, and stop.")] = False,
) -> None:
    """Find stored results by what they are.

    Results whose value is absent (null) are sorted last and never fulfill a comparison by size.
    """
    from fieldflows.store import ResultsCollection, get_store
    from fieldflows.store.query import parse_query, query_fields, resolve_field

    if fields:
        _list_fields(query_fields().values(), as_json)
        return
    if as_json and as_csv:
        raise SettingsError("--json and --csv exclude each other.", "Choose one.")
    criteria = parse_query(expression)
    chosen = [resolve_field(name.strip()).path for name in columns.split(",")] if columns else None
    order = resolve_field(sort).path if sort else None
    job_store = get_store(store, must_exist=True)
    try:
        results = ResultsCollection.of(job_store)
        documents = list(results.query(criteria, limit=0 if order else limit or 0))
        total = results.count()
    finally:
        job_store.close()
    if order:
        documents = _sorted(documents, order, ascending)[: limit or None]
    if as_json:
        output.print_json([_pick(doc, chosen) for doc in documents] if chosen else documents)
    elif as_csv:
        _write_csv(documents, chosen or list(CSV_COLUMNS))
    else:
        console = output.console()
        if documents:
            title = f"{len(documents)} of {total} results"
            if limit is None and len(documents) > output.MAX_ROWS:
                title += f" (the first {output.MAX_ROWS} are shown; --limit 0 shows all)"
                documents = documents[: output.MAX_ROWS]
            console.print(output.result_table(documents, title))
        else:
            console.print(f"None of {total} results fits.")


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


def value_at(document: Any, path: str) -> Any:
    """Return the value at a dotted path; a list of values where the path passes through a list."""
    for position, part in enumerate(parts := path.split(".")):
        if isinstance(document, list):
            if not part.isdigit():
                return [value_at(item, ".".join(parts[position:])) for item in document]
            document = document[int(part)] if int(part) < len(document) else None
        else:
            document = document.get(part) if isinstance(document, dict) else None
    return document


def _sorted(documents: list[dict[str, Any]], path: str, ascending: bool) -> list[dict[str, Any]]:
    present = [doc for doc in documents if isinstance(value_at(doc, path), int | float | str)]
    absent = [doc for doc in documents if not isinstance(value_at(doc, path), int | float | str)]
    return sorted(present, key=lambda doc: value_at(doc, path), reverse=not ascending) + absent


def _pick(document: dict[str, Any], paths: list[str]) -> dict[str, Any]:
    return {path: value_at(document, path) for path in paths}


def _write_csv(documents: list[dict[str, Any]], paths: list[str]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(paths)
    for document in documents:
        writer.writerow([_cell(value_at(document, path)) for path in paths])


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return ";".join(str(_cell(item)) for item in value)
    text = "" if value is None else value
    # A text that starts like a formula would be run by spreadsheet programs.
    return f"'{text}" if isinstance(text, str) and text[:1] in ("=", "@", "+", "-") else text
