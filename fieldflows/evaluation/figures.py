"""Figures of an evaluation: parity by density, distributions, elements, the sum rule, and polarization paths.

All are drawn without a display.  Every function returns the figure and saves it if a path is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldflows.training.figures import COLORS, new_figure
from fieldflows.training.metrics import FloatArray, errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fieldflows.schemas.evaluation import ElementEvaluation, PathEvaluation

Series = Mapping[str, tuple[FloatArray, FloatArray]]
"""Name, such as a subset, to labels and predictions, flat arrays of one length."""

BINS = 80
"""Cells of the density along an axis, and at most as many bars of a distribution."""

CROWDED = 50
"""Values in a bar from which on a distribution is drawn on a logarithmic scale."""

FEW = 300
"""Points up to which they are drawn large."""

MAX_POINTS = 60000
"""Points that are drawn in a panel; errors are always those of all points."""

SMOOTHING = 2.0
"""Width of the Gaussian that counts the points around a point, in cells."""

GRAY, BLUE, RED = "#9aa5b1", "#3f72af", "#d1495b"
MAP = "viridis"


def with_unit(text: str, unit: str) -> str:
    """Return a label of an axis with its unit; pure numbers have none."""
    return text if unit == "1" else f"{text} ({unit})"


def point_density(x: FloatArray, y: FloatArray, limits: tuple[float, float]) -> FloatArray:
    """Return how many points lie around each point: a histogram, smoothed by a Gaussian, interpolated at the points.

    Args:
        x: (m,) abscissas.
        y: (m,) ordinates.
        limits: Both axes reach from the first to the second.

    Returns:
        (m,) Σ exp(−d²/2h²) over the points, about, with h = SMOOTHING cells of the histogram; at least 1.
    """
    from scipy.ndimage import gaussian_filter, map_coordinates

    counts, *_ = np.histogram2d(x, y, bins=BINS, range=(limits, limits))
    smooth = gaussian_filter(counts, SMOOTHING, mode="constant") * 2 * np.pi * SMOOTHING**2
    places = [(value - limits[0]) / (limits[1] - limits[0]) * BINS - 0.5 for value in (x, y)]
    return np.maximum(map_coordinates(smooth, places, order=1, mode="nearest"), 1.0)


def density_parity(series: Series, symbol: str, unit: str, path: Path | None = None) -> Figure:
    """Draw predictions against labels, colored by the density of points, one panel per series.

    R², RMSE, MAE and the number of values are written into each panel.

    Args:
        series: Labels and predictions by subset.
        symbol: What is drawn.
        unit: Unit of the numbers; "1" is left out.
        path: Where to save it.
    """
    from matplotlib.colors import LogNorm

    figure = new_figure(3.6 * len(series) + 1.0, 4.1)
    panels = figure.subplots(1, len(series), squeeze=False)[0]
    everything = np.concatenate([np.concatenate(pair) for pair in series.values()])
    low, high = float(everything.min()), float(everything.max())
    margin = 0.04 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    densities = {name: point_density(*pair, limits) for name, pair in series.items()}
    norm = LogNorm(1.0, max(2.0, *(float(value.max()) for value in densities.values())))
    for k, (ax, (name, (reference, predicted))) in enumerate(zip(panels, series.items(), strict=True)):
        ax.plot(limits, limits, color="black", linewidth=0.7, zorder=1)
        order = np.argsort(densities[name])
        if len(order) > MAX_POINTS:  # every k-th by density: the rare ones are all drawn, the crowded ones thinned
            crowded = np.linspace(MAX_POINTS // 2, len(order) - 1, MAX_POINTS // 2).astype(int)
            order = np.concatenate([order[: MAX_POINTS // 2], order[crowded]])
        size = 7 if len(order) > FEW else 20
        points = ax.scatter(
            reference[order], predicted[order], c=densities[name][order], s=size, cmap=MAP, norm=norm, linewidths=0,
            rasterized=True, zorder=2,
        )  # fmt: skip
        _write_errors(ax, reference, predicted, unit)
        ax.set(xlim=limits, ylim=limits, title=name, xlabel=with_unit(f"{symbol}, label", unit))
        ax.set_aspect("equal")
        if k == 0:
            ax.set_ylabel(with_unit(f"{symbol}, model", unit))
    figure.colorbar(points, ax=list(panels), label="points around", shrink=0.85)
    return _saved(figure, path)


def _write_errors(ax: Axes, reference: FloatArray, predicted: FloatArray, unit: str) -> None:
    found = errors(reference, predicted)
    suffix = "" if unit == "1" else f" {unit}"
    lines = [
        "R² n/a" if found["r2"] is None else f"R² {found['r2']:.3f}",
        f"RMSE {found['rmse']:.3g}{suffix}",
        f"MAE {found['mae']:.3g}{suffix}",
        f"{len(reference):,} values",
    ]
    ax.text(0.03, 0.97, "\n".join(lines), transform=ax.transAxes, va="top", fontsize=7.5, zorder=3)


def distributions(quantities: Mapping[str, tuple[str, str, Series]], path: Path | None = None) -> Figure:
    """Draw histograms of labels and predictions, one row per quantity, one column per subset.

    Args:
        quantities: Name to symbol, unit, and labels and predictions by subset.
        path: Where to save it.
    """
    from matplotlib.ticker import MaxNLocator, NullLocator

    splits = list(dict.fromkeys(name for _, _, series in quantities.values() for name in series))
    figure = new_figure(3.3 * len(splits) + 0.6, 2.2 * len(quantities) + 0.3)
    panels = figure.subplots(len(quantities), len(splits), squeeze=False)
    for row, (symbol, unit, series) in zip(panels, quantities.values(), strict=True):
        edges = _edges(np.concatenate([np.concatenate(pair) for pair in series.values()]))
        for ax, split in zip(row, splits, strict=True):
            if split not in series:
                ax.set_axis_off()
                continue
            reference, predicted = (np.clip(value, edges[0], edges[-1]) for value in series[split])
            heights, *_ = ax.hist(reference, edges, color=GRAY, label="label")
            ax.hist(predicted, edges, histtype="step", color=RED, linewidth=1.1, label="model")
            if max(heights) > CROWDED:
                ax.set_yscale("log")
                ax.yaxis.set_minor_locator(NullLocator())
                ax.set_ylim(bottom=0.7)
            ax.set_xlabel(with_unit(symbol, unit))
            ax.tick_params(labelsize=7)
            ax.xaxis.set_major_locator(MaxNLocator(5))  # energies have many digits
        row[0].set_ylabel("values")
    for ax, split in zip(panels[0], splits, strict=True):
        ax.set_title(split)
    next(ax for ax in panels.ravel() if ax.axison).legend(frameon=False, fontsize=7, loc="upper right")
    return _saved(figure, path)


def _edges(values: FloatArray) -> list[float]:
    """Return the edges of bars, fewer for fewer values; a thousandth at either end is drawn into the last bar there."""
    low, high = np.quantile(values, [0.001, 0.999])
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, int(np.clip(2 * np.sqrt(len(values)), 12, BINS)) + 1).tolist()


def element_errors(elements: Sequence[ElementEvaluation], path: Path | None = None) -> Figure:
    """Draw the errors of the Z* diagonal by element, the worst first, with the medians by element beside.

    Args:
        elements: Of one subset.
        path: Where to save it.
    """
    chosen = sorted(elements, key=lambda item: -item.mae_diagonal)
    figure = new_figure(max(5.0, 0.19 * len(chosen) + 1.2), 4.6)
    upper, lower = figure.subplots(2, 1, sharex=True)
    places = np.arange(len(chosen))
    upper.bar(places, [item.mae_diagonal for item in chosen], 0.8, color=BLUE, label="model")
    medians = [np.nan if item.baseline_mae_diagonal is None else item.baseline_mae_diagonal for item in chosen]
    if np.isfinite(medians).any():
        upper.plot(places, medians, "_", color=RED, markersize=6, label="median by element")
    upper.set_ylabel("MAE of Z* (diagonal), e")
    upper.legend(frameon=False, fontsize=8)
    label, spread = ([getattr(item, name) for item in chosen] for name in ("label_mean", "label_spread"))
    lower.axhline(0, color="black", linewidth=0.6)
    lower.errorbar(places, label, yerr=spread, fmt="o", color=GRAY, markersize=4, linewidth=1, label="label, spread")
    lower.plot(places, [item.predicted_mean for item in chosen], "x", color=BLUE, markersize=4, label="model")
    lower.set_ylabel("mean of tr Z*/3, e")
    lower.legend(frameon=False, fontsize=8)
    lower.set_xticks(places, [item.element for item in chosen], fontsize=7, rotation=90 if len(chosen) > 40 else 0)
    lower.set_xlim(-0.8, len(chosen) - 0.2)
    return _saved(figure, path)


def sum_rules(label: Mapping[str, FloatArray], predicted: Mapping[str, FloatArray], path: Path | None = None) -> Figure:
    """Draw the distribution of the largest component of |Σ_κ Z*_κ| of published labels and of predictions.

    Args:
        label: (g,) in e by subset.
        predicted: (g,) in e by subset.
        path: Where to save it.
    """
    figure = new_figure(5.2, 3.4)
    ax = figure.subplots()
    floor = 1e-17
    edges = np.logspace(-17, 1, 73).tolist()
    for values, color, name in ((label, GRAY, "label as published"), (predicted, RED, "model")):
        ax.hist(np.maximum(np.concatenate(list(values.values())), floor), edges, color=color, label=name, alpha=0.85)
    ax.set(xscale="log", xlabel="largest component of |Σ Z*| (e)", ylabel="frames")
    ax.legend(frameon=False, fontsize=8)
    return _saved(figure, path)


def spontaneous(paths: Sequence[PathEvaluation], path: Path | None = None) -> Figure:
    """Draw |P_s| of the model against that of the labels, by path and subset.

    One panel for each way to P_s that all paths have: the difference of P between the ends, the same on the branch that
    the Born charges of the ends choose, and the estimate from those charges.

    Args:
        paths: All paths.
        path: Where to save it.
    """
    ways = {"predicted": "difference of P", "guided": "branch by Z*", "from_charges": "from Z* of the ends"}
    norms = {
        name: np.array([np.linalg.norm(getattr(item, name)) for item in paths])
        for name in ways
        if all(getattr(item, name) is not None for item in paths)
    }
    label = np.array([item.label_norm for item in paths])
    high = 1.12 * max(1.0, label.max(), *(values.max() for values in norms.values()))
    figure = new_figure(4.2 * len(norms) + 0.5, 5.1)
    panels = figure.subplots(1, len(norms), squeeze=False, sharex=True, sharey=True)[0]
    for ax, (name, values) in zip(panels, norms.items(), strict=True):
        ax.plot((0, high), (0, high), color="black", linewidth=0.7)
        for split in dict.fromkeys(item.split for item in paths):
            members = np.array([item.split == split for item in paths])
            found = errors(label[members], values[members])
            text = f"{split}: MAE {found['mae']:.3g}, RMSE {found['rmse']:.3g}, {members.sum()} paths"
            color = COLORS.get(split, BLUE)
            ax.plot(label[members], values[members], "o", color=color, markersize=4, alpha=0.8, label=text)
            worst = sorted(np.flatnonzero(members).tolist(), key=lambda i: -abs(values[i] - label[i]))[:3]
            for i in worst:
                ax.annotate(paths[i].material, (label[i], values[i]), fontsize=6, xytext=(3, 2),
                            textcoords="offset points")  # fmt: skip
        ax.set(xlim=(-0.02 * high, high), ylim=(-0.02 * high, high), xlabel="|P_s|, label (µC/cm²)", title=ways[name])
        ax.set_aspect("equal")
        ax.legend(frameon=False, fontsize=7, loc="upper left")
    panels[0].set_ylabel("|P_s|, model (µC/cm²)")
    return _saved(figure, path)


def path_profiles(profiles: Sequence[Mapping[str, Any]], path: Path | None = None) -> Figure:
    """Draw the polarization along paths, labels and model, projected on the label's P_s.

    Args:
        profiles: Of each path ``title``, ``index`` (m,), ``label`` (m,) and ``predicted`` (m,) in µC/cm².
        path: Where to save it.
    """
    columns = min(4, len(profiles))
    rows = -(-len(profiles) // columns)
    figure = new_figure(2.5 * columns + 0.4, 2.1 * rows + 0.3)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for ax, item in zip(panels, profiles, strict=False):
        ax.plot(item["index"], item["label"], "o", color=GRAY, markersize=4, label="label")
        ax.plot(item["index"], item["predicted"], color=RED, linewidth=1.2, label="model")
        ax.set_title(item["title"], fontsize=8)
        ax.tick_params(labelsize=7)
    for ax in panels[len(profiles) :]:
        ax.set_axis_off()
    panels[0].legend(frameon=False, fontsize=7)
    figure.supxlabel("frame of the path, nonpolar to polar", fontsize=8)
    figure.supylabel("P along P_s (µC/cm²)", fontsize=8)
    return _saved(figure, path)


def _saved(figure: Figure, path: Path | None) -> Figure:
    if path is not None:
        figure.savefig(path)
    return figure
