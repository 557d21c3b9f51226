"""What is stored in place of a result that could not be computed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import ClassVar

from pydantic import Field

from fieldflows.errors import FieldflowsError
from fieldflows.schemas.common import Document, quantity


class FailureDocument(Document):
    """One structure that failed, while the others went on."""

    latest_version: ClassVar[int | None] = 1

    schema_version: int = quantity("1", "Version of this schema.", 1)
    stage: str = Field(description="Step that failed: 'read', 'plan', 'relax', 'evaluate' or 'analyse'.")
    error_type: str = Field(description="Class of the error.")
    message: str = Field(description="What was asked, what was found, what to do next.")
    source: str | None = Field(None, description="File or database entry that the structure came from.")
    index: int | None = quantity("1", "Position in the input, from 0.", None)
    formula: str | None = Field(None, description="Reduced formula, if it could be read.")
    material_id: str | None = Field(None, description="Identifier of the material, if one was given.")
    task: str | None = Field(None, description="Property that was asked for.")
    key: str | None = Field(None, description="Key that the document would have had.")
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC), description="Time of creation, UTC.")

    @classmethod
    def from_error(
        cls,
        error: Exception,
        stage: str,
        *,
        source: str | None = None,
        index: int | None = None,
        formula: str | None = None,
        material_id: str | None = None,
        task: str | None = None,
        key: str | None = None,
    ) -> FailureDocument:
        """Return the record of an exception; foreign exceptions keep their class name in the message."""
        text = str(error) or type(error).__name__
        message = text if isinstance(error, FieldflowsError) else f"{type(error).__name__}: {text}"
        return cls(
            stage=stage,
            error_type=type(error).__name__,
            message=message,
            source=source,
            index=index,
            formula=formula,
            material_id=material_id,
            task=task,
            key=key,
        )
