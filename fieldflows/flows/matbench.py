"""The Matbench evaluation as a flow: a job per fold, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobflow import Flow, Job, Maker, OutputReference

from fieldflows import __version__
from fieldflows.datasets.matbench import N_FOLDS
from fieldflows.errors import DataError, SettingsError
from fieldflows.evaluation.matbench.settings import MatbenchSettings
from fieldflows.flows.dataset import DatasetMaker
from fieldflows.flows.training import ConfigLike, training_settings
from fieldflows.jobs.artifacts import is_digest
from fieldflows.jobs.matbench import matbench_fold, matbench_report
from fieldflows.jobs.models import ModelReference

if TYPE_CHECKING:
    from fieldflows.training.config import TrainingConfig


@dataclass
class MatbenchDielectricMaker(Maker):
    """Make the flow that judges refractive indices by the Matbench task ``matbench_dielectric``.

    One job per fold, and one for the report, whose output is a :class:`~fieldflows.schemas.matbench.MatbenchReport`.
    All state is below ``work_directory``: whatever was finished there is not done again.

    Modes: ``"fixed"`` judges a model as it is and says what it has seen; ``"retrained"`` trains a model per fold,
    without the fold's materials; ``"corrected"`` adds a head that is fitted to the other folds, on top of the models of
    the folds, or of the fixed one where nothing is trained.

    Attributes:
        name: Name of the flow.
        model: The fixed model: a bundled or registered name, a path, or ``sha256:`` and a hash; None for none.
        modes: Which of the three; ("all",) stands for all.
        training: Configuration of the training per fold: an object, a dictionary, or a YAML file.
        training_data: Dataset that the fixed model was trained on, for the comparison of structures: a folder, a YAML
            file or a digest.
        published: File of published predictions, which are then scored on the same rows.
        folds: Which folds; all of them by default.
        work_directory: Folder of all state, on a file system that all workers see.
        settings: Further options by name, as in :class:`~fieldflows.evaluation.matbench.settings.MatbenchSettings`.
        dtype: ``"float64"`` or ``"float32"``.
        device: Torch device of the evaluations.
        head: Head of a fixed model with several; the first by default.
        resources: Passed to the workflow manager as ``manager_config`` for the jobs of the folds.

    Example:
        >>> maker = MatbenchDielectricMaker(model="toy", work_directory="/tmp/matbench")
        >>> maker.settings_of().modes
        ('fixed',)
    """

    name: str = "matbench dielectric"
    model: str | None = "dielectric"
    modes: Sequence[str] = ("fixed",)
    training: ConfigLike | None = None
    training_data: str | None = None
    published: str | None = None
    folds: Sequence[int] = tuple(range(N_FOLDS))
    work_directory: str = "matbench"
    settings: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float64"
    device: str = "cpu"
    head: str | None = None
    resources: dict[str, Any] = field(default_factory=dict)

    def make(self, file: str | Path, index: str | Path | None = None) -> Flow:
        """Return the flow.

        Args:
            file: ``matbench_dielectric.json.gz``, or another file of that form.
            index: For another file than the official one: CSV with the columns row and mbid.

        Raises:
            SettingsError: If an option is wrong, or something is missing that a mode needs.
            DataError: If a file does not exist.
            CheckpointError: If there is no such model.
        """
        settings = self.settings_of()
        training = self._training(settings)
        place, names = _existing(file), None if index is None else _existing(index)
        published = None if self.published is None else _existing(self.published)
        root = Path(self.work_directory).expanduser().resolve()
        jobs: list[Job] = []
        shared: dict[str, Any] = {"settings": settings.model_dump(mode="json"), "index": names, "dtype": self.dtype}
        shared["device"] = self.device
        facts: dict[str, Any] = {"modes": list(settings.modes), "code_version": __version__}
        if self._needs_model(settings):
            reference, info = ModelReference.resolve(str(self.model), self.dtype, self.device, self.head)
            info.require(("polarizability",), "the refractive index")
            shared |= {"model": reference, "training_data": self._dataset(self.training_data, jobs)}
            facts |= {"model": info.name, "model_sha256": info.sha256}
        if training is not None and training.dataset is not None:
            section = training.dataset
            source = section.digest or section.path or section.config
            shared |= {"training": training.model_dump(mode="json"), "dataset": self._dataset(source, jobs)}
            facts |= {"configuration_digest": training.digest}
        done = [self._fold(fold, place, str(root), shared, facts) for fold in self._chosen_folds()]
        report = matbench_report(
            [item.output for item in done],
            place,
            str(root / "report"),
            index=names,
            published=published,
            worst=settings.worst,
            figures=settings.figures,
        )
        report.name = f"{self.name} report"
        report.update_metadata({"task": "matbench", **facts})
        return Flow([*jobs, *done, report], output=report.output, name=self.name)

    def settings_of(self) -> MatbenchSettings:
        """Return the checked options.

        Raises:
            SettingsError: If one is wrong.
        """
        return MatbenchSettings.of(**{**self.settings, "modes": tuple(self.modes)})

    def _training(self, settings: MatbenchSettings) -> TrainingConfig | None:
        """Return the configuration of the training per fold, if a mode needs one and there is one.

        Raises:
            SettingsError: If one is missing, or a model is.
        """
        training = None
        if self.training is not None and set(settings.modes) & {"retrained", "corrected"}:
            training = training_settings(self.training)
            if training.heads:
                raise SettingsError("The model of a fold is trained on one dataset, without heads.")
        elif "retrained" in settings.modes:
            raise SettingsError(
                "The mode 'retrained' needs a training configuration.",
                "Give one, such as workflows/train_matbench.yaml (--train).",
            )
        if self.model is None and ("fixed" in settings.modes or training is None):
            raise SettingsError("These modes need a model.", "Name one, such as 'dielectric'.")
        return training

    def _needs_model(self, settings: MatbenchSettings) -> bool:
        return self.model is not None and ("fixed" in settings.modes or self.training is None)

    def _chosen_folds(self) -> list[int]:
        wrong = [fold for fold in self.folds if fold not in range(N_FOLDS)]
        if wrong or not self.folds:
            raise SettingsError(f"There is no fold {wrong[0] if wrong else ''}.", f"They are 0 to {N_FOLDS - 1}.")
        return sorted(set(self.folds))

    def _dataset(self, source: str | None, jobs: list[Job]) -> str | OutputReference | None:
        """Return a digest, or the output of a job that builds the dataset, which is added to the others."""
        if source is None or is_digest(source):
            return source
        made = DatasetMaker().make(source)
        jobs.append(made)
        return made.output

    def _fold(self, fold: int, file: str, root: str, shared: dict[str, Any], facts: dict[str, Any]) -> Job:
        made = matbench_fold(file, fold, root, **shared)
        made.name = f"{self.name} fold {fold}"
        made.update_metadata({"task": "matbench_fold", "fold": fold, **facts})
        if self.resources:
            made.update_config({"manager_config": dict(self.resources)})
        return made


def _existing(path: str | Path) -> str:
    """Return the absolute path of a file.

    Raises:
        DataError: If it does not exist.
    """
    found = Path(path).expanduser().resolve()
    if not found.is_file():
        raise DataError(f"There is no file {found}.", "Check the name.")
    return str(found)
