"""The training job: one run in one directory that outlives the job."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobflow import JobConfig, job

from fieldflows.jobs.artifacts import is_digest, job_artifacts, keep_file, obtain
from fieldflows.jobs.processes import train_in_processes
from fieldflows.schemas.artifact import ArtifactReference
from fieldflows.schemas.training import TrainingDocument

if TYPE_CHECKING:
    from fieldflows.training.config import TrainingConfig

ONLY = "Default"
"""Stands for the head of a training without heads."""


@job(output_schema=TrainingDocument, config=JobConfig(expose_store=True))
def train_model(
    config: Mapping[str, Any],
    directory: str,
    dataset: Any = None,
    figures: bool = True,
    heads: Mapping[str, Any] | None = None,
    register: str | None = None,
    processes: int = 1,
) -> TrainingDocument:
    """Train a model and return the document of the run.

    The state of the run is in ``directory``.  A job that was killed is run again as it is and goes on there.  The
    checkpoint is kept on this machine and in the store of the job, where its sha256 finds it.

    Args:
        config: A :class:`~fieldflows.training.config.TrainingConfig` in JSON types.
        directory: The run directory; with datasets that come as documents, their digests are appended.
        dataset: In place of the dataset in the configuration: the document of the job that built it, a digest, or
            the directory of a built dataset.
        figures: Draw learning curves and parity plots.
        heads: The same by head.
        register: Name under which the model is registered on this machine.
        processes: Processes of this machine that train together, one for each GPU.

    Raises:
        TrainingError: If the run cannot go on, or was asked to stop.
        DataError: If a dataset is not where it should be, or is another one.
        ArtifactError: If a dataset cannot be fetched, or the checkpoint not be kept.
    """
    from fieldflows.training.config import TrainingConfig
    from fieldflows.training.document import training_document
    from fieldflows.training.loop import train

    started = datetime.now(UTC)
    settings = TrainingConfig.from_dict(dict(config), origin="the configuration of the training job")
    given = {**({} if dataset is None else {ONLY: dataset}), **dict(heads or {})}
    with job_artifacts():
        settings, archives = with_datasets(settings, given)
        if archives:
            directory = f"{directory}-{_mark(settings, archives)}"
        if processes > 1:
            train_in_processes(settings, directory, processes)
        # after several processes the run is at its end, and what is left is the report
        document = training_document(settings, train(settings, directory, figures=figures))
    updates: dict[str, Any] = {
        "checkpoint_file": keep_file(document.checkpoint),
        "datasets": {head: archive.without_content() for head, archive in archives.items()},
        "started_at": started,
    }
    if register is not None:
        from fieldflows.models.find import registry

        updates["registered"] = registry().register(document.checkpoint, register, new_version=True).title
    return document.model_copy(update=updates)


def with_datasets(
    config: TrainingConfig, given: Mapping[str, Any]
) -> tuple[TrainingConfig, dict[str, ArtifactReference]]:
    """Return a configuration with the datasets that were given, and the archives of those that came as documents.

    Documents become digests; their files are had and kept on this machine, so that all processes of the run find
    them.

    Args:
        config: The configuration.
        given: Head, or "Default" without heads, to a document, a digest or a directory.

    Raises:
        SettingsError: If the configuration has no such head.
        ArtifactError: If a file can be had nowhere, or is damaged.
    """
    from fieldflows import artifacts
    from fieldflows.datasets.archive import dataset_label
    from fieldflows.errors import SettingsError, suggestion

    archives: dict[str, ArtifactReference] = {}
    for head, value in given.items():
        if isinstance(value, str | Path):
            place = {"digest": str(value)} if is_digest(value) else {"path": str(value)}
        else:
            document = value if isinstance(value, Mapping) else value.model_dump()
            if "digest" not in document or "archive" not in document:
                raise SettingsError(f"A dataset is the document of one, found {type(value).__name__}.")
            archive = ArtifactReference.from_json_dict(document["archive"])
            obtain(archive)
            artifacts.local().label(dataset_label(document["digest"]), archive.sha256)
            archives[head], place = archive, {"digest": str(document["digest"])}
        if head == ONLY and config.dataset is not None:
            config = config.model_copy(update={"dataset": _placed(config.dataset, place)})
        elif head in config.heads and config.heads[head].dataset is not None:
            section = config.heads[head].model_copy(update={"dataset": _placed(config.heads[head].dataset, place)})
            config = config.model_copy(update={"heads": {**config.heads, head: section}})
        else:
            known = list(config.heads) or ["dataset"]
            raise SettingsError(f"The configuration has no dataset of a head {head!r}.", suggestion(head, known))
    return config, archives


def _placed(section: Any, place: Mapping[str, str]) -> Any:
    return section.model_copy(update={"path": None, "config": None, "digest": None, **place})


def _mark(config: TrainingConfig, archives: Mapping[str, ArtifactReference]) -> str:
    """Return eight digits that stand for the datasets, so that each has a run directory of its own."""
    digests = []
    for head in sorted(archives):
        section = config.dataset if head == ONLY else config.heads[head].dataset
        digests.append(str(getattr(section, "digest", "")))
    return digests[0][:8] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()[:8]
