"""Jobs of a Matbench evaluation: one per fold, and one that makes the report of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobflow import JobConfig, job

from fieldflows.jobs.artifacts import job_artifacts, keep_file, open_dataset
from fieldflows.jobs.models import ModelReference
from fieldflows.schemas.matbench import FoldResult, MatbenchFoldDocument, MatbenchReport


@job(output_schema=MatbenchFoldDocument, config=JobConfig(expose_store=True))
def matbench_fold(
    file: str,
    fold: int,
    directory: str,
    settings: Mapping[str, Any],
    index: str | None = None,
    model: ModelReference | None = None,
    training: Mapping[str, Any] | None = None,
    dataset: Any = None,
    training_data: Any = None,
    dtype: str = "float64",
    device: str = "cpu",
) -> MatbenchFoldDocument:
    """Return the predictions for the rows of one fold, and what the models had seen of them.

    The state is in ``directory``.  A job that was killed is run again as it is and goes on there; one that is done
    is not repeated.

    Args:
        file: The Matbench file.
        fold: Number of the fold, from 0.
        directory: Folder of the folds; the same for every attempt.
        settings: :class:`~fieldflows.evaluation.matbench.settings.MatbenchSettings` in JSON types.
        index: For another file than the official one: CSV with the columns row and mbid.
        model: The fixed model.
        training: :class:`~fieldflows.training.config.TrainingConfig` of the model of the fold, in JSON types.
        dataset: What to train on: a folder, a YAML file, a digest, or the document of a dataset job.
        training_data: The same for what the fixed model was trained on, for the comparison of structures.
        dtype: ``"float64"`` or ``"float32"``, for models that are trained here.
        device: Torch device for these.

    Raises:
        DataError: If the file or a dataset cannot be read, or the fold has no rows.
        SettingsError: If something is missing that a mode needs, or a model has seen what it may not.
        TrainingError: If training was stopped.
    """
    from fieldflows.evaluation.matbench.files import read_task
    from fieldflows.evaluation.matbench.run import FoldTask, run_fold
    from fieldflows.evaluation.matbench.settings import MatbenchSettings
    from fieldflows.training.config import TrainingConfig

    entries, sha256 = read_task(file, index)
    with job_artifacts():
        task = FoldTask(
            entries=entries,
            file_sha256=sha256,
            fold=fold,
            settings=MatbenchSettings.of(**dict(settings)),
            model=None if model is None else model.open(),
            training=None if training is None else TrainingConfig.from_dict(dict(training)),
            dataset=None if dataset is None else open_dataset(dataset),
            training_data=None if training_data is None else open_dataset(training_data),
            dtype=dtype,
            device=device,
        )
        document = run_fold(task, directory)
    return document.model_copy(update={"results": tuple(_kept(item) for item in document.results)})


def _kept(result: FoldResult) -> FoldResult:
    """Return a result whose checkpoint is kept where its sha256 finds it, if it lies on this machine."""
    training = result.training
    if training is None or not Path(training.checkpoint).is_file():
        return result
    file = keep_file(training.checkpoint).without_content()
    return result.model_copy(update={"training": training.model_copy(update={"checkpoint_file": file})})


@job(output_schema=MatbenchReport, config=JobConfig(expose_store=True))
def matbench_report(
    folds: Sequence[Any],
    file: str,
    directory: str,
    index: str | None = None,
    published: str | None = None,
    worst: int = 20,
    figures: bool = True,
) -> MatbenchReport:
    """Return the report over the folds; it is also written into a folder.

    Args:
        folds: Documents of the fold jobs.
        file: The Matbench file.
        directory: Folder of the report.
        index: As for the folds.
        published: File of published predictions, which are scored on the same rows.
        worst: Rows with the largest errors to list.
        figures: Draw parity plots.

    Raises:
        DataError: If a file cannot be read, or is another one than that of the folds.
    """
    from fieldflows.errors import DataError
    from fieldflows.evaluation.matbench.files import read_task
    from fieldflows.evaluation.matbench.gather import gather
    from fieldflows.evaluation.matbench.published import read_predictions
    from fieldflows.evaluation.matbench.report import write_report

    documents = [
        item if isinstance(item, MatbenchFoldDocument) else MatbenchFoldDocument.from_json_dict(item) for item in folds
    ]
    entries, sha256 = read_task(file, index)
    if {document.file_sha256 for document in documents} != {sha256}:
        raise DataError(f"The folds were judged by another file than {file}.", "Run the folds again.")
    known = read_predictions(published) if published else None
    return write_report(gather(entries, documents, known, worst), entries, documents, directory, figures)
