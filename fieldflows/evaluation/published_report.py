"""What a comparison with published paths writes: tables, figures, and a readable report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fieldflows.errors import InputError
from fieldflows.evaluation import branch_figures as draw
from fieldflows.evaluation.published_paths import GROUPS
from fieldflows.evaluation.report import METRICS_NAME, REPORT_NAME, write_atomically
from fieldflows.evaluation.tables import markdown, to_csv
from fieldflows.schemas.ferroelectric import PublishedPath, PublishedPathsDocument

PAPER = {
    "P, components, modulo quanta": "RMSE 2.7 (direct), 4.9 (MP-0)",
    "|P_s|, difference of P": "RMSE 6.4 (direct), 7.6 (MP-0)",
}
"""Errors of Martin et al., PRX Intelligence 1, 013006 (2026), whose frames are divided, not compounds, in µC/cm²."""

WELL_KNOWN = {
    "BaTiO3": ("mp-5986", 45.90),
    "LiNbO3": ("", 84.53),
    "KNbO3": ("mp-4342", 48.67),
    "PbTiO3": ("mp-20459", 116.76),
    "BiFeO3": ("mp-24942", 124.53),
    "AlN": ("", 133.01),
    "HfO2": ("mp-685097", 53.42),
}
"""Crystals of the table, by formula: identifier of the polar crystal if several are published, and P_s in µC/cm²."""

SPLIT = (
    "The paper divides frames: other frames of the same path, and other paths of the same compound, are among those "
    "that its models were trained on. Its numbers tell how well a model interpolates between neighbors, those here how "
    "it does on compounds that it has not met."
)


def write_published_report(document: PublishedPathsDocument, directory: Path, figures: bool = True) -> None:
    """Write README.md, metrics.json, errors.csv, paths.csv and figures into a folder, which is made if needed.

    Raises:
        InputError: If the folder cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document.to_json_dict(), ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(directory / METRICS_NAME, text)
        write_atomically(directory / "errors.csv", to_csv([item.model_dump() for item in document.errors]))
        write_atomically(directory / "paths.csv", to_csv([path_row(item) for item in document.paths]))
        drawn = _draw(document, directory) if figures else {}
        write_atomically(directory / REPORT_NAME, published_text(document, drawn))
    except OSError as error:
        raise InputError(f"Cannot write to {directory}: {error.strerror}.", "Choose another folder (--out).") from error


def path_row(item: PublishedPath) -> dict[str, Any]:
    """Return the row of a path in a table, flat."""
    found = item.predicted
    return {
        "path": item.path,
        "formula": item.formula,
        "polar_id": item.polar_id,
        "nonpolar_id": item.nonpolar_id,
        "seen": item.seen,
        "rejected": item.rejected,
        "published": item.label_norm,
        "charges": found.ps_charges_norm,
        "branch": found.ps_branch_norm,
        "difference": found.ps_difference_norm,
        "vector_error_charges": float(np.linalg.norm(np.subtract(found.ps_charges, item.label))),
        "uncertainty": found.uncertainty,
        "charges_spread": found.charges_spread,
        "integral_error": found.integral_error,
        "status": found.status,
        "flags": " ".join(flag.code for flag in found.flags),
        "label_flags": " ".join(item.label_flags),
    }


def groups_of(paths: Sequence[PublishedPath]) -> dict[str, list[PublishedPath]]:
    """Return the paths that count, by whether the model was trained on their formulas."""
    names = ("formulas not trained on", "formulas trained on") if any(p.seen != "unknown" for p in paths) else ("all",)
    chosen = {name: [p for p in paths if p.seen in GROUPS[name] and not p.rejected] for name in names}
    return {name: items for name, items in chosen.items() if items}


def _draw(document: PublishedPathsDocument, directory: Path) -> dict[str, str]:
    groups = groups_of(document.paths)
    kept = [item for item in document.paths if not item.rejected]
    if not kept:
        return {}
    draw.polarization_parity(groups, directory / "parity_polarization.png")
    draw.spontaneous_parity(groups, directory / "parity_spontaneous_polarization.png")
    draw.published_fans(kept, directory / "fan.png")
    return {
        "P along the paths, model against published": "parity_polarization.png",
        "|P_s|, model against published; bars: spread of the models": "parity_spontaneous_polarization.png",
        "P along the normalized path": "fan.png",
    }


def published_text(document: PublishedPathsDocument, drawn: dict[str, str]) -> str:
    """Return the report in Markdown."""
    kept = [item for item in document.paths if not item.rejected]
    lines = [
        f"# {document.model.name} on published polarization paths",
        "",
        f"{len(document.paths)} paths, {len(document.paths) - len(kept)} of them rejected since they jump, "
        f"{len(document.failures)} failed. Norms from the published polarizations agree with the published norms to "
        f"{document.largest_norm_error:.1g} µC/cm².",
        "",
        error_table(document),
        "",
        SPLIT,
        "",
        "## Well-known crystals",
        "",
        well_known_table(document.paths),
        "",
        "## What the uncertainty is worth",
        "",
        *_trust_lines(kept),
    ]
    for title, name in drawn.items():
        lines += ["", f"## {title}", "", f"![{title}]({name})"]
    return "\n".join(lines) + "\n"


def error_table(document: PublishedPathsDocument) -> str:
    """Return the errors by group as a Markdown table."""
    rows = [
        (
            item.group, f"{item.n_paths} ({item.n_formulas})", item.compared, f"{item.mae:.2f} ({item.rmse:.2f})",
            f"{item.zero_mae:.2f} ({item.zero_rmse:.2f})", PAPER.get(item.compared, ""),
        )
        for item in document.errors
    ]  # fmt: skip
    columns = ("group", "paths (formulas)", "compared, µC/cm²", "MAE (RMSE)", "zero", "paper, divided by frames")
    return markdown(columns, rows, left=3)


def well_known_table(paths: Sequence[PublishedPath]) -> str:
    """Return published and calculated P_s of well-known crystals as a Markdown table, in µC/cm²."""
    from pymatgen.core import Composition

    rows = []
    for formula, (identifier, value) in WELL_KNOWN.items():
        name = Composition(formula).reduced_formula
        chosen = [p for p in paths if p.formula == name and (not identifier or p.polar_id == identifier)]
        if not chosen:
            rows.append((formula, "–", value, *["–"] * 6))
            continue
        item = min(chosen, key=lambda p: abs(p.label_norm - value))
        found = item.predicted
        spread = "–" if found.uncertainty is None else f"{found.uncertainty:.0f}"
        rows.append(
            (
                formula, f"{found.nonpolar_spacegroup_symbol} to {found.spacegroup_symbol}", f"{value:.2f}",
                f"{item.label_norm:.2f}", f"{found.ps_charges_norm:.1f}", spread, f"{found.ps_branch_norm:.1f}",
                f"{found.ps_difference_norm:.1f}", item.seen,
            )
        )  # fmt: skip
    columns = ("crystal", "path", "published", "from published P", "Z* of the ends", "± models", "branch by Z*",
               "difference of P", "formula seen")  # fmt: skip
    return markdown(columns, rows, left=2)


def _trust_lines(paths: Sequence[PublishedPath]) -> list[str]:
    """Return how errors of P_s go with status and uncertainty, on formulas that the model was not trained on."""
    unseen = [item for item in paths if item.seen != "train"]
    if not unseen:
        return ["All formulas were trained on."]
    rows = []

    def add(name: str, chosen: list[PublishedPath]) -> None:
        if chosen:
            apart = [abs(item.predicted.ps_charges_norm - item.label_norm) for item in chosen]
            rows.append((name, len(chosen), f"{np.mean(apart):.1f}", f"{np.median(apart):.1f}", f"{max(apart):.1f}"))

    add("all", unseen)
    for status in ("ok", "ambiguous"):
        add(f"status {status}", [item for item in unseen if item.predicted.status == status])
    known = [item for item in unseen if item.predicted.uncertainty is not None]
    for low, high in ((0.0, 2.0), (2.0, 5.0), (5.0, 1e9)):
        name = (
            f"models within {high:g} µC/cm²" if low == 0 else f"{low:g} to {high:g}" if high < 1e9 else f"above {low:g}"
        )
        add(name, [item for item in known if low <= (item.predicted.uncertainty or 0.0) < high])
    columns = ("formulas not trained on", "paths", "mean error of P_s", "median", "largest")
    return [markdown(columns, rows)]
