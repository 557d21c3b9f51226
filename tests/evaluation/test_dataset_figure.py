"""The summary figure of a dataset: what is written into it is what the dataset holds."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.data import chemical_symbols
from pymatgen.core import Element

from fieldflows.datasets.dataset import Dataset
from fieldflows.datasets.frame import LABEL_SHAPES, LabeledFrame, label_shape
from fieldflows.evaluation.dataset_figure import PANELS, ROWS, dataset_summary, histogram_edges, periodic_table
from fieldflows.schemas.dataset import DatasetManifest
from fieldflows.training.figures import new_figure


def made(labels: tuple[str, ...], splits=("train", "train", "valid", "test")) -> Dataset:
    random = np.random.default_rng(0)
    frames = [
        LabeledFrame(
            Atoms("NaCl", positions=np.eye(3)[:2], cell=np.eye(3) * 4, pbc=True),
            {name: random.normal(size=label_shape(name, 2)) for name in labels},
            "NaCl", "a", k, split,
        )
        for k, split in enumerate(splits)
    ]  # fmt: skip
    manifest = DatasetManifest(
        name="salt", digest="0" * 64, created_at="", code_version="", n_frames=len(frames), n_materials=1,
        elements=["Cl", "Na"], counts={}, statistics=[], rejects=[], flags=[], duplicates=[], sources=[], config={},
    )  # fmt: skip
    return Dataset(frames, manifest)


def texts(figure) -> list[str]:
    import matplotlib.text

    return [item.get_text() for item in figure.findobj(matplotlib.text.Text) if item.get_text()]


def test_the_table_holds_every_element_in_its_group_and_period():
    symbols = [symbol for line in ROWS for symbol in line.split() if symbol != "."]
    assert sorted(symbols) == sorted(chemical_symbols[1:119])
    assert all(len(line.split()) == 18 for line in ROWS)
    for row, line in enumerate(ROWS[:7]):
        for column, symbol in enumerate(line.split()):
            if symbol != ".":
                assert (Element(symbol).row, Element(symbol).group) == (row + 1, column + 1), symbol
    for line, first in zip(ROWS[7:], (57, 89), strict=True):
        assert [Element(symbol).Z for symbol in line.split() if symbol != "."] == list(range(first, first + 15))


def test_counts_and_colors_of_elements():
    figure = new_figure()
    ax = figure.subplots()
    periodic_table(ax, {"H": 1, "O": 1500, "Fe": 30})
    written = texts(figure)
    assert "1,500" in written
    assert "30" in written
    faces = {tuple(patch.get_facecolor()) for patch in ax.patches}
    assert len(faces) == 4  # three counts, and one color for what is absent
    assert len(ax.patches) == 118


@pytest.mark.parametrize("labels", [tuple(LABEL_SHAPES), ("polarization",), ()])
def test_every_label_has_a_panel_and_subsets_their_counts(labels, tmp_path):
    assert set(PANELS) == set(LABEL_SHAPES)
    figure = dataset_summary(made(labels), tmp_path / "s.png")
    assert (tmp_path / "s.png").stat().st_size > 10_000
    written = texts(figure)
    assert "salt: 4 frames, 1 material, 2 elements (digest 000000000000)" in written
    assert {"2 frames", "1 frame", "1 material", "atoms per cell"} <= set(written)
    for name, (symbol, unit, _) in PANELS.items():
        label = symbol if unit == "1" else f"{symbol} ({unit})"
        assert (label in written) == (name in labels)


def test_a_dataset_without_a_subset_is_drawn():
    written = texts(dataset_summary(made(("energy",), splits=("train",) * 3)))
    assert "train" in written
    assert "test" not in written


def test_texts_of_the_figure_do_not_overlap(tmp_path):
    """Numbers under symbols, titles, tick labels: nothing is written over something else."""
    figure = dataset_summary(made(tuple(LABEL_SHAPES)), tmp_path / "s.png")
    renderer = figure.canvas.get_renderer()
    items = []
    for ax in figure.get_axes():
        items += ax.texts
        for axis in (ax.xaxis, ax.yaxis) if ax.axison else ():
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            items += [axis.label, *(tick.label1 for tick in ticks)]
    boxes = [(item.get_text(), item.get_window_extent(renderer)) for item in items if item.get_text().strip()]
    assert len(boxes) > 150
    overlaps = [(one, two) for i, (one, a) in enumerate(boxes) for two, b in boxes[:i] if a.overlaps(b)]
    assert overlaps == []
    beyond = [text for text, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > figure.bbox.x1]
    assert beyond == []


def test_edges_hold_nearly_all_values():
    values = np.concatenate([np.random.default_rng(0).normal(size=5000), [1e6]])
    edges = histogram_edges(values)
    assert edges[-1] < 10
    assert ((values >= edges[0]) & (values <= edges[-1])).mean() > 0.997
    np.testing.assert_allclose(histogram_edges(np.array([2.0, 3.0, 3.0, 5.0])), [1.5, 2.5, 3.5, 4.5, 5.5])
    assert np.all(np.diff(histogram_edges(np.full(7, 1e9 + 0.5))) > 0)
    sizes = np.arange(2.0, 81.0)
    assert set(np.histogram(sizes, histogram_edges(sizes))[0][:-1]) == {2}  # no comb
    assert np.histogram(sizes, histogram_edges(sizes))[0].sum() == len(sizes)
