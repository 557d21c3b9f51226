"""What a correction head sees of a crystal: the model's own answer and features, and the composition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fieldflows.backends.base import DescribingModel, FieldModel
from fieldflows.evaluation.forest import composition_features
from fieldflows.evaluation.matbench.head import FloatArray, susceptibility
from fieldflows.evaluation.matbench.predict import Prediction

if TYPE_CHECKING:
    from ase import Atoms


def head_features(
    model: FieldModel,
    atoms: Sequence[Atoms],
    predictions: Sequence[Prediction],
    atomic_numbers: Sequence[int],
) -> FloatArray:
    """Return the features of crystals, (m, d), all dimensionless but the volume per atom in Å³.

    These are ln χ and the relative anisotropy of ε∞ of the model, its invariant features averaged over the atoms if it
    has any, and the features of the composition forest.  A crystal for which the model fails gets zeros for the first.

    Args:
        model: The model.
        atoms: The crystals.
        predictions: What the model says of each.
        atomic_numbers: Elements whose fractions count; those of the crystals of the fit.
    """
    if not atoms:
        return np.zeros((0, 0))
    answers = np.array([_answer(item) for item in predictions])
    composition = np.array([composition_features(item, atomic_numbers) for item in atoms])
    return np.hstack([answers, _descriptors(model, atoms), composition])


def _answer(prediction: Prediction) -> tuple[float, float]:
    if prediction.n is None or prediction.principal is None:
        return 0.0, 0.0
    values = prediction.principal
    return float(susceptibility(prediction.n)), float(values.std() / max(abs(values.mean()), 1.0))


def _descriptors(model: FieldModel, atoms: Sequence[Atoms]) -> FloatArray:
    if not isinstance(model, DescribingModel):
        return np.zeros((len(atoms), 0))
    found = model.descriptors(list(atoms))
    size = next((len(item) for item in found if not isinstance(item, Exception)), 0)
    return np.array([np.zeros(size) if isinstance(item, Exception) else item for item in found])
