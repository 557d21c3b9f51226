"""Quanta and folding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldflows.physics.polarization import fold_polarization, polarization_quantum, to_microcoulomb_per_cm2
from fieldflows.testing.strategies import cells

integers = st.lists(st.integers(-5, 5), min_size=3, max_size=3)
fractions = st.lists(st.floats(-0.49, 0.49), min_size=3, max_size=3)


def test_quantum_of_a_cubic_cell():
    """e/a² of a 4 Å cube: 100.136 µC/cm²."""
    quantum = to_microcoulomb_per_cm2(polarization_quantum(4.0 * np.eye(3)))
    assert quantum == pytest.approx(1602.176634 / 16 * np.eye(3), rel=1e-9)


@given(cells(), fractions, integers)
def test_folding_forgets_whole_quanta_along_any_lattice_vector(cell, fraction, whole):
    quantum = polarization_quantum(cell)
    short = np.array(fraction) @ quantum
    assert fold_polarization(short + np.array(whole) @ quantum, cell) == pytest.approx(short, abs=1e-9)


@given(cells(), fractions)
def test_moving_an_ion_by_a_lattice_vector_is_one_quantum(cell, fraction):
    """An ion of charge +1 that moves by a_k changes P by e a_k/Ω, which folds to zero."""
    volume = abs(np.linalg.det(cell))
    assert fold_polarization(cell[1] / volume, cell) == pytest.approx(np.zeros(3), abs=1e-12)


def test_many_at_once_and_zero_volume():
    many = fold_polarization(np.tile([0.9, 0.0, 0.0], (2, 4, 1)), np.eye(3))
    assert many == pytest.approx(np.tile([-0.1, 0.0, 0.0], (2, 4, 1)))
    with pytest.raises(ValueError, match="zero volume"):
        polarization_quantum(np.ones((3, 3)))
