"""A campaign as one table: a row for each crystal, prediction and database side by side, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fieldflows.campaigns.survey import specs_of, walk
from fieldflows.errors import SettingsError, suggestion
from fieldflows.store.query import QueryField

if TYPE_CHECKING:
    from jobflow import JobStore

RESULT_FIELDS = (
    ("spacegroup_symbol", "text", ""),
    ("spacegroup_number", "number", "1"),
    ("n", "number", "1"),
    ("e_electronic", "number", "1"),
    ("e_ionic", "number", "1"),
    ("e_total", "number", "1"),
    ("born_charge_min", "number", "e"),
    ("born_charge_max", "number", "e"),
    ("insulating", "text", ""),
    ("status_electronic", "text", ""),
    ("status_ionic", "text", ""),
)
"""Fields of the results that have a column: name, kind, unit."""

POLARIZATION_FIELDS = (
    ("ps_norm", "number", "µC/cm²"),
    ("uncertainty", "number", "µC/cm²"),
    ("energy_difference", "number", "eV"),
    ("barrier", "number", "eV"),
    ("nonpolar_spacegroup_symbol", "text", ""),
    ("status", "text", ""),
)
"""The same of spontaneous polarizations, where a stage computes them."""

REFERENCE_FIELDS = (
    ("n", "1"),
    ("e_electronic", "1"),
    ("e_ionic", "1"),
    ("e_total", "1"),
    ("energy_above_hull", "eV/atom"),
)
"""What a database says, in columns ``reference_...``: name, unit."""


def result_fields(manifest: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """Return name, kind and unit of the fields of results that a campaign can have."""
    is_polar = any(spec.task == "spontaneous_polarization" for spec in specs_of(manifest))
    return RESULT_FIELDS + (POLARIZATION_FIELDS if is_polar else ())


def columns(manifest: Mapping[str, Any]) -> list[QueryField]:
    """Return the columns of the table of a campaign.

    Args:
        manifest: Its manifest.
    """
    made = [
        QueryField("index", "number", False, "1", "Position among the crystals of the campaign."),
        QueryField("material_id", "text", False, "", "Identifier of the material."),
        QueryField("source", "text", False, "", "Where the crystal came from."),
        QueryField("formula", "text", False, "", "Reduced formula."),
        QueryField("nsites", "number", False, "1", "Atoms of the cell."),
        QueryField("band_gap", "number", False, "eV", "Band gap as given with the input."),
    ]
    fields = result_fields(manifest)
    made += [QueryField(name, kind, False, unit, "Of the last result.") for name, kind, unit in fields]
    made.append(QueryField("flags", "text", True, "", "Codes of the flags of the last result."))
    made += [
        QueryField(f"reference_{name}", "number", False, unit, "What the database says.")
        for name, unit in REFERENCE_FIELDS
    ]
    made += [
        QueryField(f"stage_{spec.name}", "text", False, "", "What became of the crystal in this stage.")
        for spec in specs_of(manifest)
    ]
    made += [
        QueryField("error_stage", "text", False, "", "Stage that failed."),
        QueryField("error_type", "text", False, "", "Kind of the error."),
        QueryField("error", "text", False, "", "What went wrong."),
        QueryField("key", "text", False, "", "Key of the last result in the results collection."),
    ]
    return made


def rows(store: JobStore, manifest: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield one flat row for each input of a campaign: its crystals in their order, then what could not be read.

    Args:
        store: The store.
        manifest: The manifest of the campaign.
    """
    from fieldflows.store.failures import FailuresCollection

    names = [name for name, _, _ in result_fields(manifest)]
    for item in walk(store, manifest, [*names, "flags", "key"]):
        facts = item.entry["facts"]
        merged: dict[str, Any] = {}
        for row in item.rows.values():
            merged |= row
        reference = facts.get("reference") or {}
        stage, failure = next(iter(item.failures.items()), (None, {}))
        yield {
            "index": item.entry["index"],
            "material_id": item.entry["material_id"],
            "source": facts.get("source"),
            "formula": facts.get("formula_pretty"),
            "nsites": facts.get("nsites"),
            "band_gap": facts.get("band_gap"),
            **{name: merged.get(name) for name in names},
            "flags": [flag["code"] for flag in merged.get("flags") or ()],
            **{f"reference_{name}": reference.get(name) for name, _ in REFERENCE_FIELDS},
            **{f"stage_{name}": state for name, state in item.states.items()},
            "error_stage": stage,
            "error_type": failure.get("error_type"),
            "error": failure.get("message"),
            "key": merged.get("key"),
        }
    for failure in FailuresCollection.of(store).fetch(manifest.get("unreadable_keys") or []):
        yield {
            "material_id": failure.get("material_id"),
            "source": failure.get("source"),
            "formula": failure.get("formula"),
            "error_stage": failure.get("stage"),
            "error_type": failure.get("error_type"),
            "error": failure.get("message"),
        }


def ranked(
    table: Iterable[dict[str, Any]], column: str, ascending: bool, known: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield rows by the value in a column; those without one come last.

    Args:
        table: The rows, all of which are held.
        column: Name of the column.
        ascending: Smallest first.
        known: Names of all columns.

    Raises:
        SettingsError: If there is no such column.
    """
    if column not in known:
        raise SettingsError(f"The table has no column {column!r}.", suggestion(column, known))
    held = list(table)
    present = [row for row in held if row.get(column) is not None]
    yield from sorted(present, key=lambda row: row[column], reverse=not ascending)
    yield from (row for row in held if row.get(column) is None)
