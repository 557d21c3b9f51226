"""Hypothesis strategies of crystals, rotations and fields.  Needs the ``test`` extra."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import strategies as st

from fieldflows.testing.structures import random_crystal, random_rotation

if TYPE_CHECKING:
    from ase import Atoms

SEEDS = st.integers(min_value=0, max_value=2**31 - 1)


@st.composite
def crystals(
    draw: st.DrawFn,
    elements: tuple[str, ...] = ("Mg", "O", "Si", "Na", "Cl", "Ti"),
    min_atoms: int = 1,
    max_atoms: int = 5,
) -> Atoms:
    """Return a strategy of triclinic crystals without symmetry, atoms at least 1.6 Å apart."""
    symbols = draw(st.lists(st.sampled_from(elements), min_size=min_atoms, max_size=max_atoms))
    volume = draw(st.floats(min_value=14.0, max_value=30.0))
    return random_crystal(draw(SEEDS), tuple(symbols), volume_per_atom=volume)


@st.composite
def rotations(draw: st.DrawFn) -> np.ndarray:
    """Return a strategy of orthogonal matrices, proper and improper."""
    return random_rotation(draw(SEEDS), improper=draw(st.booleans()))


@st.composite
def fields(draw: st.DrawFn, largest: float = 0.1) -> np.ndarray:
    """Return a strategy of electric fields in V/Å, each component at most ``largest``."""
    component = st.floats(min_value=-largest, max_value=largest)
    return np.array([draw(component) for _ in range(3)])


def symmetric_matrices(largest: float = 5.0) -> st.SearchStrategy[np.ndarray]:
    """Return a strategy of symmetric (3, 3) matrices."""
    return st.lists(st.floats(min_value=-largest, max_value=largest), min_size=6, max_size=6).map(
        lambda v: np.array([[v[0], v[5], v[4]], [v[5], v[1], v[3]], [v[4], v[3], v[2]]])
    )


def cells() -> st.SearchStrategy[np.ndarray]:
    """Return a strategy of triclinic cells (rows, Å), not too flat."""
    return SEEDS.map(lambda seed: random_crystal(seed, ("Si",), volume_per_atom=60.0).cell[:])
