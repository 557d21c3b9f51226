"""Where a result comes from: model, code, settings, machine precision and time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from fieldflows.schemas.common import Document, quantity


class ModelCard(Document):
    """The facts about a model that a result keeps."""

    name: str = Field(description="Short name.")
    sha256: str = Field(description="Hash of the checkpoint.")
    backend: str = Field(description="Backend that evaluated it.")
    trained_labels: tuple[str, ...] = Field(description="Observables that it was trained on.")
    dtype: str = Field(description="Floating point type of the evaluation.")
    device: str = Field("cpu", description="Device of the evaluation.")
    license: str = Field("", description="License of the weights.")


class Provenance(Document):
    """Everything needed to compute a result again."""

    model: ModelCard = Field(description="The model of the field response.")
    hessian_model: ModelCard | None = Field(
        None, description="The model of forces and Hessian, if it is another one than `model`."
    )
    code_version: str = Field(description="Version of fieldflows.")
    settings: dict[str, Any] = Field(description="All settings of the property, defaults included.")
    settings_hash: str = Field(description="sha256 of the settings and of the Hessian model.")
    structure_hash: str = Field(description="sha256 of the structure that was computed.")
    input_structure_hash: str = Field(description="sha256 of the structure as given, before any relaxation.")
    seed: int | None = quantity("1", "Seed of the random numbers, if any were drawn.", None)
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC), description="Time of creation, UTC.")


class Relaxation(Document):
    """How the structure was relaxed before the property was computed."""

    model: ModelCard = Field(description="The model whose forces were followed.")
    converged: bool = Field(description="Whether the force threshold was reached.")
    n_steps: int = quantity("1", "Steps taken.")
    force_threshold: float = quantity("eV/Å", "Largest force allowed.")
    max_force: float | None = quantity("eV/Å", "Largest force left.", None)
    relax_cell: bool = Field(description="Whether the cell was free to change.")
    volume_change: float | None = quantity("1", "Relative change of volume.", None)
    energy_change: float | None = quantity("eV", "Change of energy.", None)
