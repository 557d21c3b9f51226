"""A model in a registry: what it is called, what it is, and where it came from."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

from pydantic import Field

from fieldflows.schemas.artifact import ArtifactReference
from fieldflows.schemas.common import Document, quantity

SCHEMA_VERSION = 1


class RegisteredModel(Document):
    """An entry of a registry.  All but name, version and file is what the checkpoint says about itself."""

    name: str = Field(description="Name under which it is registered.")
    version: int = quantity("1", "Version, from 1; the name alone stands for the largest.")
    sha256: str = Field(description="Hash of the file.")
    size: int = quantity("byte", "Size of the file.")
    file: str = Field(description="File, relative to the folder of the registry.")
    model_name: str = Field("", description="Name on the card of the model.")
    elements: tuple[str, ...] = Field((), description="Chemical symbols that it accepts.")
    trained_labels: tuple[str, ...] = Field((), description="Observables that it was trained on.")
    heads: tuple[str, ...] = Field((), description="Names of its heads; the first is the default.")
    cutoff: float | None = quantity("Å", "Interaction cut-off.", None)
    license: str = Field("", description="License of the weights.")
    dataset_digest: str | None = Field(None, description="Digest of the dataset that it was trained on.")
    metrics: dict[str, Any] = Field(
        default_factory=dict, description="Errors by subset and quantity, each with its unit."
    )
    registered_at: datetime = Field(default_factory=lambda: datetime.now(UTC), description="Time of registration, UTC.")

    @property
    def title(self) -> str:
        """Name and version, as :func:`fieldflows.load_model` takes them."""
        return f"{self.name}@{self.version}"


class ModelDocument(Document):
    """What the job that registers a model leaves behind: the end of the chain from dataset to model."""

    latest_version: ClassVar[int | None] = SCHEMA_VERSION

    schema_version: int = quantity("1", "Version of this schema.", SCHEMA_VERSION)
    task: Literal["model"] = Field("model", description="Name of the task.")
    model: RegisteredModel = Field(description="The entry in the registry of the machine that registered it.")
    registry: str = Field(description="Folder of that registry.")
    checkpoint: ArtifactReference = Field(description="The file, and where it can be had.")
    configuration_digest: str | None = Field(None, description="sha256 of the settings of the training.")
    dataset_digest: str | None = Field(None, description="sha256 of the labeled frames.")
    evaluations: dict[str, Any] = Field(
        default_factory=dict,
        description="Errors by head ('Default' without heads), subset and quantity, as the evaluations before the "
        "registration found them.",
    )
    code_version: str = Field(description="Version of fieldflows.")
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC), description="Time of creation, UTC.")
