"""Textbook pairs of nonpolar and polar crystals, each in a cell of its own, and their shifts by hand."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.spacegroup import crystal

from fieldflows.testing.structures import tetragonal_batio3

PEROVSKITE = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])


def cubic(formula: str, length: float) -> Atoms:
    return Atoms(formula, scaled_positions=PEROVSKITE, cell=[length] * 3, pbc=True)


def barium_titanate() -> tuple[Atoms, Atoms]:
    """BaTiO3: Pm-3m, a = 4.0118 Å at 201 °C (Wyckoff, Crystal Structures, vol. 2 (1964)), and P4mm."""
    return cubic("BaTiO3", 4.0118), tetragonal_batio3()


def lead_titanate() -> tuple[Atoms, Atoms]:
    """PbTiO3: Pm-3m, a = 3.96 Å (Shirane and Hoshino, J. Phys. Soc. Jpn. 6, 265 (1951)), and P4mm.

    a = 3.902, c = 4.156 Å, z of Ti 0.5377, O 0.1118 and 0.6174: Nelmes and Kuhs, Solid State Commun. 54, 721 (1985).
    """
    scaled = PEROVSKITE.copy()
    scaled[1:, 2] = [0.5377, 0.1118, 0.6174, 0.6174]
    return cubic("PbTiO3", 3.96), Atoms("PbTiO3", scaled_positions=scaled, cell=[3.902, 3.902, 4.156], pbc=True)


def lithium_niobate() -> tuple[Atoms, Atoms]:
    """LiNbO3: R-3c as a hexagonal cell of 30 atoms, and R3c as a primitive one of 10 atoms in another order.

    R3c after Abrahams, Reddy and Bernstein, J. Phys. Chem. Solids 27, 997 (1966), rounded as in later refinements;
    R-3c on the same lattice after Boysen and Altorfer, Acta Cryst. B 50, 405 (1994): Li (0, 0, 1/4), Nb (0, 0, 0).
    """
    lattice = [5.14829, 5.14829, 13.8631, 90, 90, 120]
    sites = [(0, 0, 0), (0, 0, 0.2787), (0.0476, 0.3433, 0.0633)]
    polar = crystal(["Nb", "Li", "O"], sites, spacegroup=161, cellpar=lattice, primitive_cell=True)
    sites = [(0, 0, 0.25), (0, 0, 0), (0.0489 + 1 / 3, 0, 0.25)]
    nonpolar = crystal(["Li", "Nb", "O"], sites, spacegroup=167, cellpar=lattice)
    return nonpolar, polar


def aluminum_nitride() -> tuple[Atoms, Atoms]:
    """AlN: layered P6_3/mmc and wurtzite P6_3mc, as calculated: Smidt et al., Sci. Data 7, 72 (2020), mp-13178, mp-661.

    a = 3.1276, c = 5.0152 Å, u = 0.3814, and a = 3.3121, c = 4.1876 Å, where u = 1/2.
    """
    polar = crystal(["Al", "N"], [(1 / 3, 2 / 3, 0), (1 / 3, 2 / 3, 0.3814)], spacegroup=186,
                    cellpar=[3.1276, 3.1276, 5.0152, 90, 90, 120])  # fmt: skip
    nonpolar = crystal(["N", "Al"], [(1 / 3, 2 / 3, 0.75), (1 / 3, 2 / 3, 0.25)], spacegroup=194,
                       cellpar=[3.3121, 3.3121, 4.1876, 90, 90, 120])  # fmt: skip
    return nonpolar, polar


PAIRS = {
    "BaTiO3": barium_titanate,
    "PbTiO3": lead_titanate,
    "LiNbO3": lithium_niobate,
    "AlN": aluminum_nitride,
}
