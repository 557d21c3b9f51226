"""Tables of an evaluation: rows for CSV files, and Markdown for the report."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fieldflows.schemas.evaluation import EvaluationDocument, QuantityEvaluation, SubsetEvaluation
from fieldflows.training.metrics import ALL_QUANTITIES, collect

if TYPE_CHECKING:
    from fieldflows.evaluation.predict import Predicted

Row = dict[str, Any]


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV text with a header; missing values are empty."""
    buffer = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]], left: int = 1) -> str:
    """Return a Markdown table whose first columns are left-aligned and the others right-aligned."""
    lines = ["| " + " | ".join(columns) + " |"]
    lines.append("|" + "".join("---|" if k < left else "---:|" for k in range(len(columns))))
    lines += ["| " + " | ".join(_cell(value).replace("|", "\\|") for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def error_rows(document: EvaluationDocument) -> list[Row]:
    """Return one row per subset, head, quantity and predictor."""
    rows = []
    for subset in (*document.subsets.values(), *document.heads):
        for name, item in subset.quantities.items():
            for predictor, values in (("model", item.model), *item.baselines.items()):
                rows.append(
                    {
                        "split": subset.split,
                        "head": subset.head or "",
                        "quantity": name,
                        "unit": item.unit,
                        "predictor": predictor,
                        **values.model_dump(),
                        "count": item.count,
                        "label_mean": item.label_mean,
                        "label_spread": item.label_spread,
                    }
                )
    return rows


def frame_rows(predicted: Predicted) -> list[Row]:
    """Return one row per frame with its mean absolute error of every quantity."""
    rows = []
    for frame, prediction in zip(predicted.frames, predicted.predictions, strict=True):
        row: Row = {
            "split": frame.split,
            "material": frame.material,
            "source": frame.source,
            "source_index": frame.source_index,
            "atoms": len(frame),
            "flags": " ".join(frame.flags),
        }
        for name, (quantity, reference, found) in collect([frame], [prediction], ALL_QUANTITIES).items():
            unit = "" if quantity.unit == "1" else f" ({quantity.unit})"
            row[f"mae_{name}{unit}"] = float(abs(found - reference).mean())
        rows.append(row)
    return rows


def path_rows(document: EvaluationDocument) -> list[Row]:
    """Return one row per path, vectors by component."""
    rows = []
    for item in document.paths:
        row = item.model_dump()
        for name in ("label", "predicted", "from_charges", "guided"):
            vector = row.pop(name) or (None, None, None)
            row.update({f"{name}_{axis}": value for axis, value in zip("xyz", vector, strict=True)})
        rows.append(row)
    return rows


def error_table(subset: SubsetEvaluation) -> str:
    """Return the errors of a subset as Markdown, every baseline beside the model: MAE (RMSE)."""
    names = list(dict.fromkeys(name for item in subset.quantities.values() for name in item.baselines))
    columns = ["quantity", "unit", "values", "label spread", "MAE", "RMSE", "R²", *(f"{n}: MAE (RMSE)" for n in names)]
    rows = [
        [item.symbol, item.unit, item.count, item.label_spread, item.model.mae, item.model.rmse,
         None if item.model.r2 is None else f"{item.model.r2:.3f}", *(_baseline(item, name) for name in names)]
        for item in subset.quantities.values()
    ]  # fmt: skip
    return markdown(columns, rows, left=2)


def _baseline(item: QuantityEvaluation, name: str) -> str | None:
    if name not in item.baselines:
        return None
    values = item.baselines[name]
    return f"{values.mae:.4g} ({values.rmse:.4g})"


def element_table(document: EvaluationDocument, split: str, number: int = 20) -> str:
    """Return the elements with the largest errors of Z* in a subset as Markdown."""
    chosen = [item for item in document.elements if item.split == split][:number]
    return markdown(
        ["element", "atoms", "materials", "label: mean tr Z*/3", "spread", "model: mean", "MAE diagonal",
         "that of medians", "MAE off-diagonal", "worst frame", "error there"],
        [[item.element, item.atoms, item.materials, item.label_mean, item.label_spread, item.predicted_mean,
          item.mae_diagonal, item.baseline_mae_diagonal, item.mae_off_diagonal, item.worst_frame, item.worst_error]
         for item in chosen],
    )  # fmt: skip


def outlier_table(document: EvaluationDocument, split: str, name: str, number: int = 10) -> str:
    """Return the worst frames of a quantity in a subset as Markdown, with the sum rule where there are charges."""
    chosen = [item for item in document.outliers if item.split == split and item.name == name][:number]
    charges = any(item.label_sum is not None for item in chosen)
    columns = ["frame", *(["element"] if charges else []), "MAE", "label of the worst component", "model"]
    columns += ["∣Σ Z*∣ of the label", "of the model"] if charges else []
    rows = []
    for item in chosen:
        row = [item.frame, *([item.element] if charges else []), item.mae, item.label, item.predicted]
        rows.append(row + ([item.label_sum, item.predicted_sum] if charges else []))
    return markdown(columns, rows)


def identity_table(document: EvaluationDocument) -> str:
    """Return the identities with their verdict as Markdown."""
    return markdown(
        ["identity", "unit", "frames", "largest deviation", "relative", "allowed", "verdict"],
        [[item.formula, item.unit, item.frames, item.residual, item.relative, item.tolerance, verdict(item.passed)]
         for item in document.identities],
        left=2,
    )  # fmt: skip


def verdict(passed: bool | None) -> str:
    """Return the verdict of an identity in a word or two."""
    return "not tried" if passed is None else "holds" if passed else "**violated**"
