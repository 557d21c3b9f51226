"""Doubts about a spontaneous polarization, each on its own: just below a limit, and just above."""

from __future__ import annotations

import numpy as np
import pytest

from fieldflows.physics.branches import Branch
from fieldflows.physics.path_flags import PathDoubts, antiparallel, polar_end_higher, reference_offset
from fieldflows.units import E_PER_A2_TO_UC_PER_CM2

DOUBTS = PathDoubts()


def codes(warnings):
    return [item.code for item in warnings]


def branch(*values):
    rows = np.array([[0.0, 0.0, value] for value in values])
    return Branch(rows, rows)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0, 0.34, 0.68), []),
        ((0, 0.36, 0.72), ["large_step"]),
        ((0, 0.1, 0.34), []),
        ((0, 0.1, 0.36), ["broken_branch"]),
        ((0, 0.1, 0.6), ["large_step", "broken_branch"]),
    ],
)
def test_steps_and_bends(values, expected):
    assert codes(DOUBTS.branch(branch(*values))) == expected


def test_ways_that_disagree():
    unit = np.array([0.0, 0.0, 1.0]) / E_PER_A2_TO_UC_PER_CM2  # 1 µC/cm²
    none = np.zeros(3)
    assert codes(DOUBTS.agreement(40 * unit, 31 * unit, none, 0.4)) == []
    assert codes(DOUBTS.agreement(40 * unit, 29 * unit, none, 0.4)) == ["disagreement"]
    assert codes(DOUBTS.agreement(4 * unit, 1.5 * unit, none, 0.4)) == []  # little, in absolute terms
    assert codes(DOUBTS.agreement(40 * unit, 40 * unit, [0, 0, 1], 0.09)) == ["branch_by_charges", "branch_margin"]


def test_charges_that_change():
    assert codes(DOUBTS.spread_of(40.0, 19.0)) == []
    assert codes(DOUBTS.spread_of(40.0, 21.0)) == ["charges_change"]
    assert codes(DOUBTS.spread_of(1.0, 2.9)) == []


def test_small_polarizations():
    assert codes(DOUBTS.size(0.11)) == []
    assert codes(DOUBTS.size(0.09)) == ["small_polarization"]


def test_offsets_of_the_nonpolar_end():
    assert codes(reference_offset(None)) == []
    assert codes(reference_offset([0.0, 0.01, -0.01])) == []
    assert codes(reference_offset([0.0, 1 / 3, 0.0])) == ["half_quantum_reference"]
    assert codes(reference_offset([1.0, 0.0, 2.0])) == []


def test_antiparallel_copies():
    charges = np.array([2.0, 2.0, -2.0, -2.0])[:, None, None] * np.eye(3)
    along = np.array([[0, 0, 0.1], [0, 0, 0.1], [0, 0, -0.1], [0, 0, -0.1]])
    sites, axis = [0, 0, 1, 1], [0.0, 0.0, 1.0]
    assert codes(antiparallel(charges, along, sites, axis)) == []
    against = along * [[1], [-0.8], [1], [1]]
    assert codes(antiparallel(charges, against, sites, axis)) == ["antiparallel"]
    weak = along * [[1], [-0.2], [1], [1]]
    assert codes(antiparallel(charges, weak, sites, axis)) == []
    assert codes(antiparallel(charges, against, [0, 1, 2, 3], axis)) == []  # no copies of each other
    assert codes(antiparallel(charges, against, sites, np.zeros(3))) == []


def test_the_higher_end():
    assert codes(polar_end_higher(-0.01)) == codes(polar_end_higher(0.0)) == []
    (warning,) = polar_end_higher(0.0123)
    assert "12.3 meV" in warning.message
