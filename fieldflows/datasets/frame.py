"""One labeled crystal, in internal units."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ase import Atoms

LABEL_UNITS: dict[str, str] = {
    "energy": "eV",
    "forces": "eV/Å",
    "stress": "eV/Å³",
    "polarization": "e/Å²",
    "born_effective_charges": "e",
    "polarizability": "e/(V·Å)",
    "epsilon_ionic": "1",
    "piezoelectric": "C/m²",
    "refractive_index": "1",
}
"""Unit of every label that a frame may hold."""

LABEL_SHAPES: dict[str, tuple[int | str, ...]] = {
    "energy": (),
    "forces": ("n", 3),
    "stress": (3, 3),
    "polarization": (3,),
    "born_effective_charges": ("n", 3, 3),
    "polarizability": (3, 3),
    "epsilon_ionic": (3, 3),
    "piezoelectric": (3, 6),
    "refractive_index": (),
}
"""Shape of every label that a frame may hold."""


def label_shape(name: str, n_atoms: int) -> tuple[int, ...]:
    """Return the shape of a label for a crystal of so many atoms."""
    return tuple(n_atoms if isinstance(extent, str) else extent for extent in LABEL_SHAPES[name])


EVALUATION_ONLY: frozenset[str] = frozenset({"epsilon_ionic", "piezoelectric", "refractive_index"})
"""Labels that no model is trained on directly: they judge derived properties."""


@dataclass(frozen=True)
class LabeledFrame:
    """A crystal and what is known about its response, in internal units.

    Attributes:
        atoms: The crystal, without calculator and without extra arrays.
        labels: Labels by name (:data:`LABEL_UNITS`, :data:`LABEL_SHAPES`); energy is a 0-dimensional array.
            ``epsilon_ionic``, ``piezoelectric`` (Voigt columns xx, yy, zz, yz, xz, xy) and ``refractive_index`` are for
            evaluation only.
        material: Reduced formula; the unit of the split.
        source: Name of the source in the dataset's configuration.
        source_index: Frame number in that source, from 0.
        split: "train", "valid", "test", or None before the split.
        flags: Codes of what is noteworthy but not wrong (:mod:`fieldflows.datasets.filters`).
        extra: More about the frame: identifiers, path numbers, residuals that the cleaning removed.
    """

    atoms: Atoms
    labels: dict[str, NDArray[np.float64]]
    material: str
    source: str
    source_index: int
    split: str | None = None
    flags: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.atoms)

    def with_(self, **changes: Any) -> LabeledFrame:
        """Return a copy with some attributes replaced."""
        return replace(self, **changes)

    @property
    def head(self) -> str | None:
        """Head of the network that predicts it (``extra["head"]``), None if nothing says."""
        head = self.extra.get("head")
        return None if head is None else str(head)

    @property
    def name(self) -> str:
        """Formula and origin, for messages."""
        return f"{self.material} ({self.source}:{self.source_index})"


def reduced_formula(numbers: NDArray[np.int64]) -> str:
    """Return the reduced formula as pymatgen spells it.

    Example:
        >>> reduced_formula(np.array([22, 56, 8, 8, 8]))
        'BaTiO3'
    """
    values, counts = np.unique(numbers, return_counts=True)
    return _reduced_formula(tuple(values.tolist()), tuple(counts.tolist()))


@lru_cache(maxsize=65536)
def _reduced_formula(numbers: tuple[int, ...], counts: tuple[int, ...]) -> str:
    from ase.data import chemical_symbols
    from pymatgen.core import Composition

    composition = {chemical_symbols[z]: count for z, count in zip(numbers, counts, strict=True)}
    return Composition(composition).reduced_formula
