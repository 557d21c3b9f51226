"""Dielectric documents of the Materials Project with the structures that they belong to, fetched or saved."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fieldflows.datasets.extxyz import RawFrame, open_text
from fieldflows.datasets.labels import Convention, get_convention
from fieldflows.datasets.materials_project import MaterialsProject, endpoint, identities, identity
from fieldflows.datasets.mp_documents import origin_task
from fieldflows.datasets.mp_frames import REQUIRED, FrameReader, check_schema
from fieldflows.datasets.source import Progress, SourceData, label_frames
from fieldflows.datasets.web import AnswerCache, WebSource, write_answers
from fieldflows.errors import DataError, WrongAnswer
from fieldflows.schemas.dataset import Finding, FrameFindings

Range = tuple[float, float]

KEPT_EXTRAS = (
    "material_id", "task_id", "structure_from", "ieee_residual", "symmetrization_residual", "charge_symmetry_residual",
)  # fmt: skip
"""What is known of a document and stays with its frame."""

CHARGES_NOTE = (
    "Born charges: materials.tasks (output.dielectric_properties.born_charges, or born of the OUTCAR) and "
    "materials.phonon (born), in the frame of their own structure, first index polarization, second displacement; "
    "built from emmet's schema, not confirmed on recorded answers"
)


class MPFilter(BaseModel):
    """Which materials with a dielectric document are asked for; what is not given does not count."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    elements: tuple[str, ...] | None = Field(default=None, description="Elements that must all be there.")
    exclude_elements: tuple[str, ...] | None = Field(default=None, description="Elements that must not be there.")
    formula: tuple[str, ...] | str | None = Field(
        default=None, description="Formula, such as ABO3 or SiO2, or several."
    )
    chemsys: tuple[str, ...] | str | None = Field(default=None, description="Chemical system, such as Ba-O-Ti.")
    num_elements: tuple[int, int] | None = Field(default=None, description="Least and most elements.")
    num_sites: tuple[int, int] | None = Field(default=None, description="Least and most sites.")
    n: Range | None = Field(default=None, description="Refractive index.", json_schema_extra={"unit": "1"})
    e_electronic: Range | None = Field(default=None, description="tr ε∞/3.", json_schema_extra={"unit": "1"})
    e_ionic: Range | None = Field(default=None, description="tr ε_ion/3.", json_schema_extra={"unit": "1"})
    e_total: Range | None = Field(default=None, description="tr ε/3.", json_schema_extra={"unit": "1"})
    band_gap: Range | None = Field(default=None, description="Band gap.", json_schema_extra={"unit": "eV"})
    energy_above_hull: Range | None = Field(
        default=None, description="Energy above the hull.", json_schema_extra={"unit": "eV/atom"}
    )
    volume: Range | None = Field(default=None, description="Volume of the cell.", json_schema_extra={"unit": "Å³"})
    spacegroup_number: int | None = Field(default=None, ge=1, le=230, description="Space group.")
    is_stable: bool | None = Field(default=None, description="On the convex hull.")
    theoretical: bool | None = Field(default=None, description="Without an experimental structure.")

    def criteria(self) -> dict[str, Any]:
        """Return what mp-api's ``materials.summary.search`` takes."""
        given = self.model_dump(exclude_none=True)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


class MPDielectric(WebSource):
    """Documents of ``materials.dielectric`` with their structures, fetched by ids or a filter, or from a saved file.

    The tensors are symmetrized and in IEEE orientation; they are turned back to the frame of the structure, so that
    labels are the symmetrized tensors there.  The structure is that of the dielectric task where ``materials.tasks``
    has it, else that of the summary, if its volume is the document's.  Files are read as plain JSON: no class that
    they name is loaded.
    """

    type: Literal["mp_dielectric"] = "mp_dielectric"
    material_ids: tuple[str, ...] = Field(default=(), description="Ids, such as mp-149.")
    filter: MPFilter | None = Field(default=None, description="Which materials, in place of ids.")
    born_charges: tuple[Literal["tasks", "phonon"], ...] = Field(
        default=("tasks",),
        description="Where Born charges are looked for. 'tasks': the dielectric task, which also gives the structure; "
        "'phonon': phonon calculations, as frames of their own structure (PBEsol).",
    )
    batch: int = Field(default=100, ge=1, le=500, description="Ids of one request.", json_schema_extra={"unit": "1"})
    deprecated: bool = Field(default=False, description="Keep documents that are marked deprecated.")
    license: str = "CC-BY-4.0 (Materials Project)"
    reference: str = "Jain et al., APL Mater. 1, 011002 (2013); Petousis et al., Sci. Data 4, 160134 (2017)"

    @model_validator(mode="after")
    def _one_way(self) -> MPDielectric:
        has_filter = self.filter is not None and bool(self.filter.criteria())
        ways = [bool(self.path), bool(self.material_ids), has_filter]
        if sum(ways) != 1:
            found = "none" if not any(ways) else "several"
            raise ValueError(
                f"give material_ids, a filter, or path with saved answers (found {found} of them); "
                "the whole collection is never downloaded"
            )
        return self

    @property
    def service(self) -> str:
        """Address of the service."""
        return endpoint()

    def fetch(self, cache: AnswerCache, report: Progress) -> Path:
        """Fetch documents, structures and tasks, and write them to one file.

        Raises:
            SettingsError: If an id is none.
            ServiceError: If the service cannot be used.
            DataError: If no material has a dielectric document.
        """
        service = MaterialsProject(cache, self.batch)
        if self.filter is not None:
            asked = service.find(self.filter.criteria(), report)
        else:
            asked = list(identities(self.material_ids).values())
        asked = asked[: self.limit]
        documents = service.documents("dielectric", asked, report)
        if not documents:
            found = (
                f"none of {len(asked)} materials has a dielectric document" if asked else "nothing passes the filter"
            )
            raise DataError(f"Source {self.label!r}: {found}.", "Check the ids or the filter.")
        check_schema(documents, REQUIRED, "dielectric")
        ids = [str(item["material_id"]) for item in documents if item.get("material_id")]
        answers: dict[str, Any] = {"service": service.endpoint, "asked": asked, "dielectric": documents}
        answers["summary"] = service.documents("summary", ids, report)
        if self.deprecated:
            known = {identity(item["material_id"]) for item in answers["summary"]}
            rest = [name for name in ids if identity(name) not in known]
            answers["summary"] += service.documents("summary", rest, report, deprecated=True)
        answers["problems"] = self._fetch_more(service, answers, report)
        answers["db_versions"] = sorted(service.versions)
        return write_answers(cache.root / "sources", answers)

    def _fetch_more(self, service: MaterialsProject, answers: dict[str, Any], report: Progress) -> list[str]:
        """Add tasks and phonons to the answers; return why there are none, as these routes are not confirmed."""
        problems = []
        ids = {
            "tasks": [name for item in answers["dielectric"] if (name := origin_task(item)) is not None],
            "phonon": [name for item in answers["summary"] for name in _phonon_ids(item.get("phonon_IDs"))],
        }
        for route in self.born_charges:
            try:
                answers[route] = service.documents(route, _valid(ids[route]), report)
            except WrongAnswer as error:
                problems.append(f"materials.{route}: {error.message}")
        return problems

    def read(self, path: Path, base: Path | None = None) -> SourceData:
        """Return the labeled frames of all documents whose structure is at hand.

        Raises:
            DataError: If the file cannot be read, has no such answers, or answers of another schema.
            ConventionError: If the permittivities are implausible.
        """
        answers = _load(path)
        documents = list(islice(_entries(answers, "dielectric", path), self.limit))
        check_schema(documents, REQUIRED, "dielectric")
        summaries = _entries(answers, "summary", path)
        check_schema(summaries, ("material_id", "structure"), "summary")
        reader = FrameReader(summaries, _entries(answers, "tasks", path, optional=True), self.deprecated)
        raws, rejects = [], []
        made: list[tuple[int, RawFrame | Finding, Mapping[str, Any]]] = [
            (index, reader.dielectric(index, document), document) for index, document in enumerate(documents)
        ]
        for item in islice(_entries(answers, "phonon", path, optional=True), self.limit):
            found = reader.phonon(len(made), item)
            if found is not None:
                made.append((len(made), found, item))
        for index, found, origin in made:
            if isinstance(found, RawFrame):
                raws.append(found)
            else:
                rejects.append(self._reject(index, found, origin))
        if not raws:
            reason = rejects[0].findings[0].message if rejects else "it holds no document"
            raise DataError(f"Source {self.label!r}: no document of {path} can be used; of the first one: {reason}.")
        data = label_frames(self, raws, _rules(raws))
        data.n_frames = len(made)
        data.rejects.extend(rejects)
        data.flags |= reader.flags
        data.notes.extend(_notes(answers, documents, raws, reader.n_charges))
        known = {raw.index: raw.info for raw in raws}
        for frame in data.frames:
            info = known[frame.source_index]
            frame.extra.update({name: info[name] for name in KEPT_EXTRAS if name in info})
        return data

    def _reject(self, index: int, finding: Finding, document: Mapping[str, Any]) -> FrameFindings:
        formula = str(document.get("formula_pretty") or document.get("material_id") or document.get("identifier") or "")
        return FrameFindings(source=self.label, source_index=index, formula=formula, findings=[finding])


def _rules(raws: list[RawFrame]) -> dict[str, tuple[str, Convention]]:
    rules = {
        "polarizability": ("electronic", get_convention("polarizability", "permittivity")),
        "epsilon_ionic": ("ionic", get_convention("epsilon_ionic", "permittivity")),
    }
    if any("born" in raw.arrays for raw in raws):
        convention = get_convention("born_effective_charges", "polarization_displacement")
        rules["born_effective_charges"] = ("born", convention)
    return rules


def _notes(
    answers: Mapping[str, Any], documents: list[dict[str, Any]], raws: list[RawFrame], n_charges: int
) -> list[str]:
    """Return what was decided, for the manifest."""
    notes = ["tensors turned from IEEE orientation to the frame of the structure; they are symmetrized"]
    worst = max((raw.info.get("ieee_residual", 0.0) for raw in raws), default=0.0)
    notes.append(f"turned back, they are off their point groups by at most {worst:.2g}")
    for name in ("task", "summary", "phonon"):
        count = sum(raw.info.get("structure_from") == name for raw in raws)
        if count:
            notes.append(f"{count} structures from materials.{'tasks' if name == 'task' else name}")
    if n_charges:
        notes.append(f"{n_charges} frames with Born charges. {CHARGES_NOTE}")
    notes.extend(str(text) for text in answers.get("problems") or ())
    versions = answers.get("db_versions") or ()
    if versions:
        notes.append(f"database {', '.join(map(str, versions))}" + ("; refresh for one" if len(versions) > 1 else ""))
    if answers.get("asked"):
        have = {identity(name) for name in _valid([item.get("material_id") for item in documents])}
        without = [name for name in _valid(answers["asked"]) if identity(name) not in have]
        if without:
            more = f" and {len(without) - 20} more" if len(without) > 20 else ""
            notes.append(f"without a dielectric document: {', '.join(without[:20])}{more}")
    builders = [item.get("builder_meta") for item in documents]
    limited = sum(isinstance(item, Mapping) and item.get("license") == "BY-NC" for item in builders)
    if limited:
        notes.append(f"{limited} documents are licensed BY-NC, for uses that are not commercial")
    return notes


def _valid(names: Iterable[Any]) -> list[str]:
    """Return the ids among some values."""
    found = []
    for name in names:
        try:
            identity(name)
        except ValueError:
            continue
        found.append(str(name))
    return found


def _phonon_ids(methods: Any) -> list[Any]:
    """Return the ids of the phonon calculations of a summary: {method: [id, ...]}."""
    lists = methods.values() if isinstance(methods, Mapping) else ()
    return [name for names in lists if isinstance(names, list) for name in names]


def _load(path: Path) -> Mapping[str, Any]:
    try:
        with open_text(path) as handle:
            answers = json.load(handle)
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.", "Check the path and the environment variables in it.") from None
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(answers, dict):
        raise DataError(f"{path} holds no API answers, expected the keys dielectric and summary.")
    return answers


def _entries(answers: Mapping[str, Any], route: str, path: Path, optional: bool = False) -> list[dict[str, Any]]:
    """Return the documents of one route; an answer is a list or has it under ``data``."""
    for key in (f"GET /materials/{route}/", route):
        answer = answers.get(key)
        if isinstance(answer, dict):
            answer = answer.get("data")
        if isinstance(answer, list):
            return [item for item in answer if isinstance(item, dict)]
    if optional:
        return []
    raise DataError(f"{path} holds no {route} documents; it has {', '.join(map(str, answers)) or 'nothing'}.")
