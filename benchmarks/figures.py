"""Figures of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.response import ANY, SYMMETRIC
from benchmarks.sample import FITTED_FROM

COLORS = {ANY: "#4C78A8", SYMMETRIC: "#F58518", "step": "#54A24B", "baseline": "#7F7F7F"}
TITLES = {
    "response": "E, F, σ, P, Z*, α",
    "ionic": "pipeline to ε_ion",
    "training": "training step",
    "dynamics": "step of dynamics",
}


def ratios(sections: dict[str, Any], path: Path | None = None) -> Figure:
    """Draw by how much each task is faster than the baseline, with the spread over the repeats."""
    shown = [name for name in TITLES if name in sections]
    counts = [len({t["tag"] for t in sections[name]["timings"]}) for name in shown]
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(shown), sharey=True, width_ratios=counts))
    for axis, name in zip(axes, shown, strict=True):
        timings = sections[name]["timings"]
        tags = list(dict.fromkeys(t["tag"] for t in timings))
        names = list(dict.fromkeys(t["variant"] for t in timings))
        width = 0.8 / len(names)
        for k, variant in enumerate(names):
            chosen = {t["tag"]: t for t in timings if t["variant"] == variant}
            values = np.array([chosen[tag]["ratio"] for tag in tags])
            spread = np.array([[chosen[tag]["ratio_low"], chosen[tag]["ratio_high"]] for tag in tags]).T
            at = np.arange(len(tags)) + (k - (len(names) - 1) / 2) * width
            color = COLORS.get(variant, COLORS["step"])
            axis.bar(at, values, width, color=color, alpha=1.0 if variant in COLORS or not k else 0.55, label=variant)
            axis.vlines(at, *spread, color="black", linewidth=1)
            for x, value, top in zip(at, values, spread[1], strict=True):
                axis.annotate(f"{value:.1f}", (x, top), (0, 2), textcoords="offset points", ha="center", fontsize=7)
        axis.set_xticks(range(len(tags)), tags)
        axis.set_title(TITLES[name], fontsize=10)
        axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
        axis.spines[["top", "right"]].set_visible(False)
        if name in ("response", "dynamics"):
            axis.legend(fontsize=7, frameon=False, loc="upper left")
    axes[0].set_yscale("log")
    axes[0].set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    axes[0].set_ylim(0.8, None)
    axes[0].set_ylabel("times faster than the baseline")
    return _saved(figure, path)


def growth(section: dict[str, Any], path: Path | None = None) -> Figure:
    """Draw time and memory of the pipeline against the number of atoms."""
    records = section["records"]
    atoms = np.array([r["atoms"] for r in records])
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    seconds = np.array([r["cpu_seconds"] for r in records])
    share = np.array([r["displacements"] / (3 * r["atoms"]) for r in records])
    points = left.scatter(atoms, seconds, c=share, s=14, cmap="viridis_r", vmin=0, vmax=1, label="with symmetry")
    figure.colorbar(points, ax=left, label="products for the Hessian / 3n")
    both = [(r["atoms"], r["beside"]["baseline_seconds"]) for r in records if "beside" in r]
    if both:
        left.scatter(*np.transpose(both), s=16, marker="x", color=COLORS["baseline"], label="baseline")
    power = section["summary"].get("exponent")
    if power is not None:
        fitted = atoms >= FITTED_FROM
        level = np.exp(np.mean(np.log(seconds[fitted]) - power * np.log(atoms[fitted])))
        x = np.array([FITTED_FROM, atoms.max()])
        left.plot(x, level * x**power, color="black", linewidth=1, label=f"atoms$^{{{power:.2f}}}$")
    left.set(xscale="log", yscale="log", xlabel="atoms in the primitive cell", ylabel="processor time (s)")
    left.legend(fontsize=7, frameon=False)
    right.step(atoms, np.array([r["peak_bytes"] for r in records]) / 1e9, where="post", color=COLORS[ANY])
    right.set(xscale="log", xlabel="atoms in the largest cell so far", ylabel="peak memory of the process (GB)")
    right.set_ylim(0, None)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return _saved(figure, path)


def _saved(figure: Figure, path: Path | None) -> Figure:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # without the version of matplotlib, so that the same numbers give the same file
        figure.savefig(path, dpi=130, metadata={"Software": None})
    return figure
