"""What a training job leaves behind: settings, errors, curves and where the model is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

from pydantic import Field

from fieldflows.schemas.artifact import ArtifactReference
from fieldflows.schemas.common import Document, quantity

SCHEMA_VERSION = 2
"""Version 2 added `checkpoint_file`, `datasets`, `registered` and `started_at`."""


class Errors(Document):
    """Errors of one quantity over one subset, in the unit that is named."""

    unit: str = Field(description="Unit of `mae` and `rmse`.")
    mae: float = quantity("see `unit`", "Mean absolute error.")
    rmse: float = quantity("see `unit`", "Root mean square error.")
    r2: float | None = quantity("1", "Coefficient of determination; null if the labels do not vary.", None)
    count: int = quantity("1", "Number of components compared.")


class CurvePoint(Document):
    """One evaluation during the run."""

    epoch: float = quantity("1", "Epochs done.")
    step: int = quantity("1", "Optimizer steps done.")
    seconds: float = quantity("s", "Wall time of training so far.")
    learning_rate: float = quantity("1", "Learning rate of the last step.")
    train: dict[str, float] = Field(description="Mean loss of the epoch, total and weighted parts by observable.")
    valid: dict[str, float] = Field(description="Loss on the validation frames, total and weighted parts.")
    metrics: dict[str, Errors] = Field(description="Errors on the validation frames by quantity.")
    score: float = quantity("1", "What decides which weights are kept: the validation loss.")


class Hardware(Document):
    """What a run was made on."""

    device: str = Field(description="Torch device.")
    accelerator: str | None = Field(None, description="Name of the GPU.")
    machine: str = Field(description="Architecture of the processor.")
    processors: int = quantity("1", "Processor cores that the operating system shows.")
    threads: int = quantity("1", "Threads that torch used.")
    software: dict[str, str] = Field(description="Versions of Python and packages.")


class TrainingDocument(Document):
    """A trained model with everything that is needed to train it again."""

    latest_version: ClassVar[int | None] = SCHEMA_VERSION

    schema_version: int = quantity("1", "Version of this schema.", SCHEMA_VERSION)
    task: Literal["training"] = Field("training", description="Name of the task.")
    name: str = Field(description="Name of the model.")
    checkpoint: str = Field(description="Path of the checkpoint on the machine that trained it.")
    checkpoint_sha256: str = Field(description="Hash of the checkpoint.")
    checkpoint_file: ArtifactReference | None = Field(
        None, description="Where the checkpoint can be had from any machine; null in documents of version 1."
    )
    registered: str | None = Field(
        None, description="Name and version in the registry of the machine that trained it, if it was registered there."
    )
    directory: str = Field(description="Run directory, with log, figures and draft of the model card.")
    trained_labels: tuple[str, ...] = Field(description="Observables that the weights were trained on.")
    elements: tuple[str, ...] = Field(description="Chemical symbols that the model accepts.")
    configuration: dict[str, Any] = Field(description="The configuration, defaults included.")
    configuration_digest: str = Field(description="sha256 of the settings that decide the result.")
    dataset_digest: str = Field(description="sha256 of the labeled frames.")
    datasets: dict[str, ArtifactReference] = Field(
        default_factory=dict,
        description="Packed datasets that came from earlier jobs, by head ('Default' without heads), without content.",
    )
    frames: dict[str, int] = Field(description="Number of frames by subset.")
    status: Literal["epochs", "time", "patience"] = Field(description="Why the run ended.")
    epochs: int = quantity("1", "Complete epochs.")
    steps: int = quantity("1", "Optimizer steps.")
    wall_time: float = quantity("s", "Wall time of training, summed over resumed runs.")
    seed: int = quantity("1", "Seed of weights, order and random directions.")
    best_epoch: float | None = quantity("1", "Epoch whose weights were kept.", None)
    best_score: float | None = quantity("1", "Validation loss of these weights.", None)
    metrics: dict[str, dict[str, Errors]] = Field(description="Errors by subset and quantity.")
    trivial_metrics: dict[str, dict[str, Errors]] = Field(
        description="The same of medians of the training labels, which know no structure."
    )
    curves: tuple[CurvePoint, ...] = Field(description="Evaluations during the run.")
    hardware: Hardware = Field(description="What it was made on.")
    code_version: str = Field(description="Version of fieldflows.")
    started_at: datetime | None = Field(
        None, description="Start of the job that finished the run, UTC; null in documents of version 1."
    )
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC), description="Time of creation, UTC.")
