"""Errors in the units that people quote, with those of trivial predictors beside.

Every metric is given as MAE, RMSE and R² over all components of all frames that have the label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from fieldflows.observables import OBSERVABLES
from fieldflows.units import E_PER_A2_TO_UC_PER_CM2, EPSILON_VACUUM

if TYPE_CHECKING:
    from ase import Atoms

FloatArray = NDArray[np.float64]
Predictions = list[dict[str, FloatArray]]
"""One mapping of observable to array per frame, internal units."""


class Frame(Protocol):
    """What is needed of a labeled frame: a crystal and its labels in internal units."""

    @property
    def atoms(self) -> Atoms:
        """The crystal."""
        ...

    @property
    def labels(self) -> dict[str, FloatArray]:
        """Observable to array."""
        ...


_DIAGONAL = np.eye(3, dtype=bool)


@dataclass(frozen=True)
class Quantity:
    """Something that is reported: a view on an observable.

    Attributes:
        name: Key in metrics.json.
        observable: The label that it comes from.
        symbol: Symbol on axes.
        unit: Unit of the numbers.
    """

    name: str
    observable: str
    symbol: str
    unit: str


QUANTITIES: tuple[Quantity, ...] = (
    Quantity("energy_per_atom", "energy", "E", "meV/atom"),
    Quantity("forces", "forces", "F", "meV/Å"),
    Quantity("stress", "stress", "σ", "meV/Å³"),
    Quantity("polarization", "polarization", "P", "µC/cm²"),
    Quantity("born_charge_diagonal", "born_effective_charges", "Z* (diagonal)", "e"),
    Quantity("born_charge_off_diagonal", "born_effective_charges", "Z* (off-diagonal)", "e"),
    Quantity("epsilon_electronic_diagonal", "polarizability", "ε∞ (diagonal)", "1"),
    Quantity("epsilon_electronic_off_diagonal", "polarizability", "ε∞ (off-diagonal)", "1"),
    Quantity("refractive_index", "polarizability", "n", "1"),
)
"""What a training run reports, in this order."""

DETAILS: tuple[Quantity, ...] = (
    Quantity("stress_diagonal", "stress", "σ (diagonal)", "meV/Å³"),
    Quantity("stress_off_diagonal", "stress", "σ (off-diagonal)", "meV/Å³"),
    Quantity("polarization_norm", "polarization", "|P|", "µC/cm²"),
    Quantity("epsilon_electronic_mean", "polarizability", "tr ε∞/3", "1"),
)
"""More views on the same observables, which an evaluation reports beside them."""

ALL_QUANTITIES: tuple[Quantity, ...] = tuple(
    item
    for observable in dict.fromkeys(quantity.observable for quantity in QUANTITIES)
    for item in (*QUANTITIES, *DETAILS)
    if item.observable == observable
)
"""Everything that is reported of an evaluation, by observable."""


def view(quantity: Quantity, value: FloatArray, n_atoms: int) -> FloatArray:
    """Return the numbers of a quantity out of an observable in internal units, as a flat array."""
    if quantity.name == "energy_per_atom":
        return np.atleast_1d(value) / n_atoms * 1e3
    if quantity.name == "stress_diagonal":
        return value[_DIAGONAL] * 1e3
    if quantity.name == "stress_off_diagonal":
        return value[~_DIAGONAL] * 1e3
    if quantity.observable in ("forces", "stress"):
        return value.ravel() * 1e3
    if quantity.name == "polarization_norm":
        return np.atleast_1d(np.linalg.norm(value)) * E_PER_A2_TO_UC_PER_CM2
    if quantity.name == "polarization":
        return value * E_PER_A2_TO_UC_PER_CM2
    if quantity.name == "born_charge_diagonal":
        return value[:, _DIAGONAL].ravel()
    if quantity.name == "born_charge_off_diagonal":
        return value[:, ~_DIAGONAL].ravel()
    epsilon = np.eye(3) + value / EPSILON_VACUUM
    if quantity.name == "epsilon_electronic_diagonal":
        return epsilon[_DIAGONAL]
    if quantity.name == "epsilon_electronic_off_diagonal":
        return epsilon[~_DIAGONAL]
    if quantity.name == "epsilon_electronic_mean":
        return np.atleast_1d(np.trace(epsilon) / 3)
    return np.atleast_1d(np.sqrt(max(float(np.trace(epsilon)) / 3, 0.0)))


def fold(difference: FloatArray, cell: FloatArray) -> FloatArray:
    """Return a polarization difference (3,) in e/Å² folded into the cell of quanta e a_k/Ω."""
    quanta = cell / abs(np.linalg.det(cell))
    x = difference @ np.linalg.inv(quanta)
    return difference - np.round(x) @ quanta


def collect(
    frames: Sequence[Frame], predictions: Predictions, quantities: Sequence[Quantity] = QUANTITIES
) -> dict[str, tuple[Quantity, FloatArray, FloatArray]]:
    """Return label and prediction of every quantity as flat arrays of one length.

    Polarizations are put on the branch of the label: label + fold(prediction − label).
    """
    collected = {}
    for quantity in quantities:
        reference, predicted = [], []
        for frame, prediction in zip(frames, predictions, strict=True):
            key = quantity.observable
            if key not in frame.labels or key not in prediction:
                continue
            label, value = frame.labels[key], prediction[key]
            if key == "polarization":
                value = label + fold(value - label, frame.atoms.cell[:])
            reference.append(view(quantity, label, len(frame.atoms)))
            predicted.append(view(quantity, value, len(frame.atoms)))
        if reference:
            collected[quantity.name] = (quantity, np.concatenate(reference), np.concatenate(predicted))
    return collected


def errors(reference: FloatArray, predicted: FloatArray) -> dict[str, float | None]:
    """Return MAE, RMSE, R² and the number of values; R² is None if the reference does not vary."""
    difference = predicted - reference
    variance = float(np.sum(np.square(reference - reference.mean())))
    return {
        "mae": float(np.mean(np.abs(difference))),
        "rmse": float(np.sqrt(np.mean(np.square(difference)))),
        "r2": 1.0 - float(np.sum(np.square(difference))) / variance if variance > 1e-20 * len(reference) else None,
        "count": len(reference),
    }


def evaluate_metrics(frames: Sequence[Frame], predictions: Predictions) -> dict[str, dict[str, float | str | None]]:
    """Return the errors of every quantity that the frames have labels for, with its unit."""
    return {
        name: {"unit": quantity.unit, **errors(reference, predicted)}
        for name, (quantity, reference, predicted) in collect(frames, predictions).items()
    }


class TrivialPredictor:
    """What can be said without looking at a structure: medians of the training labels.

    Z*: median of the diagonal by element (times the identity); α: median of the diagonal (times the identity);
    polarization and forces: zero; stress: mean; energy: least squares over the composition.

    Args:
        frames: The training frames.
        atomic_energies: Atomic number to baseline in eV.
    """

    def __init__(self, frames: Sequence[Frame], atomic_energies: Mapping[int, float]) -> None:
        self.atomic_energies = dict(atomic_energies)
        charges: dict[int, list[FloatArray]] = {}
        alphas, stresses = [], []
        for frame in frames:
            if "born_effective_charges" in frame.labels:
                diagonal = frame.labels["born_effective_charges"][:, _DIAGONAL]
                for z, values in zip(frame.atoms.numbers, diagonal, strict=True):
                    charges.setdefault(int(z), []).append(values)
            if "polarizability" in frame.labels:
                alphas.append(np.diag(frame.labels["polarizability"]))
            if "stress" in frame.labels:
                stresses.append(frame.labels["stress"])
        self.charges = {z: float(np.median(np.concatenate(values))) for z, values in charges.items()}
        self.alpha = float(np.median(np.concatenate(alphas))) if alphas else 0.0
        self.stress = np.mean(stresses, axis=0) if stresses else np.zeros((3, 3))

    def predict(self, frame: Frame) -> dict[str, FloatArray]:
        """Return the predictions for one frame."""
        numbers = frame.atoms.numbers
        charges = np.array([self.charges.get(int(z), 0.0) for z in numbers])
        return {
            "energy": np.array(sum(self.atomic_energies.get(int(z), 0.0) for z in numbers)),
            "forces": np.zeros((len(numbers), 3)),
            "stress": self.stress,
            "polarization": np.zeros(3),
            "born_effective_charges": charges[:, None, None] * np.eye(3),
            "polarizability": self.alpha * np.eye(3),
        }


def summary(metrics: Mapping[str, Mapping[str, object]]) -> str:
    """Return the mean absolute errors in one line."""
    symbols = {quantity.name: quantity.symbol for quantity in QUANTITIES}
    parts = []
    for name, values in metrics.items():
        if "off_diagonal" in name:
            continue
        unit = f" {values['unit']}" if values["unit"] != "1" else ""
        parts.append(f"{symbols[name].replace(' (diagonal)', '')} {values['mae']:.3g}{unit}")
    return ", ".join(parts)


def split_predictions(results: Mapping[str, FloatArray], sizes: Sequence[int]) -> Predictions:
    """Return the outputs of a batch frame by frame."""
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return [
        {
            key: (value[offsets[g] : offsets[g + 1]] if OBSERVABLES[key].per_atom else np.asarray(value[g]))
            for key, value in results.items()
        }
        for g in range(len(sizes))
    ]
