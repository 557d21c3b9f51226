"""The job at the end of the chain: a checkpoint gets a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobflow import JobConfig, job

from fieldflows import __version__, artifacts
from fieldflows.errors import SettingsError
from fieldflows.jobs.artifacts import keep_file, obtain
from fieldflows.schemas.artifact import ArtifactReference
from fieldflows.schemas.model import ModelDocument


@job(output_schema=ModelDocument, config=JobConfig(expose_store=True))
def register_model(training: Any, name: str, evaluations: Mapping[str, Any] | None = None) -> ModelDocument:
    """Register the checkpoint of a training on this machine and in the store of the job.

    On this machine :func:`fieldflows.load_model` then takes the name; elsewhere ``fieldflows model fetch NAME --store
    STORE`` gets it from the store.  A name that another model has gets a new version.

    Args:
        training: The document of the training, or its dictionary.
        name: Name to register under.
        evaluations: Documents of evaluations by head, whose errors are repeated.

    Raises:
        ArtifactError: If the checkpoint can be had nowhere, or is damaged.
        CheckpointError: If it cannot be loaded.
        SettingsError: If the name cannot be used.
    """
    from fieldflows.backends.base import load_model
    from fieldflows.models.find import model_label, registry

    reference = _reference(training)
    path = obtain(reference)
    load_model(path)
    own = registry()
    entry = own.register(path, name, new_version=True)
    labels = (model_label(name), model_label(entry.title))
    kept = keep_file(path, labels, reference.name)
    return ModelDocument(
        model=entry,
        registry=str(own.folder),
        checkpoint=kept,
        configuration_digest=_get(training, "configuration_digest"),
        dataset_digest=_get(training, "dataset_digest"),
        evaluations={head: _errors(document) for head, document in (evaluations or {}).items()},
        code_version=__version__,
    )


def _reference(training: Any) -> ArtifactReference:
    """Return where the checkpoint of a training is; documents of the first version have its path alone."""
    reference = _get(training, "checkpoint_file")
    if isinstance(reference, ArtifactReference):
        return reference
    if reference is not None:
        return ArtifactReference.from_json_dict(reference)
    path, sha256 = _get(training, "checkpoint"), _get(training, "checkpoint_sha256")
    if not path or not sha256:
        raise SettingsError(f"A model is registered from the document of a training, found {type(training).__name__}.")
    artifacts.local().put(path)
    return ArtifactReference(sha256=sha256, size=0, name="model.safetensors")


def _errors(evaluation: Any) -> dict[str, Any]:
    """Return MAE, RMSE, R² and unit by subset and quantity."""
    found: dict[str, Any] = {}
    for split, subset in (_get(evaluation, "subsets") or {}).items():
        rows = found[split] = {}
        for key, row in _get(subset, "quantities").items():
            own = _get(row, "model")
            rows[key] = {"unit": _get(row, "unit"), **{name: _get(own, name) for name in ("mae", "rmse", "r2")}}
    return found


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
