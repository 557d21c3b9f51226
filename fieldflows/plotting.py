"""Figures of stored documents and of metrics; nothing here computes physics or loads a model.

Every function returns a matplotlib figure and saves it if a path is given; no window is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from fieldflows.datasets.dataset import Dataset
    from fieldflows.schemas.evaluation import EvaluationDocument
    from fieldflows.schemas.ferroelectric import SpontaneousPolarizationDocument
    from fieldflows.schemas.training import TrainingDocument


def learning_curves(document: TrainingDocument | Mapping[str, Any], path: str | Path | None = None) -> Figure:
    """Draw loss and validation errors of a training run against the epoch.

    Args:
        document: The document of the run, or the content of its metrics.json.
        path: Where to save it; the ending decides the format.
    """
    from fieldflows.training.figures import learning_curves as draw

    if isinstance(document, Mapping):
        history = document.get("history") or document.get("curves") or []
    else:
        history = document.to_json_dict()["curves"]
    return draw(history, None if path is None else Path(path))


def parity(
    series: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    symbol: str,
    unit: str = "1",
    path: str | Path | None = None,
) -> Figure:
    """Draw predictions against labels, with R², RMSE and MAE of each series.

    Args:
        series: Name to labels and predictions, flat arrays of one length.
        symbol: What is drawn, such as "ε∞".
        unit: Unit of the numbers; "1" is left out.
        path: Where to save it.
    """
    from fieldflows.training.figures import parity as draw

    return draw(series, symbol, unit, None if path is None else Path(path))


def training_errors(document: TrainingDocument, path: str | Path | None = None) -> Figure:
    """Draw the mean absolute errors of a model relative to those of the trivial predictor, by quantity and subset.

    A bar below 1 means that the model knows more than the medians of its training labels.

    Args:
        document: The document of the run.
        path: Where to save it.
    """
    from fieldflows.training.figures import COLORS, new_figure

    splits = list(document.metrics)
    names = [name for name in document.metrics[splits[-1]] if name in document.trivial_metrics[splits[-1]]]
    figure = new_figure(1.5 + 1.1 * len(names), 3.6)
    ax = figure.subplots()
    width = 0.8 / len(splits)
    for k, split in enumerate(splits):
        own, trivial = document.metrics[split], document.trivial_metrics[split]
        ratios = [own[name].mae / trivial[name].mae if trivial[name].mae else float("nan") for name in names]
        ax.bar([i + (k - (len(splits) - 1) / 2) * width for i in range(len(names))], ratios, width,
               label=split, color=COLORS.get(split))  # fmt: skip
    ax.axhline(1.0, color="black", linewidth=0.8)
    ax.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names], fontsize=7)
    ax.set_ylabel("MAE / MAE of medians")
    ax.legend(frameon=False)
    if path is not None:
        figure.savefig(Path(path))
    return figure


def evaluation_errors(document: EvaluationDocument, path: str | Path | None = None) -> Figure:
    """Draw the mean absolute errors of an evaluation relative to those of each baseline, by quantity and subset.

    A point below 1 means that the model knows more than the baseline.

    Args:
        document: The evaluation.
        path: Where to save it.
    """
    from fieldflows.training.figures import COLORS, new_figure

    names = list(dict.fromkeys(name for subset in document.subsets.values() for name in subset.quantities))
    markers = dict(zip(document.baseline_definitions, "o^svDP", strict=False))
    figure = new_figure(1.8 + 0.8 * len(names), 3.8)
    ax = figure.subplots()
    for k, (split, subset) in enumerate(document.subsets.items()):
        for baseline, marker in markers.items():
            points = [
                (i + 0.12 * k, 1 / factor)
                for i, name in enumerate(names)
                if name in subset.quantities and (factor := subset.quantities[name].factor(baseline, "mae"))
            ]
            if points:
                ax.plot(*zip(*points, strict=True), marker, color=COLORS.get(split), label=f"{split}, {baseline}")
    ax.axhline(1.0, color="black", linewidth=0.8)
    ax.set_ylim(bottom=0.0)
    ax.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names], fontsize=6)
    ax.set_ylabel("MAE / MAE of the baseline")
    ax.legend(frameon=False, fontsize=7)
    if path is not None:
        figure.savefig(Path(path))
    return figure


def element_errors(document: EvaluationDocument, split: str = "test", path: str | Path | None = None) -> Figure:
    """Draw the errors of Born effective charges by element, the worst first, beside the medians by element.

    Args:
        document: The evaluation.
        split: Subset.
        path: Where to save it.

    Raises:
        SettingsError: If the evaluation has no charges in that subset.
    """
    from fieldflows.errors import SettingsError, suggestion
    from fieldflows.evaluation.figures import element_errors as draw

    chosen = [item for item in document.elements if item.split == split]
    if not chosen:
        raise SettingsError(
            f"This evaluation has no Born effective charges in a subset {split!r}.",
            suggestion(split, {item.split for item in document.elements}),
        )
    return draw(chosen, None if path is None else Path(path))


def dataset_summary(dataset: Dataset, path: str | Path | None = None) -> Figure:
    """Draw what a dataset covers: elements in the periodic table, distributions of labels and sizes, subsets.

    Args:
        dataset: The dataset.
        path: Where to save it; the ending decides the format.
    """
    from fieldflows.evaluation.dataset_figure import dataset_summary as draw

    return draw(dataset, None if path is None else Path(path))


def branch_diagram(document: SpontaneousPolarizationDocument, path: str | Path | None = None) -> Figure:
    """Draw P along the lattice vectors with its quantum images, the estimates of P_s, and the energy along the path.

    Args:
        document: A spontaneous polarization.
        path: Where to save it.
    """
    from fieldflows.evaluation.branch_figures import branch_diagram as draw

    return draw(document, path)


def polarization_fan(documents: Sequence[SpontaneousPolarizationDocument], path: str | Path | None = None) -> Figure:
    """Draw P along the normalized path of many materials in one panel, each colored by its P_s.

    Args:
        documents: Spontaneous polarizations.
        path: Where to save it.
    """
    from fieldflows.evaluation.branch_figures import fan_of as draw

    return draw(documents, path)
