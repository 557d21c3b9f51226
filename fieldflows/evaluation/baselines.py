"""What can be said without the model, for every quantity that the model is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from fieldflows.evaluation.forest import TREES, CompositionForest, forest_available
from fieldflows.training.data import fit_atomic_energies
from fieldflows.training.metrics import Predictions, Quantity, TrivialPredictor
from fieldflows.units import EPSILON_VACUUM

if TYPE_CHECKING:
    from fieldflows.datasets.frame import LabeledFrame

BASELINE_OF: dict[str, str] = {
    "energy": "composition",
    "forces": "zero",
    "stress": "mean",
    "polarization": "zero",
    "born_effective_charges": "median",
    "polarizability": "median",
}
"""Name of the trivial prediction of each observable."""

DEFINITIONS: dict[str, str] = {
    "composition": "energies by least squares over the composition, fitted to the training frames",
    "zero": "zero, and nothing else",
    "mean": "mean tensor of the training frames",
    "median": "medians of the training frames: the diagonal of Z* by element, the diagonal of the polarizability",
    "forest": f"random forests of {TREES} trees for tr ε∞/3 and for n on composition (element fractions, statistics of "
    "elemental properties) and volume per atom, fitted to the training frames; ε∞ is taken as isotropic",
}
"""How each baseline is made."""

_SCALARS = ("epsilon_electronic_mean", "refractive_index", "epsilon_electronic_diagonal")


class Baselines:
    """Predictions without a model, fitted to the training frames of the dataset that is evaluated.

    Args:
        reference: The training frames; without any, zero is the only baseline.
        labels: Observables that are compared.
        forest: Whether a forest is wanted: "auto" (if it can be had), "on" or "off".
        seed: Seed of the forest.

    Attributes:
        note: Why there is no forest, if one was possible.

    Raises:
        SettingsError: If the forest is asked for and scikit-learn is not installed.
    """

    def __init__(
        self,
        reference: Sequence[LabeledFrame],
        labels: Sequence[str],
        forest: Literal["auto", "on", "off"] = "auto",
        seed: int = 0,
    ) -> None:
        numbers = sorted({int(z) for frame in reference for z in frame.atoms.numbers})
        energies = dict(zip(numbers, fit_atomic_energies(reference, numbers), strict=True))
        self.labels = tuple(labels)
        self.trivial = TrivialPredictor(reference, energies)
        self.fitted = {key for key in labels if any(key in frame.labels for frame in reference)}
        self.forest: CompositionForest | None = None
        self.note = ""
        if "polarizability" in self.fitted and forest != "off":
            if forest == "auto" and not forest_available():
                self.note = "scikit-learn is not installed: no forest beside ε∞ and n"
            else:
                self.forest = CompositionForest(reference, seed)

    def predict(self, quantity: Quantity, frames: Sequence[LabeledFrame]) -> dict[str, Predictions]:
        """Return the predictions for a quantity by name of the baseline, one mapping per frame."""
        key = quantity.observable
        found: dict[str, Predictions] = {}
        name = BASELINE_OF[key]
        if key in self.fitted or name == "zero":
            found[name] = [{key: self.trivial.predict(frame)[key]} for frame in frames]
        if self.forest is not None and quantity.name in _SCALARS and frames:
            mean, index = self.forest.predict(frames)
            if quantity.name == "refractive_index":
                mean = np.square(index)
            found["forest"] = [{key: (value - 1) * EPSILON_VACUUM * np.eye(3)} for value in mean]
        return found

    @property
    def definitions(self) -> dict[str, str]:
        """Name of each baseline that is there to how it was made."""
        names = [BASELINE_OF[key] for key in self.labels if key in self.fitted or BASELINE_OF[key] == "zero"]
        names += ["forest"] if self.forest is not None else []
        return {name: DEFINITIONS[name] for name in dict.fromkeys(names)}
