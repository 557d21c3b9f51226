"""Crystals of the Materials Project for a campaign: structures by id in batches, with what it says of them beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fieldflows.campaigns.config import InputSet
from fieldflows.campaigns.inputs import checked
from fieldflows.datasets.materials_project import MaterialsProject, identities, identity
from fieldflows.datasets.mp_documents import FieldProblem, read_number, read_structure, read_tensor
from fieldflows.datasets.web import AnswerCache
from fieldflows.errors import InputError, SettingsError, WrongAnswer
from fieldflows.inputs import InputStructure
from fieldflows.schemas.dielectric import DielectricReference
from fieldflows.schemas.failure import FailureDocument

SUMMARY_FIELDS = (
    "material_id", "formula_pretty", "volume", "deprecated", "structure", "band_gap", "energy_above_hull",
)  # fmt: skip
"""What is asked of the summary of a material."""

SOURCE = "Materials Project"

Crystal = tuple[InputStructure, dict[str, Any] | None]


def crystals_of_mp(
    given: InputSet, failures: list[FailureDocument], report: Callable[[str, int, int], None]
) -> Iterator[Crystal]:
    """Yield the materials of ids or a filter, as they were asked for, with what the Materials Project says of them.

    Documents are fetched in batches through mp-api and kept on this machine one by one.  An id that is not there, or
    whose structure cannot be computed, becomes a failure.

    Args:
        given: Input with ``mp_ids`` or ``mp_query``.
        failures: Takes up what cannot be used.
        report: Called with (what is done, done, all).

    Raises:
        ServiceError: If the service cannot be used, or the user has no key.
    """
    service = MaterialsProject(AnswerCache())
    if given.mp_query is not None:
        ids = service.find(given.mp_query.criteria(), report, properties=())
    else:
        ids = list(_valid(_listed(given), failures))
    wanted = identities(ids)
    order = list(dict.fromkeys(identity(text) for text in ids))[: given.limit]
    names = [wanted[key] for key in order]
    summaries = _by_id(service.documents("summary", names, report, fields=SUMMARY_FIELDS))
    if given.deprecated:
        rest = [wanted[key] for key in order if key not in summaries]
        summaries |= _by_id(service.documents("summary", rest, report, fields=SUMMARY_FIELDS, deprecated=True))
    known = _by_id(service.documents("dielectric", names, report)) if given.reference else {}
    version = ", ".join(sorted(service.versions)) or None
    for position, key in enumerate(order):
        name = wanted[key]
        summary = summaries.get(key)
        if summary is None:
            error = InputError(
                f"The Materials Project has no material {name}.",
                "Check the id; it may be deprecated (deprecated: true takes those too).",
            )
            failures.append(FailureDocument.from_error(error, "read", source=SOURCE, material_id=name))
            continue
        crystal = _crystal(summary, name, position, failures)
        if crystal is not None:
            yield crystal, reference_of(summary, known.get(key), name, version)


def _listed(given: InputSet) -> list[str]:
    """Return the ids of the file or list, in their order."""
    if not isinstance(given.mp_ids, str):
        return list(given.mp_ids or ())
    path = Path(given.mp_ids)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The list of ids {path} cannot be read: {error}.", "Write one id in each line.") from None
    found = [line.partition("#")[0].strip() for line in lines]
    ids = [text for text in found if text]
    if not ids:
        raise InputError(f"The list of ids {path} is empty.", "Write one id in each line.")
    return ids


def _valid(ids: list[str], failures: list[FailureDocument]) -> Iterator[str]:
    """Yield the ids that are some; a mistyped one among thousands is noted and stops nothing."""
    for text in ids:
        try:
            identities([text])
        except SettingsError as error:
            failures.append(FailureDocument.from_error(error, "read", source=SOURCE, material_id=text))
            continue
        yield text


def _by_id(documents: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    return {identity(document["material_id"]): document for document in documents}


def _crystal(
    summary: Mapping[str, Any], name: str, position: int, failures: list[FailureDocument]
) -> InputStructure | None:
    try:
        atoms = read_structure(summary, position).atoms()
        gap = read_number(summary, "band_gap")
    except FieldProblem as problem:
        error = WrongAnswer(f"The summary of {name} cannot be used: {problem}.", "Update fieldflows and mp-api.")
        failures.append(FailureDocument.from_error(error, "read", source=SOURCE, material_id=name))
        return None
    return checked(atoms, f"{SOURCE} {name}", position, failures, name, gap)


def reference_of(
    summary: Mapping[str, Any], dielectric: Mapping[str, Any] | None, name: str, version: str | None
) -> dict[str, Any]:
    """Return what the Materials Project says of a material, in JSON types; a field that is malformed is left out."""

    def number(document: Mapping[str, Any], field: str) -> float | None:
        try:
            return read_number(document, field)
        except FieldProblem:
            return None

    values: dict[str, Any] = {"energy_above_hull": number(summary, "energy_above_hull")}
    for field in ("n", "e_electronic", "e_ionic", "e_total") if dielectric else ():
        values[field] = number(dielectric or {}, field)
    for field in ("electronic", "ionic", "total") if dielectric else ():
        try:
            values[field] = read_tensor(dielectric or {}, field)
        except FieldProblem:
            values[field] = None
    return DielectricReference(source=SOURCE, material_id=name, version=version, **values).to_json_dict()
