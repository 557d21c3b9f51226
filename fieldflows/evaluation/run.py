"""An evaluation from start to end: predictions, statistics, identities, and the document of all of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fieldflows import __version__
from fieldflows.backends.base import FieldModel
from fieldflows.errors import InputError
from fieldflows.evaluation.baselines import Baselines
from fieldflows.evaluation.elements import evaluate_elements, evaluate_sum_rule, find_outliers
from fieldflows.evaluation.identities import check_identities
from fieldflows.evaluation.paths import EndCharges, end_key, evaluate_paths, path_quantities, raw_quantity
from fieldflows.evaluation.predict import OpenHead, Predicted, Progress, predict_charges, predict_frames
from fieldflows.evaluation.settings import EvaluationSettings
from fieldflows.evaluation.statistics import evaluate_quantities
from fieldflows.properties.base import model_card
from fieldflows.schemas.common import Flag, make_flag
from fieldflows.schemas.evaluation import EvaluationDocument, IdentityCheck, SubsetEvaluation
from fieldflows.training.metrics import Predictions

if TYPE_CHECKING:
    from fieldflows.datasets.dataset import Dataset
    from fieldflows.datasets.frame import LabeledFrame


@dataclass
class Evaluation:
    """What an evaluation found.

    Attributes:
        document: All statistics.
        predicted: Frames and predictions, for figures and tables.
    """

    document: EvaluationDocument
    predicted: Predicted


def open_dataset(path: str | Path) -> Dataset:
    """Return a dataset from the directory of a built one, or from the YAML file that describes how to build it.

    Raises:
        DataError: If there is none, or it was altered.
        SettingsError: If the file is no valid configuration.
    """
    from fieldflows.datasets.config import DatasetConfig
    from fieldflows.datasets.dataset import Dataset, build_dataset

    path = Path(path).expanduser()
    return build_dataset(DatasetConfig.from_yaml(path)) if path.is_file() else Dataset.load(path)


def evaluate(
    model: FieldModel,
    dataset: Dataset,
    settings: EvaluationSettings | None = None,
    directory: str | Path | None = None,
    figures: bool = True,
    progress: Progress = lambda done, total: None,
    open_head: OpenHead | None = None,
) -> Evaluation:
    """Compare a model with the labels of a dataset and, on request, write report, tables and figures.

    Args:
        model: Any model.
        dataset: A built dataset; its training frames make the baselines.
        settings: What is compared; defaults if None.
        directory: Folder to write to; nothing is written if None.
        figures: Whether figures are drawn there.
        progress: Called with the number of frames done and in all.
        open_head: Gives the model's other heads; frames that name one of them are evaluated with it.

    Raises:
        InputError: If a subset is empty, or the folder cannot be written.
        CapabilityError: If the model was not trained on what is asked for.
        EvaluationError: If no frame has such a label, or none can be evaluated.
        SettingsError: If the forest is asked for and scikit-learn is not installed.
    """
    start = time.perf_counter()
    settings = settings or EvaluationSettings()
    frames = _frames(dataset, settings)
    predicted = predict_frames(model, frames, settings.labels, settings.symmetry, progress, open_head)
    charges = _end_charges(model, predicted, settings, open_head)
    baselines = Baselines(dataset.subset("train"), predicted.labels, settings.forest, settings.seed)
    identities = check_identities(model, predicted.frames, settings.identities, settings.seed)
    target = None if directory is None else Path(directory).expanduser().resolve()
    document = _document(model, dataset, settings, predicted, charges, baselines, identities, target, start)
    result = Evaluation(document, predicted)
    if target is not None:
        from fieldflows.evaluation.report import write_report

        write_report(result, target, figures)
    return result


def _end_charges(
    model: FieldModel, predicted: Predicted, settings: EvaluationSettings, open_head: OpenHead | None
) -> EndCharges:
    """Return the model's Born effective charges at the ends of paths."""
    if not settings.path_charges or "polarization" not in predicted.labels:
        return {}
    ends = {key: frame for frame in predicted.frames if (key := end_key(frame)) is not None}
    found = predict_charges(model, list(ends.values()), settings.symmetry, open_head)
    return {key: value for key, value in zip(ends, found, strict=True) if value is not None}


def _frames(dataset: Dataset, settings: EvaluationSettings) -> list[LabeledFrame]:
    frames: list[LabeledFrame] = []
    for split in settings.splits:
        members = dataset.subset(split)
        if not members and len(settings.splits) == 1:
            raise InputError(f"The subset {split!r} of dataset {dataset.manifest.name!r} is empty.", "Choose another.")
        frames += members
    if not frames:
        raise InputError(
            f"The subsets {', '.join(settings.splits)} of dataset {dataset.manifest.name!r} are empty.",
            "Choose another dataset.",
        )
    return frames


def _document(
    model: FieldModel,
    dataset: Dataset,
    settings: EvaluationSettings,
    predicted: Predicted,
    charges: EndCharges,
    baselines: Baselines,
    identities: Sequence[IdentityCheck],
    directory: Path | None,
    start: float,
) -> EvaluationDocument:
    subsets, heads, paths, incomplete, elements, rules, outliers = {}, [], [], [], [], [], []
    medians = baselines.trivial.charges if "born_effective_charges" in baselines.fitted else None
    seen = _seen(model)
    for split in settings.splits:
        frames, predictions = predicted.subset(split)
        if not frames:
            continue
        subset = _subset(split, None, frames, predictions, baselines, seen)
        found, broken = evaluate_paths(frames, predictions, charges)
        extra = {**raw_quantity(frames, predictions), **path_quantities(found)}
        subsets[split] = subset.model_copy(update={"quantities": {**subset.quantities, **extra}})
        paths += found
        incomplete += broken
        elements += evaluate_elements(split, frames, predictions, medians)
        rule = evaluate_sum_rule(split, frames, predictions)
        rules += [] if rule is None else [rule]
        outliers += find_outliers(split, frames, predictions, settings.outliers)
        for head in sorted({frame.head for frame in frames if frame.head}):
            heads.append(_subset(split, head, *predicted.subset(split, head), baselines, seen))
    return EvaluationDocument(
        model=model_card(model),
        dataset_name=dataset.manifest.name,
        dataset_digest=dataset.digest,
        labels=predicted.labels,
        subsets=subsets,
        heads=tuple(heads),
        paths=tuple(paths),
        incomplete_paths=tuple(incomplete),
        elements=tuple(elements),
        sum_rules=tuple(rules),
        outliers=tuple(outliers),
        identities=tuple(identities),
        problems=tuple(predicted.problems),
        flags=tuple(_flags(settings.splits, subsets, predicted, identities, baselines)),
        baseline_definitions=baselines.definitions,
        settings=settings.model_dump(mode="json"),
        seed=settings.seed,
        directory=None if directory is None else str(directory),
        wall_time=time.perf_counter() - start,
        code_version=__version__,
        software=_software(),
    )


def _subset(
    split: str,
    head: str | None,
    frames: list[LabeledFrame],
    predictions: Predictions,
    baselines: Baselines,
    seen: set[str] | None,
) -> SubsetEvaluation:
    materials = {frame.material for frame in frames}
    return SubsetEvaluation(
        split=split,
        head=head,
        frames=len(frames),
        materials=len(materials),
        atoms=sum(len(frame) for frame in frames),
        seen_materials=None if seen is None else len(materials & seen),
        quantities=evaluate_quantities(frames, predictions, baselines),
    )


def _seen(model: FieldModel) -> set[str] | None:
    """Return the reduced formulas that the model was trained on or selected by, if its card says so."""
    formulas = model.info.provenance.get("formulas")
    if not isinstance(formulas, dict):
        return None
    return {str(formula) for members in formulas.values() for formula in members}


def _flags(
    splits: Sequence[str],
    subsets: dict[str, SubsetEvaluation],
    predicted: Predicted,
    identities: Sequence[IdentityCheck],
    baselines: Baselines,
) -> list[Flag]:
    flags = []
    for check in identities:
        if check.passed is False:
            size = "not finite" if check.relative is None else f"{check.relative:.2g} of its size"
            flags.append(
                make_flag(
                    "identity_violated",
                    f"{check.formula} is violated: {size} (allowed {check.tolerance:g}), {check.worst_frame}.",
                    check.relative,
                    check.tolerance,
                )
            )
    for split, subset in subsets.items():
        if split == "test" and subset.seen_materials:
            flags.append(
                make_flag(
                    "seen_materials",
                    f"{subset.seen_materials} of {subset.materials} materials of subset {split} were seen when the "
                    "model was trained: its errors are no measure of unseen materials.",
                    subset.seen_materials,
                    0,
                )
            )
    for split in splits:
        if split not in subsets:
            flags.append(make_flag("empty_subset", f"No frame of subset {split} was compared."))
    if predicted.problems:
        total = len(predicted.problems) + len(predicted.frames)
        flags.append(
            make_flag("frames_left_out", f"{len(predicted.problems)} of {total} frames could not be evaluated.")
        )
    if baselines.note:
        flags.append(make_flag("no_forest", baselines.note + "."))
    return flags


def _software() -> dict[str, str]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("numpy", "torch", "scikit-learn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
