"""Refractive indices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from fieldflows.physics.optics import principal_permittivities, principal_refractive_indices, refractive_index
from fieldflows.testing.strategies import rotations


def test_index_is_the_root_of_the_mean():
    assert refractive_index(np.diag([2.25, 2.25, 2.25])) == pytest.approx(1.5)
    assert refractive_index(np.diag([2.0, 3.0, 4.0])) == pytest.approx(np.sqrt(3.0))


@given(rotations())
def test_principal_values_do_not_depend_on_the_frame(turn):
    """Calcite-like: n_e = 1.486, n_o = 1.658."""
    epsilon = turn @ np.diag([1.486**2, 1.658**2, 1.658**2]) @ turn.T
    assert principal_refractive_indices(epsilon) == pytest.approx([1.486, 1.658, 1.658])
    assert principal_permittivities(epsilon).sum() == pytest.approx(np.trace(epsilon))


def test_unphysical_tensors_give_nan_and_no_number():
    assert np.isnan(refractive_index(-np.eye(3)))
    assert np.isnan(principal_refractive_indices(np.diag([-1.0, 4.0, 4.0]))).tolist() == [True, False, False]
