"""Parity of the refractive index over the whole range, with an inset for the small ones that are nearly all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fieldflows.evaluation.figures import BLUE, GRAY, RED
from fieldflows.training.figures import new_figure
from fieldflows.training.metrics import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

SMALL = 90.0
"""Percentile of the labels up to which the inset reaches."""

LEAST_RANGE = 3.0
"""The inset reaches at least to this n."""


def parity_with_inset(
    label: FloatArray,
    predicted: FloatArray,
    seen: NDArray[np.bool_],
    title: str,
    subtitle: str,
    path: Path | None = None,
) -> Figure:
    """Draw predicted against labeled n, the crowded region enlarged in an inset (Fig. 7 of the MACE-Field paper).

    Args:
        label: (m,) n of the task.
        predicted: (m,) n of the model.
        seen: (m,) whether the model was trained on the formula of the row.
        title: Name of the predictor.
        subtitle: Its scores.
        path: Where to save it.
    """
    figure = new_figure(5.4, 5.6)
    ax = figure.subplots()
    high = 1.05 * float(max(label.max(), predicted.max()))
    limit = float(min(high, max(LEAST_RANGE, np.ceil(2 * np.percentile(label, SMALL)) / 2)))
    _points(ax, label, predicted, seen, 10)
    ax.set(xlim=(0.8, high), ylim=(0.8, high), xlabel="n, Matbench", ylabel="n, predicted")
    ax.set_aspect("equal")
    ax.set_title(f"{title}\n{subtitle}", fontsize=9)
    inset = ax.inset_axes((0.07, 0.575, 0.40, 0.40))
    _points(inset, label, predicted, seen, 5)
    inset.set(xlim=(1.0, limit), ylim=(1.0, limit))
    inset.set_aspect("equal")
    inset.tick_params(labelsize=7)
    inside = int(np.count_nonzero((label <= limit) & (predicted <= limit)))
    inset.set_xlabel(f"{inside} of {len(label)} rows", fontsize=7, labelpad=1)
    ax.indicate_inset_zoom(inset, edgecolor="black", alpha=0.6)
    if seen.any():
        ax.legend(frameon=False, fontsize=8, loc="lower right")
    if path is not None:
        figure.savefig(path)
    return figure


def _points(ax: Axes, label: FloatArray, predicted: FloatArray, seen: NDArray[np.bool_], size: float) -> None:
    ends = (0.0, 1.1 * float(max(label.max(), predicted.max())))
    ax.plot(ends, ends, color="black", linewidth=0.7, zorder=1)
    alpha = 0.75 if len(label) < 1500 else 0.4
    if seen.any():
        ax.scatter(label[seen], predicted[seen], s=size, color=GRAY, alpha=alpha, linewidths=0, label="formula seen")
        ax.scatter(label[~seen], predicted[~seen], s=size, color=RED, alpha=0.9, linewidths=0, label="formula not seen")
    else:
        ax.scatter(label, predicted, s=size, color=BLUE, alpha=alpha, linewidths=0)
