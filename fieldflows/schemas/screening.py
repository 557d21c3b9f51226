"""What a screening job leaves behind: the results and the failures of one chunk of structures."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from fieldflows.schemas.common import Document, quantity
from fieldflows.schemas.dielectric import DielectricDocument
from fieldflows.schemas.failure import FailureDocument
from fieldflows.schemas.provenance import ModelCard

SCHEMA_VERSION = 1


class HessianRecord(Document):
    """The Hessian of one structure; kept in the store for large arrays."""

    key: str = Field(description="Key of the result that it belongs to.")
    hessian: tuple[tuple[float, ...], ...] = quantity("eV/Å²", "∂²F/∂u∂u at Γ, ordered atom by atom, x, y, z.")
    atoms: tuple[int, ...] | None = Field(
        None, description="Atoms of the result's `structure` that it is of, those of the primitive cell; None: all."
    )


class ScreeningDocument(Document):
    """Results and failures of one chunk; every structure that came in is counted exactly once."""

    latest_version: ClassVar[int | None] = SCHEMA_VERSION

    schema_version: int = quantity("1", "Version of this schema.", SCHEMA_VERSION)
    task: Literal["screening"] = Field("screening", description="Name of the task.")
    results: tuple[DielectricDocument, ...] = Field(description="One document per distinct structure.")
    failures: tuple[FailureDocument, ...] = Field((), description="What could not be computed, and why.")
    hessians: tuple[HessianRecord, ...] = Field((), description="Hessians of newly computed structures, if asked for.")
    n_structures: int = quantity("1", "Structures that came in.")
    n_computed: int = quantity("1", "Distinct structures computed now.")
    n_reused: int = quantity("1", "Distinct structures whose result was in the store already.")
    n_duplicates: int = quantity("1", "Structures that were equal to an earlier one of the chunk.")
    model: ModelCard = Field(description="The model of the field response.")
    hessian_model: ModelCard | None = Field(None, description="The separate model of forces and Hessian.")
    code_version: str = Field(description="Version of fieldflows.")
