"""The contract notices backends that break it, each in the right check."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fieldflows.backends.toy import ToyModel, ToyParameters
from fieldflows.testing.contract import FieldModelContract

CHECKS = sorted(name for name in dir(FieldModelContract) if name.startswith("test_"))


class Broken:
    """The toy model with one observable changed by a function of (value, atoms, field)."""

    def __init__(self, **changes):
        self.toy, self.changes = ToyModel(ToyParameters(anisotropy=0.5)), changes

    @property
    def info(self):
        return self.toy.info

    def evaluate(self, structures, fields=None, observables=("polarization",)):
        single = not isinstance(structures, list | tuple)
        answers = self.toy.evaluate(structures, fields, observables)
        crystals, answers = ([structures], [answers]) if single else (structures, answers)
        changed = []
        for crystal, answer in zip(crystals, answers, strict=True):
            values = {
                name: change(getattr(answer, name), crystal, answer.field)
                for name, change in self.changes.items()
                if getattr(answer, name) is not None
            }
            changed.append(replace(answer, **values))
        return changed[0] if single else changed


def failing_checks(model):
    class Contract(FieldModelContract):
        def make_model(self):
            return model

    failed = set()
    for name in CHECKS:
        try:
            getattr(Contract(), name)()
        except AssertionError:
            failed.add(name)
    return failed


def _volume(atoms):
    return atoms.get_volume() if hasattr(atoms, "get_volume") else atoms.volume


def _positions(atoms):
    return atoms.positions if hasattr(atoms, "positions") else atoms.cart_coords


def test_sound_model_passes_all():
    assert failing_checks(Broken()) == set()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"forces": lambda f, a, e: -f}, {"test_forces", "test_forces_under_field", "test_hessian"}),
        ({"stress": lambda s, a, e: -s}, {"test_stress"}),
        ({"stress": lambda s, a, e: s * _volume(a)}, {"test_stress", "test_supercell"}),
        (
            {"polarization": lambda p, a, e: p * _volume(a)},  # dipole of the cell instead of a density
            {"test_polarization", "test_polarizability", "test_born_charges_from_polarization", "test_supercell"},
        ),
        (
            {"polarization": lambda p, a, e: p + np.sum(_positions(a), axis=0) / _volume(a)},  # absolute positions
            {"test_polarization", "test_born_charges_from_polarization", "test_translation_and_wrapping"},
        ),
        (
            {"born_effective_charges": lambda z, a, e: z.transpose(0, 2, 1)},
            {"test_born_charges_from_polarization", "test_forces_under_field"},
        ),
        (
            {"born_effective_charges": lambda z, a, e: z + 0.01 * np.eye(3)},
            {"test_sum_rules", "test_forces_under_field"},
        ),
        ({"polarizability": lambda x, a, e: 4 * np.pi * x}, {"test_polarizability"}),
        ({"polarizability": lambda x, a, e: x + 1e-3 * np.eye(3, k=1)}, {"test_polarizability", "test_rotation"}),
        ({"hessian": lambda h, a, e: 2 * h}, {"test_hessian"}),
        ({"hessian": lambda h, a, e: h + np.eye(len(h))}, {"test_hessian", "test_sum_rules"}),
        ({"energy": lambda f, a, e: f + float(e @ e)}, {"test_polarization", "test_supercell"}),
        ({"energy": lambda f, a, e: f + float(e[0])}, {"test_rotation", "test_polarization"}),
    ],
    ids=[
        "sign of forces",
        "sign of stress",
        "virial for stress",
        "no volume in P",
        "absolute positions in P",
        "transposed Z*",
        "no sum rule",
        "Gaussian polarizability",
        "asymmetric polarizability",
        "twice the Hessian",
        "pinned Hessian",
        "no volume in the field energy",
        "not covariant",
    ],
)
def test_broken_models_are_noticed(changes, expected):
    assert expected <= failing_checks(Broken(**changes))


def test_missing_observables_are_skipped_not_passed():
    class Contract(FieldModelContract):
        observables = ("energy", "polarization")

        def make_model(self):
            return ToyModel()

    with pytest.raises(pytest.skip.Exception, match="hessian"):
        Contract().test_hessian()
    Contract().test_polarization()


def test_a_contract_without_model_says_what_to_do():
    with pytest.raises(NotImplementedError, match="make_model"):
        FieldModelContract().test_card()
