"""The evaluation job: one model against the labels of one dataset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobflow import job

from fieldflows.errors import CheckpointError, SettingsError
from fieldflows.schemas.evaluation import EvaluationDocument

DIRECTORY = "evaluation"
"""Folder of the report where none is given, in the directory that the job runs in."""


@job(output_schema=EvaluationDocument)
def evaluate_model(
    model: str | Mapping[str, Any],
    dataset: str | Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    figures: bool = True,
    directory: str | None = None,
    dtype: str = "float64",
    device: str = "cpu",
    sha256: str | None = None,
) -> EvaluationDocument:
    """Compare a model with a dataset, write the report, and return the document of it.

    Args:
        model: Name, path or ``sha256:...`` of a model, or the document of the training that made it.
        dataset: Directory of a built dataset or YAML file, or a document that names its ``directory``.
        settings: :class:`~fieldflows.evaluation.settings.EvaluationSettings` in JSON types.
        figures: Draw figures.
        directory: Folder of the report; ``evaluation`` in the directory of the job if None.
        dtype: ``"float64"`` or ``"float32"``.
        device: Torch device.
        sha256: Hash that the model must have.

    Raises:
        CheckpointError: If there is no such model, or it is another one than when the flow was built.
        DataError: If there is no such dataset.
        EvaluationError: If nothing can be compared.
    """
    from fieldflows.backends.base import load_model
    from fieldflows.evaluation.run import evaluate, open_dataset
    from fieldflows.evaluation.settings import EvaluationSettings

    name = model_name(model)
    loaded = load_model(name, dtype=dtype, device=device)
    if sha256 is not None and loaded.info.sha256 != sha256:
        raise CheckpointError(
            f"Model {name!r} has sha256 {loaded.info.sha256[:12]}…, but the job was made for {sha256[:12]}….",
            "Make the job again, or put the former file back.",
        )
    chosen = EvaluationSettings.of(**dict(settings or {}))
    data = open_dataset(dataset_path(dataset))
    return evaluate(loaded, data, chosen, directory or DIRECTORY, figures).document


def model_name(value: str | Mapping[str, Any] | Any) -> str:
    """Return the name of a model: as given, or the checkpoint of a training document, by its hash if it was moved.

    Raises:
        SettingsError: If it is neither.
    """
    if isinstance(value, str | Path):
        return str(value)
    path, digest = _get(value, "checkpoint"), _get(value, "checkpoint_sha256")
    if path and Path(str(path)).is_file():
        return str(path)
    if digest:
        return f"sha256:{digest}"
    if path:
        return str(path)
    raise SettingsError(
        f"A model is a name, a path or a training document with `checkpoint`, found {type(value).__name__}."
    )


def dataset_path(value: str | Mapping[str, Any] | Any) -> str:
    """Return where a dataset is: as given, or the directory that a document names.

    Raises:
        SettingsError: If it is neither.
    """
    if isinstance(value, str | Path):
        return str(value)
    for key in ("directory", "path", "uri"):
        if found := _get(value, key):
            return str(found)
    raise SettingsError(f"A dataset is a path or a document that names its directory, found {type(value).__name__}.")


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
