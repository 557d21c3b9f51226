"""Figures of spontaneous polarizations: branches with their images, the double well, the fan of many materials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fieldflows.evaluation.figures import BLUE, GRAY, RED, density_parity
from fieldflows.physics.branches import polarization_of
from fieldflows.training.figures import new_figure
from fieldflows.training.metrics import FloatArray
from fieldflows.units import E_PER_A2_TO_UC_PER_CM2

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fieldflows.schemas.ferroelectric import PublishedPath, SpontaneousPolarizationDocument

GREEN = "#2a9d8f"
NOTHING = 0.01
"""Change of P in quanta below which a lattice direction is not drawn."""


def branch_diagram(document: SpontaneousPolarizationDocument, path: str | Path | None = None) -> Figure:
    """Draw P along each lattice vector with its quantum images, the estimates of P_s, and the energy along the path.

    Args:
        document: The result.
        path: Where to save it.
    """
    shown = _directions(document)
    energy = document.energies is not None
    figure = new_figure(max(4.6, 3.6 * (len(shown) + energy)), 4.4)
    panels = figure.subplots(1, len(shown) + energy, squeeze=False)[0]
    for ax, axis in zip(panels, shown, strict=False):
        _draw_branch(ax, document, axis)
    panels[0].legend(frameon=True, framealpha=0.9, fontsize=7, loc="best")
    if energy:
        _draw_energy(panels[-1], document)
    norm = "undefined" if document.ps_norm is None else f"{document.ps_norm:.1f} µC/cm²"
    title = (
        f"{document.formula_pretty}: {document.nonpolar_spacegroup_symbol} to {document.spacegroup_symbol}, "
        f"|P_s| {norm}, {document.status}"
    )
    figure.suptitle(title, fontsize=9)
    return _saved(figure, path)


def _directions(document: SpontaneousPolarizationDocument) -> list[int]:
    """Return the lattice vectors along which P changes, one of those that change alike."""
    ends = np.array([_fractions(document, name) for name in ("charges", "branch")])
    changes = np.concatenate([np.abs(np.array(document.fractions)).max(axis=0)[None], np.abs(ends)]).max(axis=0)
    spacing = np.linalg.norm(document.quanta, axis=1)
    shown: list[int] = []
    for axis in np.argsort(-changes, kind="stable"):
        curve = np.array(document.fractions)[:, axis] * spacing[axis]
        alike = [np.abs(np.abs(curve) - np.abs(np.array(document.fractions)[:, k] * spacing[k])).max() for k in shown]
        if changes[axis] > NOTHING and not any(value < 0.02 * spacing[axis] for value in alike):
            shown.append(int(axis))
    return sorted(shown) or [int(np.argmax(changes))]


def _fractions(document: SpontaneousPolarizationDocument, way: str) -> FloatArray:
    """Return P_s of one way in quanta along the lattice vectors, (3,)."""
    return np.asarray(np.array(getattr(document, f"ps_{way}")) @ np.linalg.inv(np.array(document.quanta)))


def _draw_branch(ax: Axes, document: SpontaneousPolarizationDocument, axis: int) -> None:
    quantum = float(np.linalg.norm(document.quanta[axis]))
    places, curve = np.array(document.path_coordinate), np.array(document.fractions)[:, axis]
    ends = {way: float(_fractions(document, way)[axis]) for way in ("charges", "branch", "difference")}
    low, high = min(0.0, curve.min(), *ends.values()) - 1.15, max(0.0, curve.max(), *ends.values()) + 1.15
    for image in range(int(np.floor(low - 1)), int(np.ceil(high + 1)) + 1):
        main = image == document.branch[axis]
        label = "P on the branch of Z*" if main else ("P, images" if image == document.branch[axis] - 1 else None)
        ax.plot(places, (curve + image) * quantum, ".-", color=BLUE if main else GRAY, linewidth=1.4 if main else 0.9,
                markersize=5 if main else 3, label=label, zorder=3 if main else 2)  # fmt: skip
    ax.plot((0, 1), (0, ends["charges"] * quantum), "--", color=RED, linewidth=1.1, label="Z* of the ends", zorder=4)
    ax.plot(1, ends["charges"] * quantum, "D", color=RED, markersize=5, zorder=5)
    ax.axhspan((ends["charges"] - 0.5) * quantum, (ends["charges"] + 0.5) * quantum, color=RED, alpha=0.07, linewidth=0,
               label="± ½ quantum", zorder=1)  # fmt: skip
    ax.axhline(0, color="black", linewidth=0.6)
    ax.set(xlabel="path, nonpolar to polar", ylabel=f"P along {'abc'[axis]} (µC/cm²)", xlim=(-0.03, 1.06),
           ylim=(low * quantum, high * quantum))  # fmt: skip
    ax.set_title(f"quantum {quantum:.1f} µC/cm²", fontsize=8)


def _draw_energy(ax: Axes, document: SpontaneousPolarizationDocument) -> None:
    places, energies = np.array(document.path_coordinate), 1000 * np.array(document.energies)
    ax.plot(np.concatenate([-places[::-1], places]), np.concatenate([energies[::-1], energies]), ".-", color=GREEN)
    ax.axhline(0, color="black", linewidth=0.6)
    ax.set(xlabel="path, − polar to + polar", ylabel="energy (meV per formula unit)", xticks=(-1, -0.5, 0, 0.5, 1))
    if document.barrier is not None:
        ax.set_title(f"barrier {1000 * document.barrier:.1f} meV per formula unit", fontsize=8)


def fan(series: Mapping[str, tuple[FloatArray, FloatArray]], path: str | Path | None = None, title: str = "") -> Figure:
    """Draw P along the normalized path coordinate for many materials, each colored by its P_s.

    Args:
        series: Name to coordinates and P in µC/cm², (k,) each.
        path: Where to save it.
        title: Above the panel.
    """
    figure = new_figure(5.6, 4.6)
    _draw_fan(figure.subplots(), series, title)
    return _saved(figure, path)


def fan_of(documents: Sequence[SpontaneousPolarizationDocument], path: str | Path | None = None) -> Figure:
    """Draw the fan of results: P of the model along the direction of P_s, the quanta of the branch spread linearly."""
    series = {}
    for number, item in enumerate(documents):
        x = np.array(item.path_coordinate)
        missing = 0.0
        if item.ps is not None and item.ps_norm:
            quanta = np.array(item.branch) @ np.array(item.quanta)
            missing = float(quanta @ np.array(item.ps)) / item.ps_norm
        series[f"{item.formula_pretty}#{number}"] = (x, np.array(item.polarization_along) + missing * x)
    return fan(series, path, "model, on the branch of Z*")


def _draw_fan(ax: Axes, series: Mapping[str, tuple[FloatArray, FloatArray]], title: str) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    ends = {name: float(values[-1]) for name, (_, values) in series.items()}
    norm, cmap = Normalize(0, max(1.0, *ends.values())), colormaps["viridis"]
    for name, (x, values) in sorted(series.items(), key=lambda item: ends[item[0]]):
        ax.plot(x, values, color=cmap(norm(ends[name])), linewidth=1.0, alpha=0.85)
    if len(series) <= 12:
        for name, (x, values) in series.items():
            ax.annotate(name.split("#")[0], (x[-1], values[-1]), xytext=(4, 0), textcoords="offset points", fontsize=7,
                        va="center")  # fmt: skip
        ax.set_xlim(0, 1.14)
    else:
        ax.set_xlim(0, 1)
    ax.axhline(0, color="black", linewidth=0.6)
    ax.set(xlabel="path, nonpolar to polar", ylabel="P along P_s (µC/cm²)")
    if title:
        ax.set_title(title, fontsize=9)


def published_fans(paths: Sequence[PublishedPath], path: str | Path | None = None) -> Figure:
    """Draw the fan of published paths, that of the model's P, and that of the model by its Born charges.

    All along the direction of the published P_s, so that a curve that ends elsewhere is wrong; a model whose P turns
    the other way goes down.

    Args:
        paths: Paths that are not rejected.
        path: Where to save it.
    """
    units = {item.path: np.array(item.label) / max(item.label_norm, 1e-9) for item in paths}
    published, single, charges = {}, {}, {}
    for item in paths:
        x, unit = np.array(item.predicted.path_coordinate), units[item.path]
        published[item.path] = (x, np.array(item.label_along) @ unit)
        single[item.path] = (x, np.array(item.predicted_along) @ unit)
        charges[item.path] = (x, x * float(np.array(item.predicted.ps_charges) @ unit))
    figure = new_figure(11.4, 4.4)
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    titles = ("published", "P of the model", "Z* of the model at the ends")
    for ax, values, text in zip(panels, (published, single, charges), titles, strict=True):
        _draw_fan(ax, values, f"{text}, {len(values)} paths")
        ax.label_outer()
    return _saved(figure, path)


def polarization_parity(groups: Mapping[str, Sequence[PublishedPath]], path: str | Path | None = None) -> Figure:
    """Draw components of P of all frames against the published ones, modulo quanta, a panel for each group of paths."""
    series = {}
    for name, items in groups.items():
        label = np.concatenate([np.array(item.label_along) for item in items])
        apart = np.concatenate([_folded(item) for item in items])
        series[name] = (label.ravel(), (label + apart).ravel())
    return density_parity(series, "P modulo quanta", "µC/cm²", None if path is None else Path(path))


def _folded(item: PublishedPath) -> FloatArray:
    """Return model less label of all frames, modulo quanta of the frame's cell, (k, 3) in µC/cm²."""
    ends = item.predicted.nonpolar.lattice.matrix, item.predicted.structure.lattice.matrix
    rows = []
    for x, label, value in zip(item.predicted.path_coordinate, item.label_along, item.predicted_along, strict=True):
        cell = (1 - x) * ends[0] + x * ends[1]
        f = np.subtract(value, label) @ np.linalg.inv(cell) * abs(np.linalg.det(cell)) / E_PER_A2_TO_UC_PER_CM2
        rows.append(polarization_of(f - np.round(f), cell) * E_PER_A2_TO_UC_PER_CM2)
    return np.array(rows)


def spontaneous_parity(groups: Mapping[str, Sequence[PublishedPath]], path: str | Path | None = None) -> Figure:
    """Draw |P_s| by Born charges and as a difference of P against the published one, one panel per group of paths."""
    figure = new_figure(4.2 * len(groups) + 0.4, 4.9)
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for ax, (name, items) in zip(panels, groups.items(), strict=True):
        label = np.array([item.label_norm for item in items])
        charges = np.array([item.predicted.ps_charges_norm for item in items])
        single = np.array([item.predicted.ps_difference_norm for item in items])
        spread = np.array([item.predicted.uncertainty or 0.0 for item in items])
        high = 1.06 * max(1.0, label.max(), charges.max(), single.max())
        ax.plot((0, high), (0, high), color="black", linewidth=0.7)
        ax.plot(label, single, "x", color=GRAY, markersize=4, label=f"difference of P: MAE {_mae(label, single):.1f}")
        ax.errorbar(label, charges, yerr=spread, fmt="o", color=BLUE, markersize=4, elinewidth=0.7, alpha=0.8,
                    label=f"Z* of the ends: MAE {_mae(label, charges):.1f}")  # fmt: skip
        ax.set(xlim=(0, high), ylim=(0, high), xlabel="|P_s|, published (µC/cm²)", title=f"{name}, {len(items)} paths")
        ax.title.set_fontsize(9)
        ax.set_aspect("equal")
        ax.legend(frameon=False, fontsize=7, loc="upper left")
    panels[0].set_ylabel("|P_s|, model (µC/cm²)")
    return _saved(figure, path)


def _mae(label: FloatArray, value: FloatArray) -> float:
    return float(np.abs(label - value).mean())


def _saved(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        figure.savefig(Path(path))
    return figure
