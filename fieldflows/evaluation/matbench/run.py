"""One fold from start to end: models, what they have seen, predictions, and the document of it."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldflows import __version__
from fieldflows.artifacts import replacing
from fieldflows.backends.base import FieldModel, load_model
from fieldflows.errors import DataError, SettingsError
from fieldflows.evaluation.matbench.features import head_features
from fieldflows.evaluation.matbench.folds import formula_of, of_fold, other_folds
from fieldflows.evaluation.matbench.head import CorrectionHead, fit_head
from fieldflows.evaluation.matbench.predict import Prediction, predict_indices
from fieldflows.evaluation.matbench.retrain import FoldTraining, train_fold
from fieldflows.evaluation.matbench.seen import known_formulas, seen_before
from fieldflows.evaluation.matbench.settings import MatbenchSettings
from fieldflows.physics.dielectric import electronic_permittivity
from fieldflows.physics.optics import refractive_index
from fieldflows.properties.base import model_card
from fieldflows.schemas.matbench import (
    FoldResult,
    FoldTrainingRecord,
    MatbenchFoldDocument,
    Mode,
    Replaced,
    SeenBefore,
)

if TYPE_CHECKING:
    from ase import Atoms

    from fieldflows.datasets.dataset import Dataset
    from fieldflows.datasets.matbench import MatbenchEntry
    from fieldflows.training.config import TrainingConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldTask:
    """What one fold needs.

    Attributes:
        entries: All rows at hand, each with identifier and fold.
        file_sha256: Hash of the file that they come from.
        fold: The fold that is judged.
        settings: Modes and head.
        model: The fixed model; None without that mode.
        training: How the model of the fold is trained; None if none is.
        dataset: Labeled crystals to train on.
        training_data: What the fixed model was trained on, if it is at hand, for the comparison of structures.
        dtype: Precision in which trained models are evaluated.
        device: Torch device of that.
    """

    entries: Sequence[MatbenchEntry]
    file_sha256: str
    fold: int
    settings: MatbenchSettings
    model: FieldModel | None = None
    training: TrainingConfig | None = None
    dataset: Dataset | None = None
    training_data: Dataset | None = None
    dtype: str = "float64"
    device: str = "cpu"

    def check(self) -> None:
        """Raise unless there is all that the modes need.

        Raises:
            SettingsError: If a model, a training or its dataset is missing.
            DataError: If a row has no identifier, or the fold no rows.
        """
        modes = self.settings.modes
        if "retrained" in modes and self.training is None:
            raise SettingsError("The mode 'retrained' needs a training configuration.", "Give one: --train CONFIG.")
        if self.training is not None and self.dataset is None:
            raise SettingsError("A model for each fold needs a dataset to train on.")
        if self.model is None and ("fixed" in modes or self.training is None):
            raise SettingsError("The modes ask for a fixed model.", "Name one: --model dielectric.")
        nameless = [entry.row for entry in self.entries if entry.fold is None]
        if nameless:
            raise DataError(
                f"{len(nameless)} of {len(self.entries)} rows have no identifier, such as row {nameless[0]}: which "
                "fold they belong to cannot be known.",
                "Take the official file, or give the index of this one (columns row and mbid).",
            )
        if not of_fold(self.entries, self.fold):
            raise DataError(f"None of the {len(self.entries)} rows is in fold {self.fold}.")

    @property
    def key(self) -> str:
        """SHA-256 of everything that decides the result."""
        training = None
        if self.training is not None and self.dataset is not None:
            run = self.training.run
            training = [self.training.digest, self.dataset.digest, run.epochs, run.max_minutes, run.patience]
        known = None if self.training_data is None else self.training_data.digest
        rows = hashlib.sha256("".join(f"{entry.mbid} {entry.n!r};" for entry in self.entries).encode()).hexdigest()
        content = {
            "file": [self.file_sha256, rows],
            "fold": self.fold,
            "settings": self.settings.deciding,
            "model": None if self.model is None else [self.model.info.sha256, self.model.info.head],
            "training": training,
            "training_data": known,
            "dtype": [self.dtype, None if self.model is None else self.model.info.dtype],
            "code_version": __version__,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def run_fold(task: FoldTask, directory: str | Path) -> MatbenchFoldDocument:
    """Return the predictions for one fold; what a former run finished is taken from the folder, training goes on.

    Args:
        task: What to do.
        directory: Folder of all folds.

    Raises:
        SettingsError: If a model, a training or its dataset is missing, or a model has seen what it may not.
        DataError: If the fold has no rows.
        TrainingError: If training was stopped.
    """
    task.check()
    start = time.monotonic()
    place = Path(directory) / f"fold_{task.fold}-{task.key[:12]}.json"
    done = read_fold(place, task.key)
    if done is not None:
        logger.info("fold %d: done before, taken from %s", task.fold, place)
        return done
    results: list[FoldResult] = []
    modes = task.settings.modes
    if task.model is not None and ("fixed" in modes or task.training is None):
        results += _judge(task, task.model, "fixed", None, with_head=task.training is None and "corrected" in modes)
    if task.training is not None and task.dataset is not None and set(modes) & {"retrained", "corrected"}:
        logger.info("fold %d: training %s, %s", task.fold, task.training.model.name, _limit(task.training))
        trained = train_fold(
            task.training,
            task.dataset,
            task.entries,
            task.fold,
            Path(directory) / "models" / f"fold_{task.fold}",
            cubic_rows=task.settings.cubic_rows,
        )
        model = load_model(trained.checkpoint, dtype=task.dtype, device=task.device)
        results += _judge(task, model, "retrained", trained, with_head="corrected" in modes)
    document = MatbenchFoldDocument(
        key=task.key,
        fold=task.fold,
        results=tuple(item for item in results if item.mode in modes),
        file_sha256=task.file_sha256,
        settings=task.settings.model_dump(mode="json"),
        wall_time=time.monotonic() - start,
        code_version=__version__,
    )
    with replacing(place) as handle:
        handle.write((json.dumps(document.to_json_dict(), indent=1, ensure_ascii=False) + "\n").encode())
    return document


def read_fold(path: Path, key: str) -> MatbenchFoldDocument | None:
    """Return the document of a fold that was finished before; None if there is none, or it is another one."""
    try:
        found = MatbenchFoldDocument.from_json_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, DataError):
        return None
    return found if found.key == key else None


def _judge(
    task: FoldTask, model: FieldModel, mode: Mode, trained: FoldTraining | None, with_head: bool
) -> list[FoldResult]:
    """Return the predictions of a model, and those with a head."""
    judged = of_fold(task.entries, task.fold)
    if trained is None:
        seen = seen_before(model.info, judged, task.training_data)
    else:
        seen = _honest(seen_before(model.info, judged, backbone_checked=True), trained)
    logger.info("fold %d: %d rows by %s (%s)", task.fold, len(judged), model.info.name, seen.verdict)
    predictions = predict_indices(model, [entry.atoms for entry in judged], task.settings.symmetry)
    others = [entry.n for entry in task.entries if entry.fold != task.fold]
    shared: dict[str, Any] = {
        "fold": task.fold,
        "fallback": float(np.mean(others)) if others else 2.0,
        "replaced": tuple(
            Replaced(mbid=entry.mbid, reason=item.reason)
            for entry, item in zip(judged, predictions, strict=True)
            if item.n is None
        ),
        "model": model_card(model),
        "seen": seen,
        "training": None if trained is None or task.training is None else _record(trained, task.training),
    }
    plain = np.array([shared["fallback"] if item.n is None else item.n for item in predictions])
    results = [FoldResult(mode=mode, predictions=_named(judged, plain), **shared)]
    if with_head:
        head, features = _head(task, model, trained, judged, predictions)
        good = np.array([item.n is not None for item in predictions])
        values = plain.copy()
        if features.shape[1]:
            values[good] = head.correct(plain[good], features[good])
        results.append(FoldResult(mode="corrected", predictions=_named(judged, values), head=head.choice, **shared))
    return results


def _limit(config: TrainingConfig) -> str:
    minutes = config.run.max_minutes
    return f"{config.run.epochs} epochs" + ("" if minutes is None else f" or {minutes:g} minutes")


def _named(entries: Sequence[MatbenchEntry], values: np.ndarray) -> dict[str, float]:
    return {entry.mbid: float(value) for entry, value in zip(entries, values, strict=True)}


def _honest(seen: SeenBefore, trained: FoldTraining) -> SeenBefore:
    """Return the verdict on a model that was trained for the fold, which must be clean.

    Raises:
        SettingsError: If it is not.
    """
    if seen.verdict != "clean":
        raise SettingsError(f"The model that was trained for this fold has seen it: {seen.reason}")
    text = (
        f"Trained for this fold, without the {trained.n_removed_frames} crystals of its formulas "
        f"({trained.n_removed_formulas} formulas of the dataset); {len(trained.dataset)} crystals were left."
    )
    return seen.model_copy(update={"reason": text, "by_structure": ()})


def _record(trained: FoldTraining, config: TrainingConfig) -> FoldTrainingRecord:
    result = trained.result
    return FoldTrainingRecord(
        checkpoint=str(trained.checkpoint.resolve()),
        checkpoint_sha256=trained.sha256,
        dataset_digest=trained.dataset.digest,
        configuration_digest=config.digest,
        removed_formulas=trained.n_removed_formulas,
        removed_frames=trained.n_removed_frames,
        added_rows=trained.n_added,
        train_frames=len(trained.dataset.subset("train")),
        valid_frames=len(trained.dataset.subset("valid")),
        status=result.status,
        epochs=result.epochs,
        wall_time=result.seconds,
    )


def _head(
    task: FoldTask,
    model: FieldModel,
    trained: FoldTraining | None,
    judged: Sequence[MatbenchEntry],
    predictions: Sequence[Prediction],
) -> tuple[CorrectionHead, np.ndarray]:
    """Return the head of a fold, and the features of its rows."""
    atoms, labels, formulas = learnable(task, model, trained)
    logger.info("fold %d: a head from %d crystals", task.fold, len(atoms))
    known = predict_indices(model, atoms, task.settings.symmetry)
    good = [k for k, item in enumerate(known) if item.n is not None]
    atoms, known = [atoms[k] for k in good], [known[k] for k in good]
    numbers = sorted({int(z) for item in atoms for z in item.numbers})
    head = fit_head(
        labels[good],
        np.array([float(item.n or 0.0) for item in known]),
        head_features(model, atoms, known, numbers),
        [formulas[k] for k in good],
        task.settings.inner_folds,
        task.settings.least_rows,
    )
    return head, head_features(model, [entry.atoms for entry in judged], predictions, numbers)


def learnable(
    task: FoldTask, model: FieldModel, trained: FoldTraining | None
) -> tuple[list[Atoms], np.ndarray, list[str]]:
    """Return crystals, n and formulas that a head of a fold may learn from.

    These are rows of the other folds that share no formula with the fold, and of which the model was not trained on:
    on its own training crystals its errors are no measure of those elsewhere.  With a model that was trained for the
    fold come the crystals of its dataset that it was not trained on and that are no rows of the task.

    Args:
        task: The fold.
        model: The model.
        trained: How it was trained for this fold, if it was.
    """
    trained_on = known_formulas(model.info, ("train",)) or set()
    rows = [entry for entry in other_folds(task.entries, task.fold) if formula_of(entry) not in trained_on]
    atoms = [entry.atoms for entry in rows]
    labels = [entry.n for entry in rows]
    formulas = [formula_of(entry) for entry in rows]
    taken = {formula_of(entry) for entry in task.entries}
    for frame in [] if trained is None else trained.dataset.frames:
        if frame.split == "train" or frame.material in taken or "polarizability" not in frame.labels:
            continue
        n = refractive_index(electronic_permittivity(frame.labels["polarizability"]))
        if np.isfinite(n):
            atoms.append(frame.atoms)
            labels.append(n)
            formulas.append(frame.material)
    return atoms, np.array(labels), formulas
