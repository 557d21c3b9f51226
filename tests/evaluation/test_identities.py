"""Identities: sound models pass, and a model with one thing wrong fails on that one and is named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms

from fieldflows import load_model
from fieldflows.datasets.frame import LabeledFrame
from fieldflows.errors import EvaluationError
from fieldflows.evaluation.identities import IDENTITIES, MAX_ATOMS, check_identities, choose_frames
from fieldflows.testing.structures import named_structures, random_crystal

EXACT = {item.name for item in IDENTITIES if item.exact}


def frames(number: int = 4) -> list[LabeledFrame]:
    chosen = list(named_structures().items())[:number]
    return [LabeledFrame(atoms, {}, name, "named", k, split="test") for k, (name, atoms) in enumerate(chosen)]


class Broken:
    """The toy model with its responses changed by a function of atoms and response."""

    def __init__(self, change):
        self.model, self.change = load_model("toy"), change

    @property
    def info(self):
        return self.model.info

    def evaluate(
        self, structures, fields=None, observables=("polarization", "born_effective_charges", "polarizability")
    ):
        if isinstance(structures, list | tuple):
            return [self.evaluate(item, fields, observables) for item in structures]
        return self.change(structures, self.model.evaluate(structures, fields=fields, observables=observables))


def changed(response, **values):
    return replace(response, **{k: v for k, v in values.items() if getattr(response, k) is not None})


def skew(atoms, response):
    extra = np.array([[0, 1e-3, 0], [-1e-3, 0, 0], [0, 0, 0]])
    alpha = None if response.polarizability is None else response.polarizability + extra
    return changed(response, polarizability=alpha)


def charged(atoms, response):
    charges = None if response.born_effective_charges is None else response.born_effective_charges + 0.01 * np.eye(3)
    return changed(response, born_effective_charges=charges)


def extensive(atoms, response):
    return changed(response, polarization=None if response.polarization is None else response.polarization * len(atoms))


def fixed_axis(atoms, response):
    alpha = None if response.polarizability is None else response.polarizability + np.diag([0, 0, 0.01])
    return changed(response, polarizability=alpha)


def transposed(atoms, response):
    charges = response.born_effective_charges
    return changed(response, born_effective_charges=None if charges is None else np.swapaxes(charges, 1, 2))


def half_forces(atoms, response):
    return changed(response, forces=None if response.forces is None else response.forces / 2)


def absolute_positions(atoms, response):
    """Return a polarization of absolute positions in the cell, a classic mistake."""
    dipole = (atoms.positions * atoms.numbers[:, None]).sum(axis=0) / atoms.get_volume() / 100
    return changed(response, polarization=None if response.polarization is None else response.polarization + dipole)


@pytest.fixture(scope="module")
def sound():
    return check_identities(load_model("toy"), frames(), number=2, seed=1)


def test_a_sound_model_obeys_all(sound):
    assert [check.name for check in sound] == [item.name for item in IDENTITIES]
    assert [check.name for check in sound if check.passed is not True] == []
    assert all(check.frames == 2 and 0 <= check.relative <= check.tolerance for check in sound)
    assert all(check.relative < 1e-9 for check in sound if check.name in EXACT)


@pytest.mark.parametrize(
    ("change", "violated"),
    [
        (skew, {"symmetric_polarizability", "rotated_polarizability", "polarizability_is_a_derivative"}),
        (charged, {"acoustic_sum_rule", "born_charges_are_derivatives"}),
        (extensive, {"supercell", "born_charges_are_derivatives", "polarizability_is_a_derivative"}),
        (fixed_axis, {"rotated_polarizability", "polarizability_is_a_derivative"}),
        (transposed, {"born_charges_are_derivatives"}),
        (half_forces, {"forces_are_derivatives"}),
        (absolute_positions, {"supercell", "born_charges_are_derivatives"}),
    ],
)
def test_a_broken_model_is_found_out(change, violated):
    checks = check_identities(Broken(change), frames(), number=2, seed=1)
    found = {check.name for check in checks if check.passed is False}
    assert violated <= found
    if change in (charged, transposed, half_forces):
        assert found == violated
    for check in checks:
        if check.passed is False:
            assert check.relative > check.tolerance
            assert "named:" in check.worst_frame


def test_one_seed_one_answer():
    one, two, other = (
        [check.residual for check in check_identities(load_model("toy"), frames(), 1, seed)] for seed in (5, 5, 6)
    )
    assert one == two
    assert one != other


def test_nothing_is_tried_on_no_frames():
    assert all(check.passed is None and check.reason for check in check_identities(load_model("toy"), frames(), 0))


def test_what_cannot_be_evaluated_is_named_and_numbers_that_are_not_finite_fail():
    def refuse(atoms, response):
        if response.energy is not None:
            raise EvaluationError("this backend knows no energies")
        return response

    checks = {check.name: check for check in check_identities(Broken(refuse), frames(), 1, 0)}
    assert checks["forces_are_derivatives"].passed is None
    assert "no energies" in checks["forces_are_derivatives"].reason
    assert checks["acoustic_sum_rule"].passed is True

    def spoil(atoms, response):
        return changed(response, polarizability=np.full((3, 3), np.nan))

    checks = {check.name: check for check in check_identities(Broken(spoil), frames(), 1, 0)}
    assert checks["symmetric_polarizability"].passed is False
    assert checks["symmetric_polarizability"].residual is None


def test_small_frames_are_preferred():
    small = frames()
    large = LabeledFrame(random_crystal(0).repeat((5, 5, 1)), {}, "large", "made", 9, split="test")
    assert len(large) > MAX_ATOMS
    assert large not in choose_frames([large, *small], 4, seed=0)
    assert choose_frames([large], 2, seed=0) == [large]
    chosen = choose_frames(small, 2, seed=3)
    assert len(chosen) == 2
    assert [item.name for item in chosen] == [item.name for item in small if item in chosen]
    single = LabeledFrame(Atoms("He", cell=4 * np.eye(3), pbc=True), {}, "He", "made", 1)
    assert choose_frames([single], 1, seed=0) == [single]
