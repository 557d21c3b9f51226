"""The evaluation job: one model against the labels of one dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobflow import JobConfig, job

from fieldflows.errors import SettingsError
from fieldflows.jobs.artifacts import job_artifacts, obtain, open_dataset
from fieldflows.jobs.models import ModelReference
from fieldflows.schemas.evaluation import EvaluationDocument

if TYPE_CHECKING:
    from fieldflows.backends.base import FieldModel

DIRECTORY = "evaluation"
"""Folder of the report where none is given, in the directory that the job runs in."""


@job(output_schema=EvaluationDocument, config=JobConfig(expose_store=True))
def evaluate_model(
    model: Any,
    dataset: Any,
    settings: Mapping[str, Any] | None = None,
    figures: bool = True,
    directory: str | None = None,
    dtype: str = "float64",
    device: str = "cpu",
    head: str | None = None,
) -> EvaluationDocument:
    """Compare a model with a dataset, write the report, and return the document of it.

    Args:
        model: Name, path or ``sha256:...`` of a model, a :class:`~fieldflows.jobs.models.ModelReference`, or the
            document of the training that made it.
        dataset: Directory of a built dataset, YAML file, digest, or the document of the job that built it.
        settings: :class:`~fieldflows.evaluation.settings.EvaluationSettings` in JSON types.
        figures: Draw figures.
        directory: Folder of the report; ``evaluation`` in the directory of the job if None.
        dtype: ``"float64"`` or ``"float32"``.
        device: Torch device.
        head: Head of a model with several; by default that which a frame names, or the first.

    Raises:
        CheckpointError: If there is no such model, or it is another one than when the flow was built.
        DataError: If there is no such dataset.
        ArtifactError: If one of them can be had nowhere, or is damaged.
        EvaluationError: If nothing can be compared.
    """
    from fieldflows.evaluation.run import evaluate
    from fieldflows.evaluation.settings import EvaluationSettings

    chosen = EvaluationSettings.of(**dict(settings or {}))
    with job_artifacts():
        open_head = model_opener(model, dtype, device)
        loaded, data = open_head(head), open_dataset(dataset)
        others = None if head else open_head
        return evaluate(loaded, data, chosen, directory or DIRECTORY, figures, open_head=others).document


def model_opener(model: Any, dtype: str = "float64", device: str = "cpu") -> Callable[[str | None], FieldModel]:
    """Return a function that opens a model with the head of a name, or its first for None.

    Args:
        model: Name, path, reference, or the document of a training or its dictionary.
        dtype: ``"float64"`` or ``"float32"``.
        device: Torch device.

    Raises:
        SettingsError: If it is none of these.
        ArtifactError: If the checkpoint of a training can be had nowhere, or is damaged.
    """
    from fieldflows.backends.base import load_model

    if isinstance(model, ModelReference):
        name, sha256 = model.name, model.sha256
    elif isinstance(model, str | Path):
        return lambda head: load_model(str(model), head=head, dtype=dtype, device=device)
    else:
        name, sha256 = _checkpoint(model)
    return lambda head: ModelReference(name, sha256, dtype, device, head).open()


def _checkpoint(training: Any) -> tuple[str, str]:
    """Return the path of the checkpoint of a training, fetched if need be, and its sha256."""
    path, sha256, file = (_get(training, key) for key in ("checkpoint", "checkpoint_sha256", "checkpoint_file"))
    if not path or not sha256:
        raise SettingsError(
            f"A model is a name, a path or the document of a training, found {type(training).__name__}.",
            "Pass the output of a training job, or its `checkpoint`.",
        )
    if file is not None and not Path(str(path)).is_file():
        path = obtain(file)
    return str(path), str(sha256)


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
