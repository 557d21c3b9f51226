"""Training as a job, and from labels to a registered model as a flow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from jobflow import Flow, Job, Maker, OutputReference

from fieldflows import __version__
from fieldflows.errors import SettingsError, suggestion
from fieldflows.flows.dataset import DatasetMaker
from fieldflows.flows.evaluation import EvaluateMaker
from fieldflows.jobs.artifacts import is_digest
from fieldflows.jobs.registration import register_model
from fieldflows.jobs.training import ONLY, train_model
from fieldflows.training.config import TrainingConfig

ConfigLike: TypeAlias = TrainingConfig | Mapping[str, Any] | str | Path
DatasetLike: TypeAlias = str | Path | OutputReference


@dataclass
class TrainMaker(Maker):
    """Make the job that trains a model; its output is a :class:`~fieldflows.schemas.training.TrainingDocument`.

    The run lives in a directory of its own that does not depend on where the job is executed: a job that was killed
    is simply run again and goes on from the last state.  :class:`TrainingFlowMaker` puts the other jobs around it.

    Attributes:
        name: Name of the job.
        work_directory: Folder of run directories; must be the same for every attempt, on a file system that all
            workers see.  The run directory below it is named after the model and the settings.
        resources: Passed to the workflow manager as ``manager_config``: a jobflow-remote worker and its resources,
            or a FireWorks specification (``{"_fworker": "gpu"}``).
        figures: Draw learning curves and parity plots.
        register: Name under which the model is registered on the machine that trained it; None for none.
        processes: Processes that train together on the worker, one for each of its GPUs.

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
    register: str | None = None
    processes: int = 1

    def make(
        self,
        config: ConfigLike,
        dataset: DatasetLike | None = None,
        heads: Mapping[str, DatasetLike] | None = None,
    ) -> Job:
        """Return the job.

        Args:
            config: The configuration: an object, a dictionary, or a YAML file.
            dataset: In place of the dataset in the configuration: the output of a job of
                :class:`~fieldflows.flows.dataset.DatasetMaker`, a digest, or the directory of a built dataset.
            heads: The same by head.

        Raises:
            SettingsError: If the configuration is wrong, or a dataset that it names does not exist.
        """
        settings = training_settings(config)
        given = {**({} if dataset is None else {ONLY: dataset}), **dict(heads or {})}
        _check_datasets(settings, given)
        if self.register is not None:
            _check_name(self.register)
        if self.processes < 1:
            raise SettingsError(f"processes must be 1 or more, found {self.processes}.")
        directory = Path(self.work_directory).expanduser().resolve() / f"{settings.model.name}-{settings.digest[:12]}"
        made = train_model(
            settings.model_dump(mode="json"),
            str(directory),
            dataset=None if dataset is None else _place(dataset),
            figures=self.figures,
            heads={head: _place(value) for head, value in heads.items()} if heads else None,
            register=self.register,
            processes=self.processes,
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


@dataclass
class TrainingFlowMaker(Maker):
    """Make the flow from labels to a registered model: datasets, training, evaluation, registration.

    The jobs hand on documents that say where the packed dataset and the checkpoint are (in the additional store of the
    JobStore), so each may run on another worker.  The output of the flow is the
    :class:`~fieldflows.schemas.model.ModelDocument` of the registration, or, without one, that of the training.

    Attributes:
        name: Name of the flow.
        dataset: Maker of the jobs that build datasets.
        training: Maker of the training job; its ``resources`` may ask for a GPU while the other jobs stay light.
        evaluation: Maker of the evaluation job; None for no evaluation.
        register: Name under which the model is registered; None leaves that out, "" takes the name of the model.
        resources: Passed to the workflow manager as ``manager_config`` for the registration.

    Example:
        >>> maker = TrainingFlowMaker(training=TrainMaker(resources={"_fworker": "gpu"}))
        >>> flow = maker.make({"dataset": {"config": "workflows/dataset_dielectric.yaml"}, "model": {"name": "oxides"}})
        >>> ", ".join(job.metadata["task"] for job in flow.jobs)
        'dataset, training, evaluation, registration'
    """

    name: str = "training"
    dataset: DatasetMaker = field(default_factory=DatasetMaker)
    training: TrainMaker = field(default_factory=TrainMaker)
    evaluation: EvaluateMaker | None = field(default_factory=EvaluateMaker)
    register: str | None = ""
    resources: dict[str, Any] = field(default_factory=dict)

    def make(self, config: ConfigLike, dataset: DatasetLike | None = None) -> Flow:
        """Return the flow.

        Args:
            config: The configuration of the training: an object, a dictionary, or a YAML file.  Datasets that it
                names by path or YAML file are built and packed by jobs of their own; those that it names by digest
                are found where the training runs.
            dataset: In place of the dataset in the configuration: a YAML file that describes one, a directory, a
                digest, or the output of a job.

        Raises:
            SettingsError: If a configuration is wrong, a dataset does not exist, or the name cannot be registered.
        """
        settings = training_settings(config)
        name = settings.model.name if self.register == "" else self.register
        if name is not None:
            _check_name(name)
        jobs, sources = self._datasets(settings, dataset)
        heads = {head: source for head, source in sources.items() if head != ONLY}
        training = self.training.make(settings, sources.get(ONLY), heads or None)
        jobs.append(training)
        evaluations = self._evaluations(training, settings, sources)
        jobs.extend(evaluations.values())
        output = training.output
        if name is not None:
            last = register_model(training.output, name, {head: made.output for head, made in evaluations.items()})
            last.name = f"register {name}"
            last.update_metadata({"task": "registration", "model": name, "code_version": __version__})
            if self.resources:
                last.update_config({"manager_config": dict(self.resources)})
            jobs.append(last)
            output = last.output
        return Flow(jobs, output=output, name=f"{self.name} {settings.model.name}")

    def _datasets(
        self, settings: TrainingConfig, dataset: DatasetLike | None
    ) -> tuple[list[Job | Flow], dict[str, DatasetLike]]:
        """Return the jobs that build datasets, and where the dataset of each head comes from."""
        wanted: dict[str, Any] = {}
        if dataset is not None:
            wanted[ONLY] = dataset
        elif settings.dataset is not None:
            wanted[ONLY] = settings.dataset.digest or settings.dataset.path or settings.dataset.config
        for head, section in settings.heads.items():
            if section.dataset is not None:
                wanted[head] = section.dataset.digest or section.dataset.path or section.dataset.config
        jobs: list[Job | Flow] = []
        built: dict[str, Job] = {}
        for head, place in wanted.items():
            if isinstance(place, OutputReference) or is_digest(place):
                continue
            if str(place) not in built:
                built[str(place)] = self.dataset.make(place)
                jobs.append(built[str(place)])
            wanted[head] = built[str(place)].output
        return jobs, wanted

    def _evaluations(
        self, training: Job, settings: TrainingConfig, sources: Mapping[str, DatasetLike]
    ) -> dict[str, Job]:
        """Return the evaluations of the trained model, one for each head that has a dataset."""
        if self.evaluation is None:
            return {}
        made: dict[str, Job] = {}
        for head, source in sources.items():
            maker = replace(self.evaluation, head=head) if head in settings.heads else self.evaluation
            made[head] = maker.make(training.output, source)
            made[head].append_name(f" {settings.model.name}" + (f" {head}" if head in settings.heads else ""))
        return made


def training_settings(config: ConfigLike) -> TrainingConfig:
    """Return a configuration, its relative paths taken from the file or from the working directory.

    Raises:
        SettingsError: If it is wrong.
    """
    if isinstance(config, TrainingConfig):
        return config.resolved(Path.cwd())
    if isinstance(config, str | Path):
        return TrainingConfig.from_yaml(config)
    return TrainingConfig.from_dict(dict(config)).resolved(Path.cwd())


def _place(dataset: DatasetLike) -> str | OutputReference:
    if isinstance(dataset, OutputReference) or is_digest(dataset):
        return dataset  # type: ignore[return-value]
    return str(Path(dataset).expanduser().resolve())


def _check_datasets(settings: TrainingConfig, given: Mapping[str, Any]) -> None:
    """Raise unless every dataset is given for a head that exists, or is named by the configuration and exists."""
    sections = {head: section.dataset for head, section in settings.heads.items() if section.dataset is not None}
    if settings.dataset is not None:
        sections[ONLY] = settings.dataset
    for head in given:
        if head not in sections:
            raise SettingsError(f"The configuration has no dataset of a head {head!r}.", suggestion(head, sections))
    for head, section in sections.items():
        where = section.path or section.config
        if head not in given and where is not None and not Path(where).exists():
            raise SettingsError(
                f"The dataset {where} of the training configuration does not exist.",
                "Build it first: `fieldflows dataset build CONFIG --out DIR`.",
            )


def _check_name(name: str) -> None:
    """Raise unless a model can be registered under the name."""
    from fieldflows.models.find import registry

    registry().check_name(name)
