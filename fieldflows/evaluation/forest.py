"""A random forest on composition and volume: what ε∞ and n can be told without looking at a structure.

The features are the element fractions, mean, spread, minimum and maximum of elemental properties weighted by the
fractions, and the volume per atom.  It is the line above which a model of the structure is worth its price.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from fieldflows.errors import SettingsError
from fieldflows.training.metrics import FloatArray
from fieldflows.units import EPSILON_VACUUM

if TYPE_CHECKING:
    from ase import Atoms

    from fieldflows.datasets.frame import LabeledFrame

PROPERTIES: tuple[str, ...] = (
    *("Z", "row", "group", "mendeleev_no", "atomic_mass", "X", "atomic_radius", "ionization_energy"),
    *("electron_affinity", "average_ionic_radius", "molar_volume"),
)
"""Elemental properties of pymatgen; unknown ones count as the mean over the elements."""

TREES = 300
LEAF = 1
"""Trees of a forest, and crystals in a leaf."""


def forest_available() -> bool:
    """Return whether scikit-learn is installed."""
    return find_spec("sklearn") is not None


@lru_cache(maxsize=1)
def _table() -> FloatArray:
    """Return the elemental properties, (119, len(PROPERTIES)); the row is the atomic number."""
    from pymatgen.core import Element

    table = np.full((119, len(PROPERTIES)), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns of every property that an element lacks
        for z in range(1, 119):
            element = Element.from_Z(z)
            for k, name in enumerate(PROPERTIES):
                try:
                    value = getattr(element, name)
                except (AttributeError, KeyError):  # pymatgen raises either where nothing is known
                    value = None
                table[z, k] = np.nan if value is None else float(value)
    return np.where(np.isfinite(table), table, np.nanmean(table, axis=0))


def composition_features(atoms: Atoms, atomic_numbers: Sequence[int]) -> FloatArray:
    """Return the features of a crystal: fractions (dimensionless), statistics of properties, volume per atom in Å³.

    Args:
        atoms: The crystal; positions are not looked at.
        atomic_numbers: Elements of the training crystals, which get a fraction each.

    Returns:
        (len(atomic_numbers) + 4 len(PROPERTIES) + 1,)
    """
    elements, counts = np.unique(atoms.numbers, return_counts=True)
    fractions = counts / counts.sum()
    known = dict(zip(elements.tolist(), fractions.tolist(), strict=True))
    values = _table()[elements]
    mean = fractions @ values
    spread = np.sqrt(np.maximum(fractions @ np.square(values - mean), 0.0))
    volume = atoms.get_volume() / len(atoms)
    return np.concatenate(
        [[known.get(z, 0.0) for z in atomic_numbers], mean, spread, values.min(axis=0), values.max(axis=0), [volume]]
    )


class CompositionForest:
    """Forests for tr ε∞/3 and n, fitted to labeled crystals.

    Args:
        frames: Crystals with a polarizability.
        seed: Seed of the forests; one seed, one forest.

    Raises:
        SettingsError: If scikit-learn is not installed.
    """

    def __init__(self, frames: Sequence[LabeledFrame], seed: int = 0) -> None:
        if not forest_available():
            raise SettingsError(
                "The forest baseline needs scikit-learn, which is not installed.",
                "Install it (`pip install fieldflows[evaluation]`), or leave the baseline out (--forest off).",
            )
        from sklearn.ensemble import RandomForestRegressor

        labeled = [frame for frame in frames if "polarizability" in frame.labels]
        self.atomic_numbers = sorted({int(z) for frame in labeled for z in frame.atoms.numbers})
        mean = np.array([1 + np.trace(frame.labels["polarizability"]) / (3 * EPSILON_VACUUM) for frame in labeled])
        features = self._features(labeled)
        self.models = {
            name: RandomForestRegressor(TREES, min_samples_leaf=LEAF, max_features=1 / 3, random_state=seed).fit(
                features, target
            )
            for name, target in (("epsilon", mean), ("index", np.sqrt(np.maximum(mean, 0.0))))
        }

    def _features(self, frames: Sequence[LabeledFrame]) -> FloatArray:
        return np.array([composition_features(frame.atoms, self.atomic_numbers) for frame in frames])

    def predict(self, frames: Sequence[LabeledFrame]) -> tuple[FloatArray, FloatArray]:
        """Return tr ε∞/3 and n of crystals, (g,) each, from a forest of their own each."""
        features = self._features(frames)
        return self.models["epsilon"].predict(features), self.models["index"].predict(features)
