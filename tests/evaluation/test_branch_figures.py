"""Figures of spontaneous polarizations: what they show is in the document."""

from __future__ import annotations

import numpy as np

from fieldflows.backends.toy import ToyModel
from fieldflows.plotting import branch_diagram, polarization_fan
from fieldflows.properties.run import run_property
from fieldflows.properties.spontaneous_polarization import (
    Nonpolar,
    SpontaneousPolarizationProperty,
    SpontaneousPolarizationSettings,
)
from tests.physics.pairs import PAIRS


def computed(name, **settings):
    nonpolar, polar = PAIRS[name]()
    prop = SpontaneousPolarizationProperty(SpontaneousPolarizationSettings(**settings), Nonpolar(nonpolar))
    return run_property(prop, [polar], ToyModel())[0]


def test_branch_diagram_shows_the_quantum_images_and_the_well(tmp_path):
    document = computed("PbTiO3", consistency=False)
    figure = branch_diagram(document, tmp_path / "branches.png")
    assert (tmp_path / "branches.png").stat().st_size > 5000
    left, right = figure.axes
    quantum = document.quanta[2][2]
    curves = [line.get_ydata() for line in left.get_lines() if len(line.get_ydata()) == document.n_frames]
    starts = sorted(curve[0] for curve in curves)
    assert len(starts) >= 3
    np.testing.assert_allclose(np.diff(starts), quantum, rtol=1e-9)
    well = right.get_lines()[0].get_ydata()
    assert len(well) == 2 * document.n_frames
    np.testing.assert_allclose(well, well[::-1])
    assert max(well) == np.max(document.energies) * 1000


def test_one_panel_for_directions_that_change_alike(tmp_path):
    figure = branch_diagram(computed("LiNbO3", energy=False, consistency=False), tmp_path / "one.pdf")
    assert len(figure.axes) == 1


def test_fan(tmp_path):
    documents = [computed(name, consistency=False) for name in ("BaTiO3", "PbTiO3")]
    figure = polarization_fan(documents, tmp_path / "fan.png")
    curves = [line for line in figure.axes[0].get_lines() if len(line.get_ydata()) == 10]
    ends = sorted(abs(line.get_ydata()[-1]) for line in curves)
    np.testing.assert_allclose(ends, sorted(item.ps_branch_norm for item in documents), rtol=1e-6)
