"""Figures of a training run.  They are drawn without a display and need no state of matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = {"train": "#9aa5b1", "valid": "#3f72af", "test": "#d1495b"}
_FALLBACK = "#2a9d8f"


def new_figure(width: float = 5.0, height: float = 4.0) -> Figure:
    """Return an empty figure of a size in inches that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure


PANELS_IN_A_ROW = 3
"""More are illegible on a page."""


def learning_curves(history: Sequence[Mapping[str, Any]], path: Path | None = None) -> Figure:
    """Draw loss and validation errors against the epoch.

    Args:
        history: Records of the evaluations, as in metrics.json.
        path: Where to save it.
    """
    names = [name for name in (history[-1]["metrics"] if history else {}) if "off_diagonal" not in name]
    columns = min(1 + len(names), PANELS_IN_A_ROW)
    rows = -(-(1 + len(names)) // columns)
    figure = new_figure(4.0 * columns if names else 5.0, 3.4 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in axes[1 + len(names) :]:
        spare.remove()
    epochs = [record["epoch"] for record in history]
    for split in ("train", "valid"):
        points = [(e, r[split]["loss"]) for e, r in zip(epochs, history, strict=True) if "loss" in r.get(split, {})]
        if points:
            axes[0].plot(*zip(*points, strict=True), color=COLORS[split], marker=".", label=split)
    axes[0].set(xlabel="epoch", ylabel="loss")
    if history:
        axes[0].set_yscale("log")
        axes[0].legend(frameon=False)
    for ax, name in zip(axes[1:], names, strict=False):
        points = [(e, r["metrics"][name]["mae"]) for e, r in zip(epochs, history, strict=True) if name in r["metrics"]]
        ax.plot(*zip(*points, strict=True), color=COLORS["valid"], marker=".")
        unit = history[-1]["metrics"][name]["unit"]
        title = name.replace("_", " ")
        ax.set(xlabel="epoch", ylabel="MAE, valid" + (f" ({unit})" if unit != "1" else ""), title=title)
        ax.set_ylim(bottom=0)
    if path is not None:
        figure.savefig(path)
    return figure


def parity(
    series: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    symbol: str,
    unit: str,
    path: Path | None = None,
) -> Figure:
    """Draw predictions against labels, with R², RMSE and MAE of each series.

    Args:
        series: Name (such as a split) to labels and predictions.
        symbol: What is drawn.
        unit: Unit of the numbers; "1" is left out.
        path: Where to save it.
    """
    from fieldflows.training.metrics import errors

    figure = new_figure(4.6, 4.6)
    ax = figure.subplots()
    everything = np.concatenate([np.concatenate(pair) for pair in series.values()])
    low, high = float(everything.min()), float(everything.max())
    margin = 0.04 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    ax.plot(limits, limits, color="black", linewidth=0.8, zorder=1)
    for name, (reference, predicted) in series.items():
        found = errors(reference, predicted)
        r2 = "R² n/a" if found["r2"] is None else f"R² {found['r2']:.3f}"
        label = f"{name}: {r2}, RMSE {found['rmse']:.3g}, MAE {found['mae']:.3g}"
        color = COLORS.get(name, _FALLBACK)
        ax.plot(reference, predicted, ".", color=color, markersize=3, alpha=0.6, label=label, rasterized=True)
    suffix = f" ({unit})" if unit != "1" else ""
    ax.set(xlim=limits, ylim=limits, xlabel=f"{symbol}, label{suffix}", ylabel=f"{symbol}, model{suffix}")
    ax.set_aspect("equal")
    ax.legend(frameon=False, fontsize=7, loc="upper left")
    if path is not None:
        figure.savefig(path)
    return figure
