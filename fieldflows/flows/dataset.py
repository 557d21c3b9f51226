"""Building a dataset as a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobflow import Job, Maker

from fieldflows import __version__
from fieldflows.datasets.config import DatasetConfig
from fieldflows.errors import SettingsError
from fieldflows.jobs.dataset import make_dataset


@dataclass
class DatasetMaker(Maker):
    """Make the job that builds a dataset; its output is a :class:`~fieldflows.schemas.dataset.DatasetDocument`.

    The dataset is packed into one file, which goes to the additional store of the JobStore and is found again by the
    digest of the dataset.  The output as a whole is what :class:`~fieldflows.flows.training.TrainMaker` takes: it
    carries the dataset to workers that see neither the folder nor the database.

    Attributes:
        name: Name of the job.
        directory: Folder to write the dataset to as well, on the worker; None for no folder.
        resources: Passed to the workflow manager as ``manager_config``.

    Example:
        >>> job = DatasetMaker().make("workflows/dataset_dielectric.yaml")
        >>> job.metadata["task"]
        'dataset'
    """

    name: str = "dataset"
    directory: str | None = None
    resources: dict[str, Any] = field(default_factory=dict)

    def make(self, config: DatasetConfig | Mapping[str, Any] | str | Path) -> Job:
        """Return the job.

        Args:
            config: A configuration: an object, a dictionary or a YAML file; or the directory of a dataset that is
                built already.  Files that it names must be there on the worker that builds.

        Raises:
            SettingsError: If the configuration is wrong or not there.
            DataError: If a directory holds no dataset.
        """
        directory = None if self.directory is None else str(Path(self.directory).expanduser().resolve())
        path = Path(config).expanduser() if isinstance(config, str | Path) else None
        if path is not None and path.is_dir():
            from fieldflows.datasets.dataset import read_manifest

            title = read_manifest(path).name
            made = make_dataset(source=str(path.resolve()), directory=directory)
        else:
            settings = self._settings(config if path is None else path)
            title = settings.name
            base = None if settings.base is None else str(settings.base)
            made = make_dataset(settings.model_dump(mode="json"), base, directory=directory)
        made.name = f"{self.name} {title}"
        made.update_metadata({"task": "dataset", "dataset": title, "code_version": __version__})
        if self.resources:
            made.update_config({"manager_config": dict(self.resources)})
        return made

    @staticmethod
    def _settings(config: DatasetConfig | Mapping[str, Any] | Path | str) -> DatasetConfig:
        if isinstance(config, DatasetConfig):
            return config if config.base is not None else config.model_copy(update={"base": Path.cwd()})
        if isinstance(config, str | Path):
            if not Path(config).exists():
                raise SettingsError(
                    f"The dataset {config} does not exist.", "Give a YAML file, or the directory of a built dataset."
                )
            return DatasetConfig.from_yaml(config)
        return DatasetConfig.from_dict(dict(config), base=Path.cwd())
