"""The relaxation document: a crystal after its atoms and cell were relaxed, for whatever is computed next."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from fieldflows.schemas.common import Document, StructureField, quantity
from fieldflows.schemas.provenance import Provenance, Relaxation

SCHEMA_VERSION = 1


class RelaxationDocument(Document):
    """A relaxed crystal."""

    latest_version: ClassVar[int | None] = SCHEMA_VERSION

    schema_version: int = quantity("1", "Version of this schema.", SCHEMA_VERSION)
    task: Literal["relax"] = Field("relax", description="Name of the task.")
    key: str = Field(description="uuid5 of task, input structure, model, settings and schema version.")
    material_id: str | None = Field(None, description="Identifier of the material, if one was given.")
    source: str | None = Field(None, description="File or database entry that the structure came from.")
    formula_pretty: str = Field(description="Reduced formula.")
    chemsys: str = Field(description="Elements in alphabetical order, joined by dashes.")
    elements: tuple[str, ...] = Field(description="Elements in alphabetical order.")
    nelements: int = quantity("1", "Number of elements.")
    nsites: int = quantity("1", "Number of atoms in the cell.")
    volume: float = quantity("Å³", "Volume of the relaxed cell.")
    structure: StructureField = Field(description="The relaxed structure, atoms in the order of the input (pymatgen).")
    relaxation: Relaxation = Field(description="How it went.")
    provenance: Provenance = Field(description="Model, code, settings and time.")
