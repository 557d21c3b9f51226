"""What a model has seen of the rows that it is judged by: by reduced formula, and by structure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fieldflows.backends.base import ModelInfo
from fieldflows.datasets.overlap import OverlapTarget, Reference, compare
from fieldflows.errors import SettingsError
from fieldflows.evaluation.matbench.folds import formula_of
from fieldflows.schemas.matbench import Leakage, SeenBefore

if TYPE_CHECKING:
    from fieldflows.datasets.dataset import Dataset
    from fieldflows.datasets.matbench import MatbenchEntry


def known_formulas(info: ModelInfo, splits: Sequence[str] = ("train", "valid")) -> set[str] | None:
    """Return the reduced formulas that a model was trained on (train) or selected by (valid); None if it does not say.

    Args:
        info: Card of the model.
        splits: Which of them.
    """
    formulas = info.provenance.get("formulas")
    if not isinstance(formulas, dict) or "train" not in formulas:
        return None
    return {str(formula) for split in splits for formula in formulas.get(split, ())}


def seen_before(
    info: ModelInfo,
    entries: Sequence[MatbenchEntry],
    training_data: Dataset | None = None,
    backbone_checked: bool = False,
) -> SeenBefore:
    """Return which rows a model was trained on or selected by, and the verdict.

    Rows of a formula that was trained on are seen, whatever their structure.  A model that does not say what it was
    trained on gets the verdict "unknown", which counts as leaky; so does one that was fine-tuned, because its
    checkpoint does not state what its backbone had seen.

    Args:
        info: Card of the model.
        entries: The rows that it is judged by.
        training_data: The dataset that it was trained on, for the comparison of structures.
        backbone_checked: Whether the network that it was fine-tuned from is known to have seen none of the rows.

    Raises:
        SettingsError: If that is another dataset than the model states.
    """
    stated = info.provenance.get("dataset_digest")
    digest = str(stated) if stated else None
    if training_data is not None and digest is not None and training_data.digest != digest:
        raise SettingsError(
            f"Model {info.name!r} was trained on the dataset {digest[:12]}..., found {training_data.digest[:12]}... "
            f"({training_data.manifest.name}).",
            "Give the dataset that it was trained on, or none.",
        )
    structures = None if training_data is None else same_structures(entries, training_data)
    formulas = known_formulas(info)
    if formulas is None:
        return SeenBefore(
            verdict="unknown",
            reason=f"{info.name} does not say what it was trained on: it is treated as leaky.",
            by_structure=structures,
            dataset_digest=digest,
        )
    rows = tuple(entry.mbid for entry in entries if formula_of(entry) in formulas)
    text = f"{len(rows)} of {len(entries)} rows are of formulas that {info.name} was trained on or selected by"
    if structures is not None:
        text += f", {len(structures)} of crystals that it was"
    verdict: Leakage = "leaky" if rows or structures else "clean"
    backbone = info.provenance.get("backbone")
    if backbone and not backbone_checked:
        name = backbone.get("name", backbone) if isinstance(backbone, dict) else backbone
        verdict, text = "unknown", f"{text}; what its backbone {name} was trained on is not known"
    return SeenBefore(
        verdict=verdict,
        reason=text + ".",
        by_formula=rows,
        by_structure=structures,
        dataset_digest=digest,
    )


def same_structures(entries: Sequence[MatbenchEntry], dataset: Dataset) -> tuple[str, ...]:
    """Return the rows whose crystal is among the training or validation crystals of a dataset.

    Args:
        entries: Rows of the task.
        dataset: Labeled crystals.
    """
    frames = [frame for frame in dataset.frames if frame.split in ("train", "valid")]
    # each row is a subset of its own, so that each one that matches is named
    references = [Reference(entry.atoms, formula_of(entry), entry.mbid, entry.mbid) for entry in entries]
    target = OverlapTarget(matbench="matbench_dielectric")
    found = compare(frames, references, target, "matbench_dielectric", "", lambda stage, done, total: None)
    matched = {match.other for match in found.matches}
    return tuple(entry.mbid for entry in entries if entry.mbid in matched)
