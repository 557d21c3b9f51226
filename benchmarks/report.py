"""Results of the benchmarks as JSON and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table

RESULTS = Path("benchmarks/results/speed.json")


def load(path: Path) -> dict[str, Any]:
    """Return the sections of a report; none if there is no file."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def update(path: Path, name: str, section: dict[str, Any]) -> None:
    """Replace one section of a report."""
    sections = load(path) | {name: section}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(sorted(sections.items())), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def joined(before: dict[str, Any] | None, section: dict[str, Any]) -> dict[str, Any]:
    """Return a section of timings with those of an earlier one for other crystals, if its settings were the same."""
    if before is None or before["settings"] != section["settings"] or "timings" not in section:
        return section
    new = {timing["tag"] for timing in section["timings"]}
    kept = [timing for timing in before["timings"] if timing["tag"] not in new]
    return {**section, "timings": sorted(kept + section["timings"], key=lambda t: (t["n_atoms"], t["tag"]))}


def table(section: dict[str, Any]) -> Table:
    """Return the timings of a section as a table for the terminal."""
    settings = section["settings"]
    result = Table(
        title=", ".join(f"{key} {value}" for key, value in settings.items()),
        caption="ratio: median over interleaved repeats of baseline / fieldflows (least to greatest)",
    )
    for name in ("task", "crystal", "atoms", "variant", "baseline (ms)", "fieldflows (ms)", "ratio", "differs by"):
        result.add_column(name, justify="left" if name in ("task", "crystal", "variant") else "right")
    for item in section["timings"]:
        rows = item["baseline_rows"]
        result.add_row(
            item["task"],
            f"{item['tag']} {item['formula']}",
            str(item["n_atoms"]),
            item["variant"],
            f"{item['baseline_ms']:.1f}" + (f" ({rows[0]} of {rows[1]} rows)" if rows else ""),
            f"{item['product_ms']:.1f}",
            f"{item['ratio']:.2f} ({item['ratio_low']:.2f} to {item['ratio_high']:.2f})",
            f"{item['difference']:.0e}",
        )
    return result


def precision_table(section: dict[str, Any]) -> Table:
    """Return the errors of single precision as a table for the terminal."""
    result = Table(title="errors of float32 against float64: largest relative error of a component, by crystal")
    for name in ("model", "observable", "median", "largest", "largest absolute"):
        result.add_column(name, justify="left" if name in ("model", "observable") else "right")
    for item in section["models"]:
        for name, error in item["errors"].items():
            absolute = f"{error['absolute']:.0e} {error['unit']}" + ("/atom" if name == "energy" else "")
            row = (f"{error['relative']:.0e}", f"{error['relative_max']:.0e}", absolute)
            result.add_row(item["model"], name, *row)
    return result
