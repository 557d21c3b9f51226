"""The report of a Matbench evaluation: a page, tables, figures, and results in Matbench's own form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldflows.artifacts import replacing
from fieldflows.evaluation.matbench.gather import predictions_of
from fieldflows.evaluation.matbench.published import results_json
from fieldflows.evaluation.matbench.scores import METRICS, fold_key
from fieldflows.evaluation.tables import markdown, to_csv
from fieldflows.schemas.matbench import (
    FoldResult,
    MatbenchFoldDocument,
    MatbenchReport,
    MatbenchScore,
    MethodReport,
)

if TYPE_CHECKING:
    from fieldflows.datasets.matbench import MatbenchEntry

LISTED = 20
"""Rows with the largest errors that the page shows per predictor."""


def write_report(
    report: MatbenchReport,
    entries: Sequence[MatbenchEntry],
    folds: Sequence[MatbenchFoldDocument],
    directory: str | Path,
    figures: bool = True,
) -> MatbenchReport:
    """Write page, tables, figures and result files into a folder, and return the report with the folder in it.

    Args:
        report: What was found.
        entries: All rows at hand.
        folds: Documents of the folds.
        directory: Folder; made if it is not there.
        figures: Draw parity plots.

    Raises:
        ArtifactError: If the folder cannot be written.
    """
    target = Path(directory).expanduser().resolve()
    report = report.model_copy(update={"directory": str(target)})
    drawn = {}
    _write(target / "report.json", json.dumps(report.to_json_dict(), indent=1, ensure_ascii=False) + "\n")
    _write(target / "scores.csv", to_csv(score_rows(report)))
    _write(target / "predictions.csv", to_csv(prediction_rows(report, entries, folds)))
    _write(
        target / "worst.csv", to_csv([{"predictor": m.name, **_flat(row)} for m in report.methods for row in m.worst])
    )
    for method in report.methods:
        content = _results(report, method, entries, folds)
        _write(target / f"results_{method.mode}.json", json.dumps(content) + "\n")
        if figures:
            drawn[f"parity_{method.mode}.png"] = f"{method.name}: predicted against labeled n"
            _draw(method, entries, folds, target / f"parity_{method.mode}.png")
    _write(target / "README.md", report_text(report, folds, drawn))
    return report


def _write(path: Path, text: str) -> None:
    with replacing(path) as handle:
        handle.write(text.encode("utf-8"))


def _flat(row: Any) -> dict[str, Any]:
    values: dict[str, Any] = row.model_dump(mode="json")
    return {**values, "reasons": " ".join(values["reasons"])}


def _results(
    report: MatbenchReport,
    method: MethodReport,
    entries: Sequence[MatbenchEntry],
    folds: Sequence[MatbenchFoldDocument],
) -> dict[str, Any]:
    predictions = predictions_of(folds, method.mode)
    labels = {entry.mbid: entry.n for entry in entries if entry.mbid in predictions}
    parameters = {
        fold_key(item.fold): {
            "model_sha256": item.model.sha256,
            "verdict": item.seen.verdict,
            "head": None if item.head is None else item.head.to_json_dict(),
        }
        for item in _results_of(folds, method.mode)
    }
    notes = {
        "mode": method.mode,
        "fold_honest": method.fold_honest,
        "verdict": method.verdict,
        "file_sha256": report.file_sha256,
        "software": f"fieldflows {report.code_version}",
    }
    return results_json(method.name, labels, predictions, parameters, notes)


def _results_of(folds: Sequence[MatbenchFoldDocument], mode: str) -> list[FoldResult]:
    return [item for document in folds for item in document.results if item.mode == mode]


def _draw(
    method: MethodReport, entries: Sequence[MatbenchEntry], folds: Sequence[MatbenchFoldDocument], path: Path
) -> None:
    from fieldflows.evaluation.matbench.figures import parity_with_inset

    predictions = predictions_of(folds, method.mode)
    rows = [entry for entry in entries if entry.mbid in predictions]
    seen = {name for item in _results_of(folds, method.mode) for name in item.seen.by_formula}
    mae = method.all_rows.over_folds["mae"]
    parity_with_inset(
        np.array([entry.n for entry in rows]),
        np.array([predictions[entry.mbid] for entry in rows]),
        np.array([entry.mbid in seen for entry in rows]),
        f"{method.name} ({method.verdict})",
        f"MAE {mae.mean:.3f} ± {mae.std:.3f}, median error {method.all_rows.median_error:.3f}",
        path,
    )


def score_rows(report: MatbenchReport) -> list[dict[str, Any]]:
    """Return one row per predictor, set of rows, and fold, with the folds' mean and spread besides."""
    rows: list[dict[str, Any]] = []
    for method in report.methods:
        parts = {
            "all": method.all_rows,
            "n <= 10": method.moderate,
            "formulas not seen": method.clean_rows,
            "crystals not seen": method.other_structures,
        }
        for part, found in parts.items():
            rows += [] if found is None else _score_rows(method.name, method.verdict, part, found)
    rows += _score_rows("dummy", "clean", "all", report.dummy)
    for item in report.leaderboard:
        if item.same_rows is not None:
            rows += _score_rows(f"{item.name} (published)", "", "all", item.same_rows)
    return rows


def _score_rows(name: str, verdict: str, part: str, found: MatbenchScore) -> list[dict[str, Any]]:
    base = {"predictor": name, "verdict": verdict, "rows of": part}
    rows = [{**base, "fold": fold, **item.model_dump(mode="json")} for fold, item in found.folds.items()]
    for kind in ("mean", "std"):
        values = {metric: getattr(found.over_folds[metric], kind) for metric in METRICS}
        rows.append({**base, "fold": kind, "rows": found.rows, **values})
    return rows


def prediction_rows(
    report: MatbenchReport, entries: Sequence[MatbenchEntry], folds: Sequence[MatbenchFoldDocument]
) -> list[dict[str, Any]]:
    """Return one row per crystal: identifier, formula, fold, label, and n of each predictor."""
    from fieldflows.evaluation.matbench.folds import formula_of

    columns = {method.mode: predictions_of(folds, method.mode) for method in report.methods}
    return [
        {
            "mbid": entry.mbid,
            "formula": formula_of(entry),
            "fold": entry.fold,
            "n": entry.n,
            **{mode: values.get(entry.mbid) for mode, values in columns.items()},
        }
        for entry in entries
        if any(entry.mbid in values for values in columns.values())
    ]


def _cell(found: MatbenchScore | None, metric: str = "mae") -> str | None:
    if found is None:
        return None
    values = found.over_folds[metric]
    return f"{values.mean:.3f} ± {values.std:.3f}"


def method_table(report: MatbenchReport) -> str:
    """Return the own predictors as Markdown: mean ± standard deviation over the folds."""
    columns = ["predictor", "verdict", "rows", "MAE", "RMSE", "MAPE", "max error", "median error", "MAE, n ≤ 10",
               "formulas not seen: rows", "MAE", "crystals not seen: rows", "MAE"]  # fmt: skip
    rows: list[list[Any]] = []
    for item in report.methods:
        found = item.all_rows
        clean, other = item.clean_rows, item.other_structures
        rows.append(
            [item.name, item.verdict, found.rows, *(_cell(found, metric) for metric in METRICS),
             f"{found.median_error:.3f}", _cell(item.moderate), None if clean is None else clean.rows, _cell(clean),
             None if other is None else other.rows, _cell(other)]
        )  # fmt: skip
    found = report.dummy
    rows.append(["dummy (mean of the other folds)", "clean", found.rows, *(_cell(found, m) for m in METRICS),
                 f"{found.median_error:.3f}", None, None, None, None, None])  # fmt: skip
    return markdown(columns, rows, left=2)


def leaderboard_table(report: MatbenchReport) -> str:
    """Return published numbers as Markdown; beside each the same predictions on the rows at hand."""
    columns = ["predictor", "remark", "MAE, all 4764 rows", "RMSE", "MAPE", f"MAE on these {report.rows} rows",
               "median error on these"]  # fmt: skip
    rows: list[tuple[float, list[Any]]] = []
    for item in report.leaderboard:
        spread = "" if item.mae_std is None else f" ± {item.mae_std:.3f}"
        note = item.note if item.fold_honest else f"**not fold-honest**: {item.note}"
        same = item.same_rows
        own = [_cell(same), None if same is None else f"{same.median_error:.3f}"]
        rows.append((item.mae, [item.name, note, f"{item.mae:.4g}{spread}", item.rmse, item.mape, *own]))
    for method in report.methods:
        found = method.all_rows
        note = f"this evaluation, {'fold-honest' if method.fold_honest else f'**{method.verdict}**'}"
        own = [_cell(found), f"{found.median_error:.3f}"]
        whole: list[Any] = [_cell(found), *(found.over_folds[metric].mean for metric in ("rmse", "mape"))]
        if not report.complete:
            whole = [None, None, None]
        # among the published ones only if it is over the same rows
        place = found.over_folds["mae"].mean if report.complete else 0.0
        rows.append((place, [f"**{method.name}**", note, *whole, *own]))
    return markdown(columns, [row for _, row in sorted(rows, key=lambda pair: pair[0])], left=2)


def worst_table(method: MethodReport, number: int = LISTED) -> str:
    """Return the rows with the largest errors as Markdown."""
    return markdown(
        ["row", "formula", "reasons", "n, label", "n, predicted"],
        [[row.mbid, row.formula, row.comment, row.label, row.predicted] for row in method.worst[:number]],
        left=3,
    )


def report_text(report: MatbenchReport, folds: Sequence[MatbenchFoldDocument], drawn: dict[str, str]) -> str:
    """Return the page in Markdown.

    Args:
        report: What was found.
        folds: Documents of the folds.
        drawn: Figures beside the page, with what they show.
    """
    lines = [
        "# matbench_dielectric",
        "",
        f"{report.rows} rows of the file with sha256 `{report.file_sha256}`, official folds; made by fieldflows "
        f"{report.code_version}, {report.created_at:%Y-%m-%d %H:%M} UTC. Errors of n; mean ± standard deviation over "
        "the folds.",
        "",
    ]
    if report.flags:
        lines += ["## Read this first", "", *(f"- **{flag.code}**: {flag.message}" for flag in report.flags), ""]
    lines += ["## Predictors", "", method_table(report), ""]
    lines += [f"- {item.name}: {item.verdict}. {item.reason}" for item in report.methods]
    lines += ["", "## Beside the leaderboard", "", leaderboard_table(report), ""]
    lines += _folds_text(folds)
    if drawn:
        lines += ["## Figures", "", *(f"![{text}]({name})\n" for name, text in drawn.items())]
    for method in report.methods:
        if method.worst:
            lines += [f"## Largest errors of {method.name}", "", worst_table(method), ""]
    lines += [
        "Gaps in the last tables are what belongs to an index by Moss's rule n⁴E_g = 95 eV, none is computed.",
        "",
    ]
    return "\n".join(lines)


def _folds_text(folds: Sequence[MatbenchFoldDocument]) -> list[str]:
    """Return how the models and heads of the folds came about."""
    lines: list[str] = []
    trained = [item for document in folds for item in document.results if item.training and item.mode != "corrected"]
    if trained:
        columns = [
            "fold",
            "taken out: formulas",
            "crystals",
            "rows added",
            "trained on",
            "chosen by",
            "epochs",
            "minutes",
            "ended by",
        ]
        rows = [
            [item.fold, t.removed_formulas, t.removed_frames, t.added_rows, t.train_frames, t.valid_frames, t.epochs,
             f"{t.wall_time / 60:.1f}", t.status]
            for item in trained if (t := item.training) is not None
        ]  # fmt: skip
        lines += ["## Models of the folds", "", markdown(columns, rows), ""]
    heads = [(item.fold, item.head) for document in folds for item in document.results if item.head is not None]
    if heads:
        columns = ["fold", "head", "λ", "ℓ", "rows", "features", "MAE, inner cross-validation", "without head"]
        rows = [
            [fold, h.kind, h.penalty, h.length, h.rows, h.features, h.inner_mae, h.inner_mae_without]
            for fold, h in heads
        ]
        lines += ["## Heads of the folds", "", markdown(columns, rows, left=2), ""]
    return lines
