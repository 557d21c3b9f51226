"""The summary figure of a dataset: elements in the periodic table, distributions of labels, sizes, subsets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fieldflows.datasets.frame import LabeledFrame
from fieldflows.datasets.splits import SPLITS
from fieldflows.evaluation.figures import CROWDED, GRAY, MAP, with_unit
from fieldflows.training.figures import COLORS, new_figure
from fieldflows.units import E_PER_A2_TO_UC_PER_CM2, EPSILON_VACUUM, EV_PER_A3_TO_GPA

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fieldflows.datasets.dataset import Dataset

FloatArray = NDArray[np.float64]

ROWS = (
    "H . . . . . . . . . . . . . . . . He",
    "Li Be . . . . . . . . . . B C N O F Ne",
    "Na Mg . . . . . . . . . . Al Si P S Cl Ar",
    "K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr",
    "Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe",
    "Cs Ba . Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn",
    "Fr Ra . Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og",
    ". . La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu .",
    ". . Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr .",
)
"""The table as it is drawn; a point is an empty place, the last two rows belong to the gaps of the third column."""

F_BLOCK_GAP = 0.35
"""Space above the last two rows, in cells."""

EMPTY = "#eef0f2"

PANELS: dict[str, tuple[str, str, Callable[[LabeledFrame], FloatArray]]] = {
    "polarizability": (
        "tr ε∞/3", "1", lambda f: np.array([1 + np.trace(f.labels["polarizability"]) / (3 * EPSILON_VACUUM)]),
    ),
    "born_effective_charges": (
        "Z*, diagonal", "e", lambda f: np.diagonal(f.labels["born_effective_charges"], axis1=1, axis2=2).ravel(),
    ),
    "polarization": (
        "|P|", "µC/cm²", lambda f: np.array([np.linalg.norm(f.labels["polarization"]) * E_PER_A2_TO_UC_PER_CM2]),
    ),
    "epsilon_ionic": ("tr ε_ion/3", "1", lambda f: np.array([np.trace(f.labels["epsilon_ionic"]) / 3])),
    "refractive_index": ("n", "1", lambda f: np.array([float(f.labels["refractive_index"])])),
    "piezoelectric": ("max |e|", "C/m²", lambda f: np.array([np.abs(f.labels["piezoelectric"]).max()])),
    "energy": ("E per atom", "eV", lambda f: np.array([float(f.labels["energy"]) / len(f)])),
    "forces": ("|F|", "eV/Å", lambda f: np.linalg.norm(f.labels["forces"], axis=1)),
    "stress": ("tr σ/3", "GPa", lambda f: np.array([np.trace(f.labels["stress"]) / 3 * EV_PER_A3_TO_GPA])),
}  # fmt: skip
"""Symbol, unit and values of a frame, by label."""

COLUMNS = (4, 3)
"""Panels in a row; that which leaves fewer places empty."""


def dataset_summary(dataset: Dataset, path: Path | None = None) -> Figure:
    """Draw what a dataset covers.

    Above, the periodic table, colored by the number of frames that hold an element; below, distributions of all labels
    and of the number of atoms, by subset, and the numbers of frames and materials of each subset.

    Args:
        dataset: The dataset.
        path: Where to save it.
    """
    from matplotlib.ticker import MaxNLocator

    labels = [name for name in PANELS if any(name in frame.labels for frame in dataset.frames)]
    n_panels = len(labels) + 2
    columns = min(COLUMNS, key=lambda width: -n_panels % width)
    rows = -(-n_panels // columns)
    figure = new_figure(11.0, 5.6 + 2.3 * rows)
    halves: Any = figure.subfigures(2, 1, height_ratios=[5.6, 2.3 * rows])
    above, below = halves
    manifest = dataset.manifest
    above.suptitle(
        f"{manifest.name}: {_plural(manifest.n_frames, 'frame')}, {_plural(manifest.n_materials, 'material')}, "
        f"{_plural(len(manifest.elements), 'element')} (digest {manifest.digest[:12]})",
        fontsize=12,
    )
    holders = Counter(symbol for frame in dataset.frames for symbol in set(frame.atoms.symbols))
    periodic_table(above.subplots(), holders)
    panels = below.subplots(rows, columns, squeeze=False).ravel()
    subsets = {name: dataset.subset(name) for name in SPLITS}
    subsets = {name: members for name, members in subsets.items() if members}
    for ax, name in zip(panels, labels, strict=False):
        symbol, unit, values = PANELS[name]
        found = {
            split: np.concatenate([values(frame) for frame in members if name in frame.labels] or [np.empty(0)])
            for split, members in subsets.items()
        }
        _histogram(ax, {split: array for split, array in found.items() if len(array)}, with_unit(symbol, unit))
    _histogram(
        panels[len(labels)], {split: np.array([len(frame) for frame in members], dtype=float)
                              for split, members in subsets.items()}, "atoms per cell",
    )  # fmt: skip
    panels[len(labels)].xaxis.set_major_locator(MaxNLocator(4, integer=True))
    _counts(panels[len(labels) + 1], subsets)
    for ax in panels[n_panels:]:
        ax.set_axis_off()
    if path is not None:
        figure.savefig(path)
    return figure


def periodic_table(ax: Axes, counts: Mapping[str, int]) -> None:
    """Draw the periodic table into axes, colored by a count on a logarithmic scale, with the number in each cell.

    Args:
        ax: Axes to draw into.
        counts: Number by chemical symbol; elements that are absent or zero stay pale.
    """
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    colors = matplotlib.colormaps[MAP]
    norm = LogNorm(1, max(2, *counts.values()) if counts else 2)
    for row, line in enumerate(ROWS):
        y = row + (F_BLOCK_GAP if row > 6 else 0.0)
        for column, symbol in enumerate(line.split()):
            if symbol == ".":
                continue
            number = counts.get(symbol, 0)
            face = colors(norm(number)) if number else EMPTY
            ink = GRAY if not number else "black" if _luminance(face) > 0.45 else "white"
            ax.add_patch(Rectangle((column + 0.03, y + 0.03), 0.94, 0.94, facecolor=face, edgecolor="none"))
            ax.text(column + 0.5, y + 0.40, symbol, ha="center", va="center", color=ink, fontsize=11)
            if number:
                ax.text(column + 0.5, y + 0.77, f"{number:,}", ha="center", va="center", color=ink, fontsize=6.5)
    ax.set(xlim=(0, 18), ylim=(len(ROWS) + F_BLOCK_GAP, 0))
    ax.set_aspect("equal")
    ax.set_axis_off()
    scale = ax.inset_axes((3.2, 1.15, 7.6, 0.32), transform=ax.transData)
    bar = ax.figure.colorbar(ScalarMappable(norm, colors), cax=scale, orientation="horizontal")
    bar.set_label("frames that hold the element", fontsize=9, labelpad=4)
    bar.ax.xaxis.set_label_position("top")
    bar.ax.tick_params(labelsize=8)


def _luminance(color: Any) -> float:
    """Return how bright a color is to the eye, 0 to 1."""
    red, green, blue = color[:3]
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _histogram(ax: Axes, series: Mapping[str, FloatArray], label: str) -> None:
    """Draw the values of all subsets in the same bars; what is beyond the edges counts into the last bar there."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    everything = np.concatenate(list(series.values()))
    edges = histogram_edges(everything)
    highest = 0.0
    for split, values in series.items():
        clipped = np.clip(values, edges[0], edges[-1])
        heights, *_ = ax.hist(clipped, edges.tolist(), histtype="stepfilled" if split == "train" else "step",
                              color=COLORS[split], linewidth=1.2, label=split)  # fmt: skip
        highest = max(highest, float(np.max(heights)))
    if highest > CROWDED:
        ax.set_yscale("log")
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set_ylim(bottom=0.7)
    ax.set_xlabel(label, fontsize=9)
    ax.set_ylabel("values" if label.startswith(("Z*", "|F|")) else "frames", fontsize=8)
    ax.tick_params(labelsize=8)
    ax.xaxis.set_major_locator(MaxNLocator(4))


def histogram_edges(values: FloatArray, most: int = 40) -> FloatArray:
    """Return edges of bars that hold all but the outermost two thousandths, between whole numbers for such.

    Args:
        values: (m,) all finite.
        most: Bars at most.
    """
    low, high = np.quantile(values, [0.001, 0.999])
    if np.array_equal(values, np.round(values)):  # whole numbers: every bar holds as many of them
        low, high = np.floor(low), np.ceil(high)
        width = np.ceil((high - low + 1) / most)
        return np.arange(low - 0.5, high + width, width)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, int(np.clip(2 * np.sqrt(len(values)), 10, most)) + 1)


def _counts(ax: Axes, subsets: Mapping[str, Sequence[LabeledFrame]]) -> None:
    """Draw the numbers of frames and of materials of each subset as bars with the number at their end."""
    names = list(subsets)
    places = np.arange(len(names), dtype=float)
    most = max(len(members) for members in subsets.values())
    numbers = {
        "frame": [len(members) for members in subsets.values()],
        "material": [len({frame.material for frame in members}) for members in subsets.values()],
    }
    for kind, shift, alpha in (("frame", -0.2, 1.0), ("material", 0.2, 0.55)):
        ax.barh(places + shift, numbers[kind], 0.38, color=[COLORS[name] for name in names], alpha=alpha)
        for place, number in zip(places + shift, numbers[kind], strict=True):
            ax.text(number + 0.02 * most, place, _plural(number, kind), va="center", fontsize=7.5)
    ax.set_yticks(places, names, fontsize=9)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.75 * most)
    ax.set_xticks([])
    for side in ("top", "right", "bottom"):
        ax.spines[side].set_visible(False)
