"""The model of one fold: trained without the fold's materials, and seen to have been."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fieldflows.errors import SettingsError, TrainingError
from fieldflows.evaluation.matbench.folds import formula_of, of_fold, other_folds, with_cubic_rows, without_materials
from fieldflows.observables import ELECTRONIC_OBSERVABLES

if TYPE_CHECKING:
    from fieldflows.datasets.dataset import Dataset
    from fieldflows.datasets.matbench import MatbenchEntry
    from fieldflows.training.config import TrainingConfig
    from fieldflows.training.result import TrainingResult


@dataclass(frozen=True)
class FoldTraining:
    """A trained model and what it was trained on.

    Attributes:
        checkpoint: The model.
        sha256: Hash of that file.
        result: What came out of the run.
        dataset: What was trained on.
        n_removed_formulas: Formulas of the fold that the dataset held.
        n_removed_frames: Frames that were taken out of it.
        n_added: Cubic rows of other folds that were added.
    """

    checkpoint: Path
    sha256: str
    result: TrainingResult
    dataset: Dataset
    n_removed_formulas: int
    n_removed_frames: int
    n_added: int = 0


def train_fold(
    config: TrainingConfig,
    dataset: Dataset,
    entries: Sequence[MatbenchEntry],
    fold: int,
    directory: str | Path,
    cubic_rows: bool = False,
    figures: bool = False,
) -> FoldTraining:
    """Train the model of a fold; a run that was stopped goes on, and one that ended is not repeated.

    Args:
        config: How to train; its own dataset is not looked at.
        dataset: Labeled crystals, of which those of the fold's formulas are taken out.
        entries: All rows of the task that are at hand.
        fold: The fold that is to be judged.
        directory: Folder of the run directories of this fold.
        cubic_rows: Train on the cubic rows of the other folds, too.
        figures: Draw learning curves and parity plots.

    Raises:
        SettingsError: If the network starts from one that may have seen the fold.
        TrainingError: If the run was stopped, or its model says that it was trained on a formula of the fold.
        DataError: If nothing is left to train on.
    """
    from fieldflows.backends.mace_field.checkpoint import read_metadata
    from fieldflows.training.loop import train

    held = {formula_of(entry) for entry in of_fold(entries, fold)}
    refuse_seen_backbone(config, held)
    left = without_materials(dataset, held, f"{dataset.manifest.name} without fold {fold}")
    removed, added = len(dataset) - len(left), 0
    if cubic_rows:
        left, added = with_cubic_rows(left, other_folds(entries, fold), left.manifest.name)
    result = train(config, run_directory(directory, config, left), dataset=left, figures=figures)
    if result.status == "interrupted" or result.checkpoint is None or result.sha256 is None:
        raise TrainingError(
            f"The training of fold {fold} was stopped at step {result.steps}.", "Run the same again to go on."
        )
    formulas = read_metadata(result.checkpoint).provenance.get("formulas")
    seen = {str(name) for members in formulas.values() for name in members} if isinstance(formulas, dict) else held
    if seen & held:
        raise TrainingError(
            f"The model of fold {fold} says that it was trained on {len(seen & held)} formulas of the fold, such as "
            f"{min(seen & held)}.",
            f"Remove {result.directory}: it holds another run.",
        )
    known = {frame.material for frame in dataset.frames}
    return FoldTraining(result.checkpoint, result.sha256, result, left, len(known & held), removed, added)


def run_directory(directory: str | Path, config: TrainingConfig, dataset: Dataset) -> Path:
    """Return the run directory of a configuration and a dataset, below a folder."""
    return Path(directory) / f"{config.model.name}-{config.digest[:12]}-{dataset.digest[:8]}"


def refuse_seen_backbone(config: TrainingConfig, held: set[str]) -> None:
    """Raise if training starts from a network that knows responses of the fold's materials, or does not say which.

    A plain interatomic potential, trained on energies and forces, is allowed: it has seen no label of this task.

    Args:
        config: How to train.
        held: Reduced formulas of the fold.

    Raises:
        SettingsError: Says what the backbone has seen.
    """
    if config.heads:
        raise SettingsError("The model of a fold is trained on one dataset, without heads.", "Take `heads` out.")
    if config.model.backbone is None:
        return
    from fieldflows.backends.mace_field.foundation import load_backbone
    from fieldflows.datasets.source import expand_path

    name = config.model.backbone
    path = expand_path(name)
    _, metadata = load_backbone(path if path.is_file() else name, trust_pickle=config.model.trust_pickle)
    if not set(metadata.trained_labels) & set(ELECTRONIC_OBSERVABLES):
        return
    formulas = metadata.provenance.get("formulas")
    if not isinstance(formulas, dict) or metadata.provenance.get("backbone"):
        raise SettingsError(
            f"The backbone {name} was trained on {', '.join(metadata.trained_labels)} and does not say of which "
            "materials in all: the fold may be among them.",
            "Train from scratch, or start from a model of energies and forces.",
        )
    seen = held & {str(formula) for members in formulas.values() for formula in members}
    if seen:
        raise SettingsError(
            f"The backbone {name} was trained on {len(seen)} of the {len(held)} formulas of the fold, such as "
            f"{min(seen)}.",
            "Train from scratch, or start from a model of energies and forces.",
        )
