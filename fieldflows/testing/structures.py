"""Small crystals with published lattice parameters, and random ones without symmetry, for tests and examples.

Cells are primitive and in a fixed Cartesian frame, as ``ase.Atoms``.  Sources of the parameters are named in each
function; they are experimental, near room temperature, unless said otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.random import Generator


def rocksalt_mgo() -> Atoms:
    """Return MgO (Fm-3m, 2 atoms), a = 4.2112 Å: Wyckoff, Crystal Structures, vol. 1 (1963)."""
    from ase.build import bulk

    return bulk("MgO", "rocksalt", a=4.2112)


def cesium_chloride() -> Atoms:
    """Return CsCl (Pm-3m, 2 atoms), a = 4.123 Å: Wyckoff, Crystal Structures, vol. 1 (1963)."""
    from ase.build import bulk

    return bulk("CsCl", "cesiumchloride", a=4.123)


def zincblende_gaas() -> Atoms:
    """Return GaAs (F-43m, 2 atoms), a = 5.6533 Å: Blakemore, J. Appl. Phys. 53, R123 (1982)."""
    from ase.build import bulk

    return bulk("GaAs", "zincblende", a=5.6533)


def wurtzite_zno() -> Atoms:
    """Return ZnO (P6_3mc, 4 atoms, polar), a = 3.2501, c = 5.2071 Å, u = 0.3817.

    Kisi and Elcombe, Acta Cryst. C 45, 1867 (1989).
    """
    from ase.build import bulk

    return bulk("ZnO", "wurtzite", a=3.2501, c=5.2071, u=0.3817)


def perovskite_srtio3() -> Atoms:
    """Return SrTiO3 (Pm-3m, 5 atoms), a = 3.905 Å: Okazaki and Kawaminami, Mater. Res. Bull. 8, 545 (1973)."""
    from ase import Atoms

    a = 3.905
    positions = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    return Atoms("SrTiO3", scaled_positions=positions, cell=[a, a, a], pbc=True)


def tetragonal_batio3() -> Atoms:
    """Return BaTiO3 (P4mm, 5 atoms, polar), a = 3.992, c = 4.036 Å.

    Frazer, Danner and Pepinsky, Phys. Rev. 100, 745 (1955), room temperature: shifts along c of +0.014 (Ti), −0.023
    (O on the axis) and −0.014 (other O), rounded.
    """
    from ase import Atoms

    positions = [[0, 0, 0], [0.5, 0.5, 0.514], [0.5, 0.5, 0.977], [0.5, 0, 0.486], [0, 0.5, 0.486]]
    return Atoms("BaTiO3", scaled_positions=positions, cell=[3.992, 3.992, 4.036], pbc=True)


def alpha_quartz() -> Atoms:
    """Return α-SiO2 (P3_221, 9 atoms, chiral), a = 4.916, c = 5.4054 Å.

    Levien, Prewitt and Weidner, Am. Mineral. 65, 920 (1980), room pressure: Si x = 0.4697; O x, y, z = 0.4135,
    0.2669, 0.1191, with the origin moved by c/3 to that of the International Tables.
    """
    from ase.spacegroup import crystal

    return crystal(
        ["Si", "O"],
        [(0.4697, 0.0, 2 / 3), (0.4135, 0.2669, 0.1191 + 2 / 3)],
        spacegroup=154,
        cellpar=[4.916, 4.916, 5.4054, 90, 90, 120],
    )


def named_structures() -> dict[str, Atoms]:
    """Return all crystals of this module by name."""
    builders = (
        rocksalt_mgo,
        cesium_chloride,
        zincblende_gaas,
        wurtzite_zno,
        perovskite_srtio3,
        tetragonal_batio3,
        alpha_quartz,
    )
    return {builder.__name__: builder() for builder in builders}


def random_crystal(
    seed: int | Generator,
    symbols: tuple[str, ...] = ("Mg", "O", "O", "Si"),
    volume_per_atom: float = 14.0,
    minimum_distance: float = 1.6,
) -> Atoms:
    """Return a triclinic crystal without symmetry (P1), atoms at random at least ``minimum_distance`` apart.

    Args:
        seed: Of the random numbers.
        symbols: One per atom.
        volume_per_atom: In Å³.
        minimum_distance: In Å, periodic images included.

    Raises:
        ValueError: If no such crystal was found in 50 cells: the atoms are too dense.
    """
    from ase import Atoms
    from ase.geometry import cell_to_cellpar

    rng = np.random.default_rng(seed)
    volume = volume_per_atom * len(symbols)
    for _ in range(50):
        cell = np.eye(3) + rng.uniform(-0.3, 0.3, (3, 3))
        cell *= (volume / abs(np.linalg.det(cell))) ** (1 / 3)
        if cell_to_cellpar(cell)[3:].min() < 55 or cell_to_cellpar(cell)[3:].max() > 125:
            continue
        positions: list[np.ndarray] = []
        for _ in range(40 * len(symbols)):
            candidate = rng.uniform(0, 1, 3)
            if _clearance(candidate, positions, cell) >= minimum_distance:
                positions.append(candidate)
            if len(positions) == len(symbols):
                return Atoms(list(symbols), scaled_positions=np.array(positions), cell=cell, pbc=True)
    raise ValueError(f"no {len(symbols)} atoms {minimum_distance} Å apart in {volume:.0f} Å³; give more volume")


def _clearance(candidate: np.ndarray, others: list[np.ndarray], cell: np.ndarray) -> float:
    """Return the shortest distance in Å from a point (fractional) to points, and to its own images."""
    shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    own = np.linalg.norm(shifts[np.any(shifts != 0, axis=1)] @ cell, axis=1).min()
    if not others:
        return float(own)
    delta = candidate - np.array(others)
    return float(min(own, np.linalg.norm((delta[:, None, :] + shifts) @ cell, axis=2).min()))


def random_rotation(seed: int | Generator, improper: bool = False) -> np.ndarray:
    """Return a random orthogonal (3, 3) matrix with determinant 1, or −1 if improper."""
    rng = np.random.default_rng(seed)
    matrix, triangle = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix = matrix * np.sign(np.diag(triangle))
    if (np.linalg.det(matrix) < 0) != improper:
        matrix = -matrix
    return matrix
