"""What the Matbench evaluation leaves behind: predictions by fold, what was known beforehand, scores, worst rows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

from pydantic import Field

from fieldflows.schemas.artifact import ArtifactReference
from fieldflows.schemas.common import Document, Flag, quantity
from fieldflows.schemas.provenance import ModelCard

SCHEMA_VERSION = 1

Mode = Literal["fixed", "retrained", "corrected"]
Leakage = Literal["clean", "leaky", "unknown"]


class MatbenchScores(Document):
    """The four metrics of Matbench over some rows."""

    rows: int = quantity("1", "Rows that were compared.")
    mae: float = quantity("1", "Mean absolute error of n.")
    rmse: float = quantity("1", "Root mean square error of n.")
    mape: float = quantity("1", "Mean absolute error of n relative to the label, as a fraction.")
    max_error: float = quantity("1", "Largest absolute error of n.")


class Spread(Document):
    """One metric over the folds."""

    mean: float = quantity("1", "Mean over the folds.")
    std: float = quantity("1", "Standard deviation over the folds (of the population, as matbench has it).")
    min: float = quantity("1", "Least.")
    max: float = quantity("1", "Largest.")


class MatbenchScore(Document):
    """A predictor over the folds."""

    rows: int = quantity("1", "Rows in all.")
    folds: dict[str, MatbenchScores] = Field(description="Metrics by fold; folds without rows are not there.")
    over_folds: dict[str, Spread] = Field(description="Mean, spread and range over the folds, by metric.")
    median_error: float = quantity("1", "Median absolute error of n over all rows.")


class SeenBefore(Document):
    """What a model knew of the rows that it is judged by."""

    verdict: Leakage = Field(description="'clean', 'leaky', or 'unknown' (which counts as leaky).")
    reason: str = Field(description="What was looked at and what was found.")
    by_formula: tuple[str, ...] = Field((), description="Rows whose reduced formula the model was trained on.")
    by_structure: tuple[str, ...] | None = Field(
        None, description="Rows whose crystal it was trained on; null if the training data are not at hand."
    )
    dataset_digest: str | None = Field(None, description="Digest of the training data, as the model states it.")


class HeadChoice(Document):
    """How the correction head of one fold was chosen."""

    kind: Literal["none", "linear", "radial"] = Field(description="Kernel; 'none' if correcting did not help.")
    penalty: float | None = quantity("1", "Ridge penalty λ on standardized features.", None)
    length: float | None = quantity("1", "Length of the radial kernel relative to √(number of features).", None)
    rows: int = quantity("1", "Rows that it was fitted to: of other folds, and not trained on by the model.")
    formulas: int = quantity("1", "Reduced formulas among them.")
    features: int = quantity("1", "Features per crystal.")
    inner_mae: float | None = quantity("1", "Error of n of the choice, cross-validated by formula on these rows.", None)
    inner_mae_without: float | None = quantity("1", "The same without correction.", None)
    reason: str = Field("", description="Why there is no head.")


class FoldTrainingRecord(Document):
    """How the model of one fold was trained."""

    checkpoint: str = Field(description="Path of the checkpoint on the machine that trained it.")
    checkpoint_sha256: str = Field(description="Hash of the checkpoint.")
    checkpoint_file: ArtifactReference | None = Field(None, description="Where the checkpoint can be had.")
    dataset_digest: str = Field(description="Digest of the dataset that is left without the fold's materials.")
    configuration_digest: str = Field(description="Digest of the training configuration.")
    removed_formulas: int = quantity("1", "Formulas of the fold that the dataset held.")
    removed_frames: int = quantity("1", "Crystals that were taken out of it.")
    added_rows: int = quantity("1", "Cubic rows of the other folds that were added to it.", 0)
    train_frames: int = quantity("1", "Crystals trained on.")
    valid_frames: int = quantity("1", "Crystals that chose the epoch.")
    status: str = Field(description="Why the run ended.")
    epochs: int = quantity("1", "Complete epochs.")
    wall_time: float = quantity("s", "Time of training.")


class Replaced(Document):
    """A row for which the model gives no number."""

    mbid: str = Field(description="Identifier of the row.")
    reason: str = Field(description="Why there is none.")


class FoldResult(Document):
    """Predictions of one predictor for the rows of one fold."""

    mode: Mode = Field(description="How the predictor came about.")
    fold: int = quantity("1", "Number of the fold, from 0.")
    predictions: dict[str, float] = quantity("1", "Predicted n by identifier.")
    fallback: float = quantity("1", "What stands where the model gives no number: mean n of the other folds.")
    replaced: tuple[Replaced, ...] = Field((), description="Rows that got the fallback.")
    model: ModelCard = Field(description="The model.")
    seen: SeenBefore = Field(description="What the model knew of these rows.")
    training: FoldTrainingRecord | None = Field(None, description="How the model was trained, if for this fold.")
    head: HeadChoice | None = Field(None, description="The correction head, if there is one.")


class MatbenchFoldDocument(Document):
    """One fold of the task, done."""

    latest_version: ClassVar[int | None] = SCHEMA_VERSION

    schema_version: int = quantity("1", "Version of this schema.", SCHEMA_VERSION)
    task: Literal["matbench_fold"] = Field("matbench_fold", description="Name of the task.")
    key: str = Field(description="SHA-256 of everything that decides the result.")
    fold: int = quantity("1", "Number of the fold, from 0.")
    results: tuple[FoldResult, ...] = Field(description="One for each mode.")
    file_sha256: str = Field(description="SHA-256 of the Matbench file.")
    settings: dict[str, Any] = Field(description="All settings, defaults included.")
    wall_time: float = quantity("s", "Time that it took.")
    code_version: str = Field(description="Version of fieldflows.")
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC), description="Time of creation, UTC.")


class WorstRow(Document):
    """One of the rows with the largest errors."""

    mbid: str = Field(description="Identifier.")
    formula: str = Field(description="Reduced formula.")
    fold: int = quantity("1", "Fold that it judges in.")
    label: float = quantity("1", "n of the task.")
    predicted: float = quantity("1", "n of the model.")
    label_gap: float = quantity("eV", "Gap that belongs to the label by Moss's rule n⁴E_g = 95 eV.")
    predicted_gap: float = quantity("eV", "Gap that belongs to the prediction by the same rule.")
    reasons: tuple[str, ...] = Field(description="Codes: near_metal, gap_too_wide, gap_too_narrow, open_shell, ...")
    comment: str = Field(description="The reasons in words.")


class MethodReport(Document):
    """One predictor over all folds."""

    name: str = Field(description="What to call it.")
    mode: Mode = Field(description="How the predictor came about.")
    verdict: Leakage = Field(description="'clean' only if no fold's model knew anything of its rows.")
    fold_honest: bool = Field(description="Whether the number may stand beside those of the leaderboard.")
    reason: str = Field(description="What the verdict rests on.")
    all_rows: MatbenchScore = Field(description="All rows at hand.")
    moderate: MatbenchScore = Field(description="Rows with labels n ≤ 10.")
    clean_rows: MatbenchScore | None = Field(None, description="Rows of formulas that the model never saw.")
    other_structures: MatbenchScore | None = Field(
        None, description="Rows of crystals that it never saw, polymorphs of seen formulas among them."
    )
    seen_formulas: int | None = quantity("1", "Rows whose formula it saw; null if it does not say.", None)
    seen_structures: int | None = quantity("1", "Rows whose crystal it saw; null if that is not known.", None)
    replaced: tuple[Replaced, ...] = Field((), description="Rows that got the mean of the other folds.")
    worst: tuple[WorstRow, ...] = Field(description="The rows with the largest errors.")


class PublishedScore(Document):
    """A predictor of the leaderboard."""

    name: str = Field(description="Name on the leaderboard.")
    mae: float = quantity("1", "Published mean absolute error, mean over the folds.")
    mae_std: float | None = quantity("1", "Its standard deviation over the folds.", None)
    rmse: float | None = quantity("1", "Published root mean square error, mean over the folds.", None)
    mape: float | None = quantity("1", "Published relative error, mean over the folds, as a fraction.", None)
    max_error: float | None = quantity("1", "Published largest error, mean over the folds.", None)
    fold_honest: bool = Field(True, description="Whether nothing of a fold was learned from.")
    note: str = Field("", description="What to know about it.")
    same_rows: MatbenchScore | None = Field(
        None, description="Its published predictions, scored on the rows at hand; null if they are not."
    )


class MatbenchReport(Document):
    """The whole task: predictors beside the leaderboard."""

    latest_version: ClassVar[int | None] = SCHEMA_VERSION

    schema_version: int = quantity("1", "Version of this schema.", SCHEMA_VERSION)
    task: Literal["matbench"] = Field("matbench", description="Name of the task.")
    file_sha256: str = Field(description="SHA-256 of the Matbench file.")
    rows: int = quantity("1", "Rows at hand; the whole task has 4764.")
    complete: bool = Field(description="Whether all rows of the task are there.")
    methods: tuple[MethodReport, ...] = Field(description="The predictors.")
    dummy: MatbenchScore = Field(description="Mean n of the other folds, on the rows at hand.")
    leaderboard: tuple[PublishedScore, ...] = Field(description="Published numbers, on all rows.")
    flags: tuple[Flag, ...] = Field((), description="What a reader must know before using the numbers.")
    directory: str | None = Field(None, description="Folder of report, tables and figures where they were written.")
    code_version: str = Field(description="Version of fieldflows.")
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC), description="Time of creation, UTC.")
