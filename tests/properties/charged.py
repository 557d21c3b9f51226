"""A model of fixed point charges with its own branch of P, to bring about what models and crystals may do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fieldflows.backends.base import ModelInfo, Response
from fieldflows.backends.toy import ToyModel
from fieldflows.structures import as_atoms

LABELS = ("polarization", "born_effective_charges")


class PointCharges:
    """P = Σ q r/Ω in the images as given, folded to the nearest branch of zero if asked for; Z* = q.

    Args:
        charges: e by symbol.
        folded: Give P modulo quanta, within ±½ of them, as a single-valued function would that starts at zero.
        energy: Energies of a double well −|P|² + |P|⁴ of some depth, or none.
    """

    def __init__(self, charges, folded=False, energy=False):
        self.charges, self.folded = charges, folded
        labels = (*LABELS, "energy", "forces") if energy else LABELS
        self.toy = ToyModel(trained_labels=labels)
        self.asked = []

    @property
    def info(self) -> ModelInfo:
        return replace(self.toy.info, name="charges")

    def evaluate(self, structures, fields=None, observables=LABELS):
        if not isinstance(structures, list | tuple):
            return self._one(as_atoms(structures), observables)
        self.asked.append((len(structures), tuple(observables)))
        return [self._one(as_atoms(item), observables) for item in structures]

    def _one(self, atoms, observables):
        values = {}
        charges = np.array([self.charges[symbol] for symbol in atoms.symbols])
        fractions = charges @ atoms.get_scaled_positions(wrap=False)
        if self.folded:
            fractions = fractions - np.round(fractions)
        if "polarization" in observables:
            values["polarization"] = fractions @ atoms.cell[:] / abs(np.linalg.det(atoms.cell[:]))
        if "born_effective_charges" in observables:
            values["born_effective_charges"] = charges[:, None, None] * np.eye(3)
        if "energy" in observables:
            values["energy"] = self.toy.evaluate(atoms, observables=("energy",)).energy
        return Response(**values)
