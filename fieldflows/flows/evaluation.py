"""Evaluation as a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobflow import Job, Maker, OutputReference

from fieldflows import __version__
from fieldflows.errors import SettingsError
from fieldflows.evaluation.settings import EvaluationSettings
from fieldflows.jobs.artifacts import is_digest
from fieldflows.jobs.evaluation import evaluate_model
from fieldflows.jobs.models import ModelReference


@dataclass
class EvaluateMaker(Maker):
    """Make the job that compares a model with labels.

    Its output is an :class:`~fieldflows.schemas.evaluation.EvaluationDocument`.  Model and dataset may be outputs of
    earlier jobs: whole documents of trainings and datasets, or a path in them.

    Attributes:
        name: Name of the job.
        splits: Subsets to compare; ("all",) stands for every one.
        figures: Draw figures.
        resources: Passed to the workflow manager as ``manager_config``: a jobflow-remote worker and its resources,
            or a FireWorks specification (``{"_fworker": "gpu"}``).
        labels: Observables to compare; those that the model was trained on by default.
        identities: Frames on which physical identities are tried.
        forest: "auto", "on" or "off": a random forest on composition and volume beside ε∞ and n.
        symmetry: Evaluate symmetric crystals by their primitive cells and few directions.
        seed: Seed of everything random.
        dtype: "float64" or "float32".
        device: Torch device.
        head: Head of a model with several; by default that which a frame names, or the first.

    Example:
        >>> job = EvaluateMaker(splits=("test",)).make("toy", "workflows/dataset_dielectric.yaml")
        >>> job.metadata["task"]
        'evaluation'
    """

    name: str = "evaluate"
    splits: Sequence[str] = ("valid", "test")
    figures: bool = True
    resources: dict[str, Any] = field(default_factory=dict)
    labels: Sequence[str] | None = None
    identities: int = 3
    forest: str = "auto"
    symmetry: bool = True
    seed: int = 0
    dtype: str = "float64"
    device: str = "cpu"
    head: str | None = None

    def make(
        self,
        model: str | Path | OutputReference,
        dataset: str | Path | OutputReference,
        directory: str | Path | None = None,
    ) -> Job:
        """Return the job.

        Args:
            model: Name, path or ``sha256:...`` of a model, or an output.
            dataset: Directory of a built dataset, YAML file that describes one, its digest, or an output.
            directory: Folder of the report; ``evaluation`` in the directory that the job runs in by default.

        Raises:
            SettingsError: If an option is wrong, or there is no such dataset.
            CheckpointError: If there is no such model.
        """
        settings = EvaluationSettings.of(
            splits=tuple(self.splits),
            labels=None if self.labels is None else tuple(self.labels),
            identities=self.identities,
            forest=self.forest,
            symmetry=self.symmetry,
            seed=self.seed,
        )
        resolved: ModelReference | OutputReference
        if isinstance(model, OutputReference):
            resolved, facts = model, {}
        else:
            resolved, info = ModelReference.resolve(model, self.dtype, self.device, self.head)
            facts = {"model_sha256": info.sha256}
        made = evaluate_model(
            resolved,
            _dataset(dataset),
            settings=settings.model_dump(mode="json"),
            figures=self.figures,
            directory=None if directory is None else str(Path(directory).expanduser().resolve()),
            dtype=self.dtype,
            device=self.device,
            head=self.head,
        )
        made.name = self.name
        made.update_metadata(
            {
                "task": "evaluation",
                "splits": list(settings.splits),
                "seed": settings.seed,
                "code_version": __version__,
                **facts,
            }
        )
        if self.resources:
            made.update_config({"manager_config": dict(self.resources)})
        return made


def _dataset(dataset: str | Path | OutputReference) -> str | OutputReference:
    if isinstance(dataset, OutputReference) or is_digest(dataset):
        return dataset  # type: ignore[return-value]
    path = Path(dataset).expanduser()
    if not path.exists():
        raise SettingsError(
            f"The dataset {dataset} does not exist.", "Build it first: `fieldflows dataset build CONFIG --out DIR`."
        )
    return str(path.resolve())
