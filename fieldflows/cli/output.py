"""How commands show results: tables for people, JSON and CSV for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MAX_ROWS = 200
"""Rows of a table unless more are asked for."""

PIPE_WIDTH = 200
"""Width of tables that do not go to a terminal, so that nothing is cut."""


def console(error: bool = False) -> Console:
    """Return a console on standard output, or on standard error for progress and remarks."""
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    return Console(stderr=error, width=None if stream.isatty() else PIPE_WIDTH, highlight=False, soft_wrap=False)


def print_json(value: Any) -> None:
    """Write JSON to standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> Table:
    """Return a table whose first columns are left-aligned and the others right-aligned."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for position, column in enumerate(columns):
        made.add_column(column, justify="left" if position < left else "right", overflow="fold")
    for row in rows:
        made.add_row(*(escape(cell) for cell in row))
    return made


def number(value: float | None, digits: int = 2) -> str:
    """Return a number for a table; a dash for nothing."""
    return "–" if value is None else f"{value:.{digits}f}"


def result_table(documents: Iterable[Mapping[str, Any]], title: str) -> Table:
    """Return the table of dielectric results.

    Args:
        documents: Stored documents, as dictionaries.
        title: Heading.
    """
    documents = list(documents)
    has_id = any(doc.get("material_id") for doc in documents)
    has_ionic = any(doc.get("e_ionic") is not None for doc in documents)
    columns = ["formula", *(["id"] if has_id else []), "space group", "n", "ε∞ principal"]
    columns += ["ε_ion", "ε_tot"] if has_ionic else []
    columns += ["Z* range / e", "flags"]
    rows = []
    for doc in documents:
        row = [doc["formula_pretty"], *([doc.get("material_id") or "–"] if has_id else [])]
        row += [doc.get("spacegroup_symbol") or "–", number(doc.get("n"), 3)]
        row.append(" ".join(number(value) for value in doc["epsilon_electronic_principal"]))
        if has_ionic:
            row += [number(doc.get("e_ionic")), number(doc.get("e_total"))]
        row.append(f"{doc['born_charge_min']:+.2f} … {doc['born_charge_max']:+.2f}")
        row.append(", ".join(flag["code"] for flag in doc.get("flags") or ()) or "–")
        rows.append(row)
    return table(title, columns, rows, left=2 if has_id else 1)


def plain_table(documents: Iterable[Mapping[str, Any]], columns: Sequence[str], title: str) -> Table:
    """Return a table of some fields of documents, whatever they are; keys are shortened.

    Args:
        documents: Stored documents, as dictionaries.
        columns: Dotted paths.
        title: Heading.
    """
    from fieldflows.store.export import value_at

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.4g}"
        return "–" if value is None else str(value)

    rows = [
        [cell(value_at(doc, path))[:8] if path == "key" else cell(value_at(doc, path)) for path in columns]
        for doc in documents
    ]
    return table(title, [path.rpartition(".")[2].replace("_", " ") for path in columns], rows, left=3)


def failure_table(failures: Iterable[Mapping[str, Any]]) -> Table:
    """Return the table of structures that failed."""
    rows = [(item["source"] or item["formula"] or "–", item["stage"], item["message"]) for item in failures]
    return table("Failures", ["structure", "step", "reason"], rows, left=3)


def polarization_table(documents: Iterable[Mapping[str, Any]], title: str) -> Table:
    """Return the table of spontaneous polarizations, in the order given.

    Args:
        documents: Stored documents, as dictionaries.
        title: Heading.
    """
    rows = []
    for doc in documents:
        energies = [doc.get(name) for name in ("energy_difference", "barrier")]
        row = [doc["formula_pretty"], doc.get("material_id") or "–", doc["spacegroup_symbol"]]
        row += [doc["nonpolar_spacegroup_symbol"], number(doc.get("ps_norm"), 1), number(doc.get("uncertainty"), 1)]
        row += [f"{doc['band_low']:.1f} … {doc['band_high']:.1f}", number(doc["largest_displacement"])]
        row += [number(None if value is None else 1000 * value, 1) for value in energies]
        row += [doc["status"], ", ".join(flag["code"] for flag in doc.get("flags") or ()) or "–"]
        rows.append(row)
    columns = ["formula", "id", "polar", "nonpolar", "P_s", "±", "band", "Å", "ΔE / meV", "barrier", "status", "flags"]
    return table(title, columns, rows, left=4)
