"""Structure types of all crystal systems, dense in oxygen, sodium and titanium, for models with short cut-offs."""

from __future__ import annotations

from functools import cache

import numpy as np
from ase import Atoms

from tests.physics.lattices import Writing, write_down


def _crystal(symbols: str, sites: list[tuple[float, float, float]], group: int, cell: list[float]) -> Atoms:
    from ase.spacegroup import crystal

    found = crystal(symbols.split(), sites, spacegroup=group, cellpar=cell)
    return Atoms(numbers=found.numbers, positions=found.positions, cell=found.cell[:], pbc=True)


@cache
def _types() -> dict[str, Atoms]:
    right = [90.0, 90.0, 90.0]
    hexagonal = [90.0, 90.0, 120.0]
    inverted = Atoms(
        "TiNaOO",
        cell=[[3.6, 0.2, -0.1], [0.4, 3.9, 0.3], [-0.5, 0.35, 4.2]],
        scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5], [0.31, 0.42, 0.02], [-0.31, -0.42, -0.02]],
        pbc=True,
    )
    return {
        "triclinic P1": Atoms(
            "OTiNa",
            cell=[[3.3, 0.2, -0.1], [0.4, 3.6, 0.3], [-0.5, 0.35, 3.9]],
            scaled_positions=[[0.03, 0.05, -0.02], [0.48, 0.56, 0.41], [0.61, 0.07, 0.55]],
            pbc=True,
        ),
        "triclinic P-1": inverted,
        "monoclinic P2_1/c": _crystal(  # baddeleyite
            "Ti O O",
            [(0.2754, 0.0395, 0.2083), (0.07, 0.3317, 0.3447), (0.4496, 0.7569, 0.4792)],
            14,
            [4.8, 4.9, 5.0, 90.0, 99.2, 90.0],
        ),
        "monoclinic C2/m": _crystal(  # AlCl3-like layers, filled
            "Na Ti O", [(0, 0.5, 0.5), (0, 0, 0), (0.27, 0.0, 0.27)], 12, [5.4, 3.1, 5.3, 90.0, 108.0, 90.0]
        ),
        "monoclinic Pm": _crystal(
            "Na Ti O O",
            [(0, 0, 0), (0.52, 0.5, 0.48), (0.5, 0.5, 0.02), (0.03, 0.0, 0.5)],
            6,
            [3.7, 3.8, 4.0, 90, 96, 90],
        ),
        "orthorhombic Cmcm": _crystal(  # post-perovskite
            "Na Ti O O",
            [(0, 0.25, 0.25), (0, 0, 0), (0, 0.92, 0.25), (0, 0.63, 0.44)],
            63,
            [2.7, 8.6, 6.6, *right],
        ),
        "orthorhombic Amm2": _crystal(  # a ferroelectric perovskite
            "Na Ti O O", [(0, 0, 0), (0.5, 0, 0.512), (0, 0, 0.481), (0.5, 0.253, 0.232)], 38, [3.9, 5.5, 5.6, *right]
        ),
        "tetragonal P4_2/mnm": _crystal("Ti O", [(0, 0, 0), (0.305, 0.305, 0)], 136, [4.59, 4.59, 2.96, *right]),
        "tetragonal I4_1/amd": _crystal("Ti O", [(0, 0, 0), (0, 0, 0.208)], 141, [3.78, 3.78, 9.5, *right]),
        "tetragonal P4mm": _crystal(
            "Na Ti O O", [(0, 0, 0), (0.5, 0.5, 0.514), (0.5, 0.5, 0.977), (0.5, 0, 0.486)], 99, [3.8, 3.8, 3.9, *right]
        ),
        "trigonal P3_221": _crystal(  # quartz
            "Ti O", [(0.4697, 0.0, 2 / 3), (0.4135, 0.2669, 0.7858)], 154, [4.9, 4.9, 5.4, *hexagonal]
        ),
        "trigonal R3c": _crystal(  # a ferroelectric perovskite
            "Na Ti O", [(0, 0, 0.29), (0, 0, 0.01), (0.11, 0.34, 0.08)], 161, [5.2, 5.2, 13.6, *hexagonal]
        ),
        "hexagonal P6_3mc": _crystal(  # wurtzite
            "Na O", [(1 / 3, 2 / 3, 0), (1 / 3, 2 / 3, 0.38)], 186, [3.25, 3.25, 5.2, *hexagonal]
        ),
        "cubic Fm-3m": _crystal("Na O", [(0, 0, 0), (0.5, 0.5, 0.5)], 225, [4.4, 4.4, 4.4, *right]),
        "cubic F-43m": _crystal("Ti O", [(0, 0, 0), (0.25, 0.25, 0.25)], 216, [4.5, 4.5, 4.5, *right]),
        "cubic Pa-3": _crystal("Ti O", [(0, 0, 0), (0.36, 0.36, 0.36)], 205, [4.8, 4.8, 4.8, *right]),
        "cubic Pm-3m": _crystal("Na Ti O", [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)], 221, [3.8, 3.8, 3.8, *right]),
    }


TYPES = tuple(_types())


def prototype(name: str) -> Atoms:
    """Return the conventional cell of a structure type."""
    return _types()[name].copy()


def tilted(name: str, seed: int = 0, noise: float = 1e-4, **options) -> Atoms:
    """Return the crystal in a random frame, off its symmetry by the noise in Å."""
    return write_down(prototype(name), Writing(seed=seed, noise=noise, **{"strain": 1e-5, **options}))


def hidden_field(name: str, seed: int, along: np.ndarray) -> np.ndarray:
    """Return a field that is given in the frame of the structure type, in the frame of :func:`tilted`."""
    from fieldflows.testing.structures import random_rotation

    return random_rotation(np.random.default_rng(seed)) @ along
