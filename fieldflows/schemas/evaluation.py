"""What an evaluation leaves behind: errors of a model on labeled frames, those of baselines beside each of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

from pydantic import Field

from fieldflows.schemas.common import Document, Flag, Matrix3, Vector3, quantity
from fieldflows.schemas.provenance import ModelCard

SCHEMA_VERSION = 1

ProblemKind = Literal["unknown_element", "failed"]


class ErrorStatistics(Document):
    """Errors of one predictor for one quantity, in the unit of the quantity."""

    mae: float = quantity("see `unit`", "Mean absolute error over all components.")
    rmse: float = quantity("see `unit`", "Root mean square error over all components.")
    r2: float | None = quantity("1", "Coefficient of determination; null if the labels do not vary.", None)
    distance: float | None = quantity(
        "see `unit`", "Mean Euclidean norm of the difference of vectors; null for quantities that are none.", None
    )


class QuantityEvaluation(Document):
    """One quantity over one subset: the labels, the model, and what is known without it."""

    symbol: str = Field(description="Symbol.")
    unit: str = Field(description="Unit of all numbers but `r2`.")
    frames: int = quantity("1", "Frames (or paths) that have the label.")
    count: int = quantity("1", "Components compared.")
    label_mean: float = quantity("see `unit`", "Mean of the labels.")
    label_spread: float = quantity("see `unit`", "Standard deviation of the labels.")
    model: ErrorStatistics = Field(description="The model.")
    baselines: dict[str, ErrorStatistics] = Field(
        description="What can be said without the model, by name; `baseline_definitions` says how."
    )

    def factor(self, baseline: str, measure: Literal["mae", "rmse"] = "rmse") -> float | None:
        """Return how many times larger the error of a baseline is; None if there is none or the model's is zero."""
        own = getattr(self.model, measure)
        return getattr(self.baselines[baseline], measure) / own if baseline in self.baselines and own else None


class SubsetEvaluation(Document):
    """All quantities over one subset, or over the frames of one head in it."""

    split: str = Field(description="Subset of the dataset.")
    head: str | None = Field(None, description="Head of the frames; null for all of them.")
    frames: int = quantity("1", "Frames that were compared.")
    materials: int = quantity("1", "Reduced formulas among them.")
    atoms: int = quantity("1", "Atoms in them.")
    seen_materials: int | None = quantity(
        "1", "Reduced formulas among them that the model was trained on or selected by; null if it does not say.", None
    )
    quantities: dict[str, QuantityEvaluation] = Field(description="Errors by quantity.")


class PathEvaluation(Document):
    """Spontaneous polarization of one path, P_s = Σ_i [f_i(polar) − f_i(nonpolar)] a_i(polar)/Ω(polar)."""

    path: str = Field(description="Identifier of the path.")
    split: str = Field(description="Subset.")
    material: str = Field(description="Reduced formula.")
    source: str = Field(description="Source in the dataset.")
    polar: str = Field("", description="Identifier of the polar crystal.")
    nonpolar: str = Field("", description="Identifier of the nonpolar crystal.")
    label: Vector3 = quantity("µC/cm²", "P_s of the labels, Cartesian in the frame of the polar end.")
    predicted: Vector3 = quantity("µC/cm²", "P_s of the model.")
    label_norm: float = quantity("µC/cm²", "|P_s| of the labels.")
    predicted_norm: float = quantity("µC/cm²", "|P_s| of the model.")
    distance: float = quantity("µC/cm²", "|P_s(model) − P_s(label)|.")
    folded_distance: float = quantity("µC/cm²", "The same modulo quanta of the polar end.")
    quanta: Matrix3 = quantity("µC/cm²", "Quanta e a_i/Ω of the polar end, one per row.")
    from_charges: Vector3 | None = quantity(
        "µC/cm²", "Σ_κ ½ [Z*_κ(polar) + Z*_κ(nonpolar)]·Δu_κ/Ω of the model; null if it has no Z*.", None
    )
    guided: Vector3 | None = quantity(
        "µC/cm²", "P_s of the model plus the quanta that bring it closest to `from_charges`.", None
    )
    flags: tuple[str, ...] = Field((), description="Flags of its frames, such as 'path_large_step': an unsure branch.")


class ElementEvaluation(Document):
    """Born effective charges of one element over one subset."""

    element: str = Field(description="Chemical symbol.")
    split: str = Field(description="Subset.")
    atoms: int = quantity("1", "Atoms that were compared.")
    materials: int = quantity("1", "Reduced formulas that hold it.")
    label_mean: float = quantity("e", "Mean of tr Z*/3 of the labels.")
    label_spread: float = quantity("e", "Standard deviation of tr Z*/3 of the labels.")
    predicted_mean: float = quantity("e", "Mean of tr Z*/3 of the model.")
    mae_diagonal: float = quantity("e", "Mean absolute error of the diagonal.")
    mae_off_diagonal: float = quantity("e", "Mean absolute error off the diagonal.")
    baseline_mae_diagonal: float | None = quantity("e", "Diagonal error of the median by element.", None)
    worst_frame: str = Field(description="Frame with the largest error of a component.")
    worst_error: float = quantity("e", "That error, prediction minus label.")


class SumRule(Document):
    """The acoustic sum rule Σ_κ Z*_κ = 0: largest component of |Σ_κ Z*_κ| per frame, over one subset."""

    split: str = Field(description="Subset.")
    frames: int = quantity("1", "Frames with Z*.")
    published_mean: float = quantity("e", "Mean over the labels as published.")
    published_max: float = quantity("e", "Largest of the labels as published.")
    label_max: float = quantity("e", "Largest of the labels as compared, after the cleaning of the dataset.")
    predicted_mean: float = quantity("e", "Mean over the predictions.")
    predicted_max: float = quantity("e", "Largest of the predictions.")


class Outlier(Document):
    """One of the frames with the largest errors of a quantity."""

    name: str = Field(description="Name of the quantity.")
    unit: str = Field(description="Unit of the numbers.")
    split: str = Field(description="Subset.")
    frame: str = Field(description="Formula and origin.")
    material: str = Field(description="Reduced formula.")
    element: str | None = Field(None, description="Element of the worst atom, for quantities of atoms.")
    mae: float = quantity("see `unit`", "Mean absolute error over the components of the frame.")
    label: float = quantity("see `unit`", "Label of the worst component.")
    predicted: float = quantity("see `unit`", "Prediction of the worst component.")
    label_sum: float | None = quantity("e", "Largest component of |Σ_κ Z*_κ| of the label as published.", None)
    predicted_sum: float | None = quantity("e", "The same of the prediction.", None)


class IdentityCheck(Document):
    """One identity that every model must obey, tried on a few displaced frames."""

    name: str = Field(description="Short name.")
    formula: str = Field(description="The identity.")
    unit: str = Field(description="Unit of `residual`.")
    frames: int = quantity("1", "Frames that it was tried on.")
    residual: float | None = quantity("see `unit`", "Largest deviation of a component; null if it was not tried.", None)
    relative: float | None = quantity("1", "Largest deviation relative to the largest component of its frame.", None)
    tolerance: float = quantity("1", "Largest relative deviation allowed.")
    worst_frame: str | None = Field(None, description="Frame of the largest relative deviation.")
    passed: bool | None = Field(None, description="The verdict; null if it was not tried.")
    reason: str = Field("", description="Why it was not tried.")


class FrameProblem(Document):
    """A frame that was left out of the comparison."""

    frame: str = Field(description="Formula and origin.")
    split: str = Field(description="Subset.")
    kind: ProblemKind = Field(description="An element that the model does not know, or a failure.")
    reason: str = Field(description="The reason in words.")


class EvaluationDocument(Document):
    """A model against the labels of a dataset, with everything that is needed to do it again."""

    latest_version: ClassVar[int | None] = SCHEMA_VERSION

    schema_version: int = quantity("1", "Version of this schema.", SCHEMA_VERSION)
    task: Literal["evaluation"] = Field("evaluation", description="Name of the task.")
    model: ModelCard = Field(description="The model.")
    dataset_name: str = Field(description="Name of the dataset.")
    dataset_digest: str = Field(description="sha256 of the labeled frames.")
    labels: tuple[str, ...] = Field(description="Observables that were compared.")
    subsets: dict[str, SubsetEvaluation] = Field(description="Errors by subset.")
    heads: tuple[SubsetEvaluation, ...] = Field((), description="Errors by subset and head, where frames have heads.")
    paths: tuple[PathEvaluation, ...] = Field((), description="Polarization paths.")
    incomplete_paths: tuple[str, ...] = Field((), description="Paths that lack an end, which have no P_s.")
    elements: tuple[ElementEvaluation, ...] = Field((), description="Born effective charges by element.")
    sum_rules: tuple[SumRule, ...] = Field((), description="The acoustic sum rule of labels and predictions.")
    outliers: tuple[Outlier, ...] = Field((), description="The worst frames by quantity and subset.")
    identities: tuple[IdentityCheck, ...] = Field((), description="Physical identities, tried on a few frames.")
    problems: tuple[FrameProblem, ...] = Field((), description="Frames that were left out.")
    flags: tuple[Flag, ...] = Field((), description="What a reader must know before using the numbers.")
    baseline_definitions: dict[str, str] = Field(description="How each baseline was made.")
    settings: dict[str, Any] = Field(description="All settings of the evaluation, defaults included.")
    seed: int = quantity("1", "Seed of the forest, and of the choice and displacement of frames for identities.")
    directory: str | None = Field(None, description="Folder of tables and figures on the machine that wrote it.")
    wall_time: float = quantity("s", "Wall time.")
    code_version: str = Field(description="Version of fieldflows.")
    software: dict[str, str] = Field(description="Versions of packages that the numbers depend on.")
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC), description="Time of creation, UTC.")

    @property
    def obeys_identities(self) -> bool:
        """Whether no identity that was tried is violated."""
        return all(check.passed is not False for check in self.identities)
