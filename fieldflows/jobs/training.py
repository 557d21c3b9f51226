"""The training job: one run in one directory that outlives the job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobflow import job

from fieldflows.schemas.training import TrainingDocument


@job(output_schema=TrainingDocument)
def train_model(
    config: Mapping[str, Any], directory: str, dataset: str | None = None, figures: bool = True
) -> TrainingDocument:
    """Train a model and return the document of the run.

    The state of the run is in ``directory``.  A job that was killed is run again as it is and goes on there.

    Args:
        config: A :class:`~fieldflows.training.config.TrainingConfig` in JSON types.
        directory: The run directory.
        dataset: Directory of a built dataset, in place of the one in the configuration.
        figures: Draw learning curves and parity plots.

    Raises:
        TrainingError: If the run cannot go on, or was asked to stop.
    """
    from fieldflows.training.config import TrainingConfig
    from fieldflows.training.document import training_document
    from fieldflows.training.loop import train

    settings = TrainingConfig.from_dict(dict(config), origin="the configuration of the training job")
    if dataset is not None:
        settings = settings.model_copy(
            update={"dataset": settings.dataset.model_copy(update={"path": dataset, "config": None})}
        )
    return training_document(settings, train(settings, directory, figures=figures))
