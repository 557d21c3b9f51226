"""Metrics against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fieldflows.physics.metrics import mean_absolute_error, r_squared, root_mean_square_error


def test_by_hand():
    predicted, reference = [1.0, 2.0, 5.0], [1.0, 3.0, 2.0]
    assert mean_absolute_error(predicted, reference) == pytest.approx(4 / 3)
    assert root_mean_square_error(predicted, reference) == pytest.approx(np.sqrt(10 / 3))
    assert r_squared(predicted, reference) == pytest.approx(1 - 10 / 2)


def test_limits():
    reference = np.arange(6.0).reshape(2, 3)
    assert r_squared(reference, reference) == 1.0
    assert r_squared(np.full((2, 3), reference.mean()), reference) == pytest.approx(0.0)
    assert np.isnan(r_squared([1.0, 2.0], [3.0, 3.0]))


def test_refuses_mismatch_and_nothing():
    with pytest.raises(ValueError, match="shape"):
        mean_absolute_error([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="no values"):
        r_squared([], [])
