"""What an evaluation writes: metrics.json, tables, figures and a readable report."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldflows.errors import InputError
from fieldflows.evaluation import figures as draw
from fieldflows.evaluation import tables
from fieldflows.evaluation.elements import published_charges, with_charges
from fieldflows.evaluation.paths import path_key
from fieldflows.physics.born_charges import acoustic_sum_residual
from fieldflows.schemas.evaluation import EvaluationDocument, SubsetEvaluation
from fieldflows.training.metrics import ALL_QUANTITIES, QUANTITIES, collect
from fieldflows.units import E_PER_A2_TO_UC_PER_CM2

if TYPE_CHECKING:
    from fieldflows.evaluation.run import Evaluation

METRICS_NAME = "metrics.json"
REPORT_NAME = "README.md"

TRAIN_SHARE = "a model that was trained on these frames is not judged by them"

LISTED = tuple(quantity.name for quantity in QUANTITIES if "off_diagonal" not in quantity.name)
"""Quantities whose worst frames stand in the report; outliers.csv has those of all."""

PROFILES = 8
"""Paths whose polarization is drawn along the way, those with the largest errors first."""


def write_report(result: Evaluation, directory: Path, figures: bool = True) -> None:
    """Write the report of an evaluation into a folder, which is made if needed.

    Files: README.md, metrics.json (the document), errors.csv, frames.csv, and as far as there is something to say
    elements.csv, outliers.csv, paths.csv, identities.csv, problems.csv and figures (PNG).

    Raises:
        InputError: If the folder cannot be written.
    """
    document = result.document
    try:
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document.to_json_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(directory / METRICS_NAME, text)
        for name, rows in _tables(result).items():
            if rows:
                write_atomically(directory / f"{name}.csv", tables.to_csv(rows))
        drawn = draw_figures(result, directory) if figures else {}
        write_atomically(directory / REPORT_NAME, report_text(document, drawn))
    except OSError as error:
        raise InputError(f"Cannot write to {directory}: {error.strerror}.", "Choose another folder (--out).") from error


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _tables(result: Evaluation) -> dict[str, list[dict[str, Any]]]:
    document = result.document
    return {
        "errors": tables.error_rows(document),
        "frames": tables.frame_rows(result.predicted),
        "elements": [item.model_dump() for item in document.elements],
        "outliers": [item.model_dump() for item in document.outliers],
        "paths": tables.path_rows(document),
        "identities": [item.model_dump() for item in document.identities],
        "problems": [item.model_dump() for item in document.problems],
    }


def draw_figures(result: Evaluation, directory: Path) -> dict[str, str]:
    """Draw all figures into a folder and return the name of each file with what it shows."""
    document, drawn = result.document, {}
    subsets = {split: result.predicted.subset(split) for split in document.subsets}
    found = {split: collect(*pair, ALL_QUANTITIES) for split, pair in subsets.items()}
    histograms = {}
    for quantity in ALL_QUANTITIES:
        series = {split: values[quantity.name][1:] for split, values in found.items() if quantity.name in values}
        if series:
            name = f"parity_{quantity.name}.png"
            draw.density_parity(series, quantity.symbol, quantity.unit, directory / name)
            drawn[name] = f"{quantity.symbol}: model against label"
            if quantity in QUANTITIES:
                histograms[quantity.name] = (quantity.symbol, quantity.unit, series)
    draw.distributions(histograms, directory / "distributions.png")
    drawn["distributions.png"] = "Distributions of labels and predictions"
    for split in dict.fromkeys(item.split for item in document.elements):
        name = f"elements_{split}.png"
        draw.element_errors([item for item in document.elements if item.split == split], directory / name)
        drawn[name] = f"Born effective charges by element, {split}"
    drawn |= _draw_sum_rule(subsets, directory) | _draw_paths(result, directory)
    return drawn


def _draw_sum_rule(subsets: dict[str, Any], directory: Path) -> dict[str, str]:
    charges = {split: with_charges(*pair) for split, pair in subsets.items()}
    charges = {split: members for split, members in charges.items() if members}
    if not charges:
        return {}
    draw.sum_rules(
        {s: np.array([acoustic_sum_residual(published_charges(item[0])) for item in m]) for s, m in charges.items()},
        {s: np.array([acoustic_sum_residual(item[2]) for item in m]) for s, m in charges.items()},
        directory / "sum_rule.png",
    )
    return {"sum_rule.png": "The acoustic sum rule of labels and predictions"}


def _draw_paths(result: Evaluation, directory: Path) -> dict[str, str]:
    paths = result.document.paths
    if not paths:
        return {}
    draw.spontaneous(paths, directory / "spontaneous_polarization.png")
    judged = [path for path in paths if path.split != "train"] or list(paths)
    judged = sorted(judged, key=lambda path: -path.distance)
    step = max(1, len(judged) // PROFILES)
    draw.path_profiles(
        [_profile(result, (path.source, path.path), np.array(path.label), path.material) for path in judged[::step]][
            :PROFILES
        ],
        directory / "path_profiles.png",
    )
    return {
        "spontaneous_polarization.png": "Spontaneous polarization of paths",
        "path_profiles.png": "Polarization along paths, from the largest error to the smallest",
    }


def _profile(result: Evaluation, key: tuple[str, str], along: np.ndarray, material: str) -> dict[str, Any]:
    """Return label and prediction along a path, projected on the label's P_s, as the path's own cells are oriented."""
    norm = float(np.linalg.norm(along))
    unit = along / norm if norm > 1e-9 else np.array([0.0, 0.0, 1.0])
    points = sorted(
        (int(frame.extra["path_index"]), float(frame.labels["polarization"] @ unit), float(p["polarization"] @ unit))
        for frame, p in zip(result.predicted.frames, result.predicted.predictions, strict=True)
        if path_key(frame) == key and "polarization" in p
    )
    index, label, predicted = (np.array(column) for column in zip(*points, strict=True))
    return {
        "title": material,
        "index": index,
        "label": label * E_PER_A2_TO_UC_PER_CM2,
        "predicted": predicted * E_PER_A2_TO_UC_PER_CM2,
    }


def report_text(document: EvaluationDocument, drawn: dict[str, str]) -> str:
    """Return the report in Markdown.

    Args:
        document: The evaluation.
        drawn: Figures beside the report, with what they show.
    """
    model = document.model
    lines = [
        f"# {model.name} on {document.dataset_name}",
        "",
        "| | |",
        "|---|---|",
        f"| Model | {model.name} ({model.backend}, {model.dtype}), sha256 `{model.sha256}` |",
        f"| Trained labels | {', '.join(model.trained_labels)} |",
        f"| Dataset | {document.dataset_name}, digest `{document.dataset_digest}` |",
        f"| Compared | {', '.join(document.labels)} |",
        f"| Made by | fieldflows {document.code_version}, {document.created_at:%Y-%m-%d %H:%M} UTC, "
        f"{document.wall_time:.0f} s, seed {document.seed} |",
        "",
    ]
    if document.flags:
        lines += ["## Read this first", "", *(f"- **{flag.code}**: {flag.message}" for flag in document.flags), ""]
    lines += ["## Errors", "", _baseline_text(document), ""]
    for subset in (*document.subsets.values(), *document.heads):
        lines += [f"### {_title(subset)}", "", _describe(subset), "", tables.error_table(subset), ""]
    lines += _paths_text(document) + _identities_text(document) + _problems_text(document) + _elements_text(document)
    if drawn:
        lines += ["## Figures", "", *(f"![{text}]({name})\n" for name, text in drawn.items())]
    return "\n".join(lines).rstrip() + "\n"


def _title(subset: SubsetEvaluation) -> str:
    return f"Subset {subset.split}" + (f", head {subset.head}" if subset.head else "")


def _describe(subset: SubsetEvaluation) -> str:
    text = f"{subset.frames} frames, {subset.materials} materials, {subset.atoms} atoms."
    if subset.seen_materials is not None:
        text += f" The model was trained on or selected by {subset.seen_materials} of these materials."
    if subset.split == "train":
        text += f" Training frames: {TRAIN_SHARE}."
    return text


def _baseline_text(document: EvaluationDocument) -> str:
    items = [f"*{name}*: {text}" for name, text in document.baseline_definitions.items()]
    return (
        "MAE and RMSE are over all components; beside each stand the errors of what can be said without the model: "
        + "; ".join(items)
        + ". Polarizations are compared modulo the quanta of each frame's cell."
    )


def _paths_text(document: EvaluationDocument) -> list[str]:
    if not document.paths and not document.incomplete_paths:
        return []
    lines = ["## Spontaneous polarization", ""]
    lines.append(
        "P_s = Σ_i [f_i(polar) − f_i(nonpolar)] a_i(polar)/Ω, not folded. Labels of frames are relative to the "
        "nonpolar end; 'as published' are those before that, modulo quanta. 'From Z*' is the estimate "
        "Σ_κ ½ [Z*_κ(polar) + Z*_κ(nonpolar)]·Δu_κ/Ω with the model's charges, and 'branch by Z*' the model's P_s plus "
        "the quanta that bring it closest to that estimate; no label takes part in either."
    )
    names = ("polarization", "polarization_raw", "spontaneous_polarization_norm", "spontaneous_polarization_folded",
             "spontaneous_polarization_guided_norm", "spontaneous_polarization_charges_norm")  # fmt: skip
    for split, subset in document.subsets.items():
        found = [subset.quantities[name] for name in names if name in subset.quantities]
        factors = [(item.symbol, factor) for item in found if (factor := item.factor("zero")) is not None]
        text = ", ".join(f"{factor:.2g} ({symbol})" for symbol, factor in factors)
        members = [path for path in document.paths if path.split == split]
        if members:
            folded = float(np.mean([path.folded_distance for path in members]))
            distance = float(np.mean([path.distance for path in members]))
            sure = [path for path in members if "path_large_step" not in path.flags]
            if 0 < len(sure) < len(members):
                text += (
                    f". Without the {len(members) - len(sure)} paths whose branch is unsure (path_large_step): mean "
                    f"|ΔP_s| {np.mean([path.distance for path in sure]):.3g} µC/cm²"
                )
            lines.append(
                f"- {split}: {len(members)} paths; mean |ΔP_s| {distance:.3g} µC/cm², modulo quanta {folded:.3g}. "
                f"RMSE of predicting zero divided by that of the model: {text}."
            )
    if document.incomplete_paths:
        lines.append(f"- Without one of their ends: {', '.join(document.incomplete_paths)}.")
    return [*lines, ""]


def _elements_text(document: EvaluationDocument) -> list[str]:
    lines: list[str] = []
    if document.sum_rules:
        lines += ["## Acoustic sum rule", "", "Largest component of |Σ_κ Z*_κ| per frame, in e.", ""]
        columns = ["subset", "frames", "labels as published: mean", "largest", "as compared: largest",
                   "model: mean", "largest"]  # fmt: skip
        rows = [
            [r.split, r.frames, r.published_mean, r.published_max, r.label_max, r.predicted_mean, r.predicted_max]
            for r in document.sum_rules
        ]
        lines += [tables.markdown(columns, rows), ""]
    for split in document.subsets:
        if any(item.split == split for item in document.elements):
            lines += [
                f"## Elements with the largest errors of Z*, {split}",
                "",
                tables.element_table(document, split),
                "",
            ]
        names = dict.fromkeys(item.name for item in document.outliers if item.split == split)
        for name in names:
            if name in LISTED:
                symbol = document.subsets[split].quantities[name].symbol
                lines += [f"### Worst frames, {symbol}, {split}", "", tables.outlier_table(document, split, name), ""]
    return lines


def _identities_text(document: EvaluationDocument) -> list[str]:
    if not document.identities:
        return []
    return [
        "## Identities",
        "",
        "Every model of F(R, 𝓔) obeys these, whatever it was trained on. Tried on frames displaced at random; "
        "deviations relative to the largest component.",
        "",
        tables.identity_table(document),
        "",
    ]


def _problems_text(document: EvaluationDocument) -> list[str]:
    if not document.problems:
        return []
    shown = [f"- {item.frame} ({item.split}): {item.reason}" for item in document.problems[:20]]
    more = len(document.problems) - len(shown)
    return ["## Frames left out", "", *shown, *([f"- and {more} more, see problems.csv"] if more > 0 else []), ""]
