"""What is stored in place of a result that could not be computed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

from pydantic import Field, model_validator
from pymatgen.core import Lattice, Structure

from fieldflows.errors import FieldflowsError
from fieldflows.schemas.common import Document, StructureField, quantity, structure_from_dict, structure_to_dict
from fieldflows.schemas.identity import failure_key

SCHEMA_VERSION = 2

PASSING_ERRORS = frozenset(
    {"MemoryError", "OutOfMemoryError", "OSError", "BrokenExecutor", "ConnectionFailure", "StoreError", "Unreachable"}
)
"""Names of the classes of errors that may be gone when a structure is tried again: memory, files, workers, services.

``OutOfMemoryError`` is torch's, ``BrokenExecutor`` what a lost worker leaves, ``ConnectionFailure`` pymongo's.
"""

_SUBJECT = ("key", "source", "index", "material_id", "formula", "task", "extent")


class FailureDocument(Document):
    """One structure that failed, while the others went on."""

    latest_version: ClassVar[int | None] = SCHEMA_VERSION

    schema_version: int = quantity("1", "Version of this schema.", SCHEMA_VERSION)
    failure_key: str = Field("", description="Deterministic key of what failed; given by the fields that name it.")
    stage: str = Field(description="Step that failed: 'read', 'plan', 'relax', 'evaluate' or 'analyse'.")
    error_type: str = Field(description="Class of the error.")
    message: str = Field(description="What was asked, what was found, what to do next.")
    transient: bool = Field(False, description="Whether it might pass when tried again, as it is.")
    source: str | None = Field(None, description="File or database entry that the structure came from.")
    index: int | None = quantity("1", "Position in the input, from 0.", None)
    formula: str | None = Field(None, description="Reduced formula, if it could be read.")
    material_id: str | None = Field(None, description="Identifier of the material, if one was given.")
    task: str | None = Field(None, description="Property that was asked for.")
    extent: str | None = Field(None, description="Part of the task, such as 'electronic' or 'ionic'; None: all.")
    key: str | None = Field(None, description="Key that the document would have had.")
    structure: StructureField | None = Field(None, description="The structure as given, if it could be read.")
    campaign: str | None = Field(None, description="Campaign that it belongs to.")
    attempts: int = quantity("1", "How often it was tried.", 1, ge=1)
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC), description="Time of creation, UTC.")

    @model_validator(mode="before")
    @classmethod
    def _with_failure_key(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("failure_key"):
            return data
        try:
            return {**data, "failure_key": failure_key(**{name: data.get(name) for name in _SUBJECT})}
        except TypeError:  # no JSON types: what is wrong with them is said by the fields
            return data

    @classmethod
    def from_error(
        cls,
        error: BaseException,
        stage: str,
        *,
        source: str | None = None,
        index: int | None = None,
        formula: str | None = None,
        material_id: str | None = None,
        task: str | None = None,
        key: str | None = None,
        extent: str | None = None,
        structure: Any = None,
        campaign: str | None = None,
    ) -> FailureDocument:
        """Return the record of an exception; foreign exceptions keep their class name in the message.

        Args:
            error: The exception.
            stage: Step that failed.
            source: File or database entry that the structure came from.
            index: Position in the input, from 0.
            formula: Reduced formula, if it could be read.
            material_id: Identifier of the material.
            task: Property that was asked for.
            key: Key that the document would have had.
            extent: Part of the task, such as "electronic".
            structure: The crystal as given; left out if it cannot be stored.
            campaign: Campaign that it belongs to.
        """
        text = str(error) or type(error).__name__
        message = text if isinstance(error, FieldflowsError) else f"{type(error).__name__}: {text}"
        return cls(
            stage=stage,
            error_type=type(error).__name__,
            message=message,
            transient=is_transient(error),
            source=source,
            index=index,
            formula=formula,
            material_id=material_id,
            task=task,
            extent=extent,
            key=key,
            structure=_storable(structure),
            campaign=campaign,
        )


def is_transient(error: BaseException) -> bool:
    """Return whether an error might be gone when the same is tried again: by its class, and that of its cause.

    Out of memory, files that cannot be read or written, lost workers, stores and services that do not answer; all
    others stay.  The cause counts where a computation failed without saying more.

    Example:
        >>> is_transient(MemoryError()), is_transient(ValueError("negative volume"))
        (True, False)
    """
    names = {base.__name__ for base in type(error).__mro__}
    if names & PASSING_ERRORS:
        return True
    return "EvaluationError" in names and error.__cause__ is not None and is_transient(error.__cause__)


def _storable(structure: Any) -> Structure | None:
    from fieldflows.structures import as_atoms

    if structure is None:
        return None
    try:
        if not isinstance(structure, Structure):
            # not as_structure(), which refuses what cannot be computed
            atoms = as_atoms(structure)
            positions = atoms.get_scaled_positions(wrap=False)
            structure = Structure(Lattice(atoms.cell[:]), list(atoms.symbols), positions)
        return structure_from_dict(structure_to_dict(structure))
    except Exception:  # the structure may be what is broken
        return None
