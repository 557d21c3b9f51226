"""Formal ionic charges of a compound, and the branch on which its polarization lies for point charges.

For ions with whole charges q the polarization in quanta is f = Σ_κ q_κ x_κ modulo 1, whatever the periodic images, and
it differs from that of the electrons' Wannier centers by whole numbers if these sit on the ions in closed shells.  At
a crystal without polarization f need not be zero: half a quantum, or a third, is as symmetric.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def formal_charges(numbers: ArrayLike) -> NDArray[np.intp] | None:
    """Return the most common oxidation state of each atom, (n,) in e, or None if none adds up to zero.

    All atoms of an element carry the same charge.

    Args:
        numbers: (n,) atomic numbers.
    """
    kinds, counts = np.unique(np.asarray(numbers, dtype=int), return_counts=True)
    divisor = np.gcd.reduce(counts)
    states = _states(tuple(chemical_symbols[z] for z in kinds), tuple(int(c // divisor) for c in counts))
    if states is None:
        return None
    return np.asarray([states[chemical_symbols[z]] for z in np.asarray(numbers, dtype=int)], dtype=np.intp)


@lru_cache(maxsize=256)
def _states(symbols: tuple[str, ...], counts: tuple[int, ...]) -> dict[str, int] | None:
    from pymatgen.core import Composition

    guesses = Composition(dict(zip(symbols, counts, strict=True))).oxi_state_guesses(max_sites=-1)
    if not guesses or any(float(value) != round(value) for value in guesses[0].values()):
        return None
    return {symbol: round(value) for symbol, value in guesses[0].items()}


def formal_fractions(numbers: ArrayLike, fractional: ArrayLike) -> FloatArray | None:
    """Return f = Σ_κ q_κ x_κ modulo 1, (3,) within ±½, of formal charges; None if there are none.

    Args:
        numbers: (n,) atomic numbers.
        fractional: (n, 3) fractional coordinates, in any periodic images.
    """
    charges = formal_charges(numbers)
    if charges is None:
        return None
    value = charges @ np.asarray(fractional, dtype=float)
    return np.asarray(value - np.round(value))
