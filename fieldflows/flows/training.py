"""Training as a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobflow import Job, Maker, OutputReference

from fieldflows import __version__
from fieldflows.errors import SettingsError
from fieldflows.jobs.training import train_model
from fieldflows.training.config import TrainingConfig


@dataclass
class TrainMaker(Maker):
    """Make the job that trains a model; its output is a :class:`~fieldflows.schemas.training.TrainingDocument`.

    The run lives in a directory of its own that does not depend on where the job is executed: a job that was killed
    is simply run again and goes on from the last state.

    Attributes:
        name: Name of the job.
        work_directory: Folder of run directories; must be the same for every attempt, on a file system that all
            workers see.  The run directory below it is named after the model and the settings.
        resources: Passed to the workflow manager as ``manager_config``: a jobflow-remote worker and its resources,
            or a FireWorks specification (``{"_fworker": "gpu"}``).
        figures: Draw learning curves and parity plots.

    Example:
        >>> maker = TrainMaker(work_directory="/tmp/runs")
        >>> job = maker.make({"dataset": {"config": "workflows/dataset_dielectric.yaml"}})
        >>> job.metadata["task"]
        'training'
    """

    name: str = "train"
    work_directory: str = "runs"
    resources: dict[str, Any] = field(default_factory=dict)
    figures: bool = True

    def make(
        self,
        config: TrainingConfig | Mapping[str, Any] | str | Path,
        dataset: str | Path | OutputReference | None = None,
    ) -> Job:
        """Return the job.

        Args:
            config: The configuration: an object, a dictionary, or a YAML file.
            dataset: Directory of a built dataset in place of the one in the configuration; may be the output of an
                earlier job.

        Raises:
            SettingsError: If the configuration is wrong, or the dataset that it names does not exist.
        """
        settings = _settings(config)
        if dataset is None:
            _check_dataset(settings)
        directory = Path(self.work_directory).expanduser().resolve() / f"{settings.model.name}-{settings.digest[:12]}"
        made = train_model(
            settings.model_dump(mode="json"),
            str(directory),
            dataset=str(Path(dataset).expanduser().resolve()) if isinstance(dataset, str | Path) else dataset,
            figures=self.figures,
        )
        made.name = f"{self.name} {settings.model.name}"
        made.update_metadata(
            {
                "task": "training",
                "model": settings.model.name,
                "configuration_digest": settings.digest,
                "labels": list(settings.loss.labels),
                "seed": settings.run.seed,
                "code_version": __version__,
            }
        )
        if self.resources:
            made.update_config({"manager_config": dict(self.resources)})
        return made


def _settings(config: TrainingConfig | Mapping[str, Any] | str | Path) -> TrainingConfig:
    if isinstance(config, TrainingConfig):
        return config.resolved(Path.cwd())
    if isinstance(config, str | Path):
        return TrainingConfig.from_yaml(config)
    return TrainingConfig.from_dict(dict(config)).resolved(Path.cwd())


def _check_dataset(settings: TrainingConfig) -> None:
    where = settings.dataset.path or settings.dataset.config
    if not Path(str(where)).exists():
        raise SettingsError(
            f"The dataset {where} of the training configuration does not exist.",
            "Build it first: `fieldflows dataset build CONFIG --out DIR`.",
        )
