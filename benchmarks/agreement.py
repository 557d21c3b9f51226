"""How far the results of two sides lie apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from fieldflows.backends.base import Response

FLOORS = {
    "energy": 1e-3,
    "forces": 1e-3,
    "stress": 1e-5,
    "polarization": 1e-5,
    "born_effective_charges": 1e-3,
    "polarizability": 1e-6,
    "hessian": 1e-2,
}
"""Scale on which an observable is compared that vanishes (forces and P that symmetry forbids), in internal units."""


def relative_difference(name: str, expected: np.ndarray, found: np.ndarray) -> float:
    """Return the largest difference relative to the largest component, or to the floor of the observable."""
    scale = max(float(np.abs(expected).max()), FLOORS.get(name, 1e-6))
    return float(np.abs(np.asarray(expected) - np.asarray(found)).max() / scale)


def response_difference(expected: Mapping[str, np.ndarray], found: Response) -> float:
    """Return the largest relative difference over the observables of the baseline."""
    return max(relative_difference(name, value, np.asarray(found.get(name))) for name, value in expected.items())


def largest(differences: Iterable[float]) -> float:
    """Return the largest of some differences; not a number if one of them is."""
    return float(np.max(list(differences)))
