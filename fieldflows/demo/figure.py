"""One figure: refractive indices and Born charges of the model over published ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from fieldflows.demo.comparison import Comparison, charge_pairs, index_pairs, score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fieldflows.demo.crystals import PublishedCharge

Align = Literal["left", "center", "right"]

INK = "#1f2937"
GUIDE = "#9ca3af"
MEASURED = "#0f766e"
CALCULATED = "#b45309"


def draw(comparisons: Sequence[Comparison], path: Path, model_name: str) -> Path:
    """Write the parity figure, model over published, and return its path.

    Args:
        comparisons: At least one crystal.
        path: File to write; the suffix decides the format.
        model_name: Named in the title.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)

    points = [(item.refractive_indices, _name(item)) for item in comparisons]
    shown = [(pair, label) for pair, label in points if pair is not None]
    _panel(
        left,
        [pair for pair, _ in shown],
        [label for _, label in shown],
        MEASURED,
        f"refractive index n\n{_summary(index_pairs(comparisons), '', len(comparisons))}",
        "measured n",
        "model n = √(tr ε∞/3)",
    )
    _panel(
        right,
        charge_pairs(comparisons),
        [_charge_label(item, pair.published) for item in comparisons for pair in item.charges],
        CALCULATED,
        f"Born effective charge Z*\n{_summary(charge_pairs(comparisons), 'e')}",
        "published Z* from first principles (e)",
        "model Z* (e)",
    )
    figure.suptitle(f"Model {model_name!r} next to published values", color=INK, fontsize=13)
    for _ in range(3):  # square panels: the layout settles after a few passes
        figure.canvas.draw()
    figure.set_layout_engine("none")  # labels are placed in pixels: nothing may move after this
    for axes in (left, right):
        _place_labels(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _summary(pairs: Sequence[tuple[float, float]], unit: str, possible: int | None = None) -> str:
    """Return the agreement in words; crystals for which the model gives no number are counted out loud."""
    result = score(pairs, unit)
    unit = f" {unit}" if unit else ""
    count = f"{result.count} of {possible}" if possible and possible != result.count else f"{result.count}"
    return f"{count} values, MAE {result.mae:.2f}{unit}, mean difference {result.bias:+.2f}{unit}"


def _charge_label(item: Comparison, charge: PublishedCharge) -> str:
    """Name a point; anions of binary crystals mirror their cations by the sum rule and go without."""
    if charge.value < 0 and len(item.document.elements) == 2:
        return ""
    component = {"iso": "", "xx": " ⊥", "zz": " ∥"}.get(charge.component, f" {charge.component}")
    return f"{charge.element}{component}, {_name(item)}"


def _name(item: Comparison) -> str:
    return item.crystal.label.removesuffix(" cubic")


def _panel(
    axes: Axes,
    pairs: Sequence[tuple[float, float]],
    labels: Sequence[str],
    color: str,
    title: str,
    xlabel: str,
    ylabel: str,
) -> None:
    axes.set_title(title, color=INK, fontsize=11)
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.tick_params(colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    if not pairs:
        axes.text(0.5, 0.5, "no published values", transform=axes.transAxes, ha="center", color=GUIDE)
        return
    values = np.array(pairs)
    low, high = values.min(), values.max()
    margin = 0.08 * (high - low) or 0.5
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color=GUIDE, linewidth=1, zorder=1)
    axes.scatter(values[:, 0], values[:, 1], s=30, color=color, edgecolor="white", linewidth=0.7, zorder=3)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    for (x, y), label in zip(pairs, labels, strict=True):
        if not label:
            continue
        axes.annotate(
            label, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=7.5, color=INK, va="center"
        ).set_in_layout(False)


def _place_labels(axes: Axes) -> None:
    """Move each label to the offset around its point where it covers the least of other labels and points."""
    from matplotlib.text import Annotation

    figure = axes.figure
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    notes = [text for text in axes.texts if isinstance(text, Annotation)]
    anchors = np.array([axes.transData.transform(note.xy) for note in notes]).reshape(-1, 2)
    points = np.vstack([axes.transData.transform(group.get_offsets()) for group in axes.collections] or [anchors])
    frame = axes.get_window_extent(renderer)
    scale = figure.dpi / 72
    taken: list[tuple[float, float, float, float]] = []
    for note, anchor in zip(notes, anchors, strict=True):
        box = note.get_window_extent(renderer)
        width, height = box.width, box.height
        best, best_cost = None, np.inf
        for rank, (dx, dy, align) in enumerate(_offsets()):
            x0 = anchor[0] + dx * scale - {"left": 0.0, "center": width / 2, "right": width}[align]
            y0 = anchor[1] + dy * scale - height / 2
            rect = (x0, y0, x0 + width, y0 + height)
            cost = sum(_overlap(rect, other) for other in taken)
            reach = 4 * scale
            cost += sum(_overlap(rect, (x - reach, y - reach, x + reach, y + reach)) for x, y in points)
            outside = max(0.0, frame.x0 - rect[0]) + max(0.0, rect[2] - frame.x1)
            outside += max(0.0, frame.y0 - rect[1]) + max(0.0, rect[3] - frame.y1)
            cost += 20 * outside + 0.5 * rank
            if cost < best_cost:
                best, best_cost = (dx, dy, align, rect), cost
        if best is None:
            continue
        dx, dy, align, rect = best
        note.set_position((dx, dy))
        note.set_horizontalalignment(align)
        taken.append(rect)
        if np.hypot(dx, dy) > 14:
            axes.annotate(
                "",
                note.xy,
                xytext=(dx, dy),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": GUIDE, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3},
                zorder=2,
            )


def _offsets() -> list[tuple[float, float, Align]]:
    """Candidate positions in points, nearest first."""
    near: list[tuple[float, float, Align]] = [(7, 0, "left"), (-7, 0, "right"), (0, 9, "center"), (0, -9, "center")]
    rings: list[tuple[float, float, Align]] = []
    for radius in (10.0, 18.0, 28.0, 40.0, 54.0):
        for angle in range(0, 360, 30):
            dx, dy = radius * np.cos(np.radians(angle)), radius * np.sin(np.radians(angle))
            align: Align = "center" if abs(dx) < 0.3 * radius else ("left" if dx > 0 else "right")
            rings.append((float(dx), float(dy), align))
    return [*near, *rings]


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Return the shared area of two rectangles (x0, y0, x1, y1)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)
