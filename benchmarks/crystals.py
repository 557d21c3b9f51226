"""Thousands of labeled crystals of realistic variety, for benchmarks of the dataset layer.

Prototypes of the inorganic literature, occupied by other elements, scaled to bond lengths, strained and displaced; some
come twice or nearly twice, some are wrong.  Labels have the size and the symmetry of real ones, nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii
from ase.spacegroup import crystal
from matscipy.neighbours import neighbour_list

from fieldflows.datasets.extxyz import RawFrame

IONS: dict[str, tuple[str, ...]] = {
    "M1": ("Li", "Na", "K", "Rb", "Cs", "Ag", "Cu", "Tl"),
    "M2": ("Be", "Mg", "Ca", "Sr", "Ba", "Zn", "Cd", "Hg", "Pb", "Sn", "Ni", "Mn", "Eu"),
    "M3": ("Al", "Ga", "In", "Sc", "Y", "La", "Pr", "Nd", "Sm", "Gd", "Ho", "Lu", "Bi", "Sb", "Cr", "B"),
    "M4": ("Ti", "Zr", "Hf", "Si", "Ge", "Sn", "Ce", "Th", "Te"),
    "M5": ("Nb", "Ta", "V", "P", "As", "Sb"),
    "X2": ("O", "S", "Se", "Te"),
    "X1": ("F", "Cl", "Br", "I", "H"),
    "X3": ("N", "P", "As"),
}
"""Elements by valence: cations M, anions X."""

POLARIZABILITY_GAUSSIAN = "REF_polarisability"
CHARGES = "REF_becs"
POLARIZATION = "REF_polarisation"


@dataclass(frozen=True)
class Prototype:
    """A structure type.

    Attributes:
        kinds: For each site, alternatives of valences that are tried together, such as ``("M2", "M4", "X2")``.
        basis: Fractional coordinates of the sites in the standard setting.
        group: Space group number.
        cell: a, b, c, α, β, γ in Å and degrees, before scaling.
        weight: How often it is drawn.
        setting: Setting of the space group.
    """

    kinds: tuple[tuple[str, ...], ...]
    basis: tuple[tuple[float, float, float], ...]
    group: int
    cell: tuple[float, float, float, float, float, float]
    weight: float = 1.0
    setting: int = 1


def _cubic(a: float) -> tuple[float, float, float, float, float, float]:
    return (a, a, a, 90, 90, 90)


def _tetragonal(a: float, c: float) -> tuple[float, float, float, float, float, float]:
    return (a, a, c, 90, 90, 90)


def _hexagonal(a: float, c: float) -> tuple[float, float, float, float, float, float]:
    return (a, a, c, 90, 90, 120)


_AX = (("M1", "X1"), ("M2", "X2"), ("M3", "X3"))
_AX2 = (("M2", "X1"), ("M4", "X2"))
_ABX3 = (("M1", "M5", "X2"), ("M2", "M4", "X2"), ("M3", "M3", "X2"), ("M1", "M2", "X1"))
_ABX4 = (("M1", "M5", "X2"), ("M2", "M4", "X2"), ("M3", "M5", "X2"), ("M1", "M3", "X1"))

PROTOTYPES: dict[str, Prototype] = {
    "rock salt": Prototype(_AX, ((0, 0, 0), (0.5, 0.5, 0.5)), 225, _cubic(4.6)),
    "zincblende": Prototype(_AX, ((0, 0, 0), (0.25, 0.25, 0.25)), 216, _cubic(5.4)),
    "wurtzite": Prototype(_AX, ((1 / 3, 2 / 3, 0), (1 / 3, 2 / 3, 0.375)), 186, _hexagonal(3.25, 5.2)),
    "cesium chloride": Prototype(_AX, ((0, 0, 0), (0.5, 0.5, 0.5)), 221, _cubic(4.1)),
    "fluorite": Prototype(_AX2, ((0, 0, 0), (0.25, 0.25, 0.25)), 225, _cubic(5.4)),
    "rutile": Prototype(_AX2, ((0, 0, 0), (0.305, 0.305, 0)), 136, _tetragonal(4.6, 2.96)),
    "anatase": Prototype(_AX2, ((0, 0, 0), (0, 0, 0.208)), 141, _tetragonal(3.78, 9.5)),
    "quartz": Prototype(_AX2, ((0.4697, 0, 2 / 3), (0.4135, 0.2669, 0.7858)), 154, _hexagonal(4.916, 5.405), 2.0),
    "perovskite": Prototype(_ABX3, ((0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)), 221, _cubic(3.9), 3.0),
    "tilted perovskite": Prototype(
        _ABX3, ((0.05, 0.25, 0.99), (0, 0, 0.5), (0.47, 0.25, 0.08), (0.29, 0.04, 0.71)), 62,
        (5.44, 7.64, 5.38, 90, 90, 90), 4.0,
    ),
    "lithium niobate": Prototype(
        _ABX3, ((0, 0, 0.28), (0, 0, 0), (0.048, 0.343, 0.064)), 161, _hexagonal(5.15, 13.86), 3.0
    ),
    "ilmenite": Prototype(
        _ABX3, ((0, 0, 0.355), (0, 0, 0.146), (0.317, 0.023, 0.245)), 148, _hexagonal(5.09, 14.09), 3.0
    ),
    "corundum": Prototype((("M3", "X2"),), ((0, 0, 0.352), (0.306, 0, 0.25)), 167, _hexagonal(4.76, 12.99)),
    "delafossite": Prototype(
        (("M1", "M3", "X2"),), ((0, 0, 0), (0, 0, 0.5), (0, 0, 0.108)), 166, _hexagonal(3.04, 17.1), 2.0
    ),
    "layered perovskite": Prototype(
        (("M2", "M4", "X2"), ("M1", "M2", "X1")), ((0, 0, 0.355), (0, 0, 0), (0, 0.5, 0), (0, 0, 0.155)), 139,
        _tetragonal(3.86, 12.6), 2.0,
    ),
    "spinel": Prototype(
        (("M2", "M3", "X2"), ("M4", "M2", "X2")), ((1 / 8, 1 / 8, 1 / 8), (0.5, 0.5, 0.5), (0.263, 0.263, 0.263)), 227,
        _cubic(8.08), 4.0, 2,
    ),
    "zircon": Prototype(
        _ABX4, ((0, 0.75, 0.125), (0, 0.25, 0.375), (0, 0.066, 0.195)), 141, _tetragonal(6.6, 5.98), 3.0, 2
    ),
    "scheelite": Prototype(
        _ABX4, ((0, 0.25, 0.625), (0, 0.25, 0.125), (0.15, 0.009, 0.211)), 88, _tetragonal(5.24, 11.37), 3.0, 2
    ),
    "topaz": Prototype(
        (("M3", "M4", "X2", "X2", "X2", "X1"),),
        ((0.131, 0.082, 0.9047), (0.941, 0.25, 0.3994), (0.0313, 0.25, 0.7059), (0.7561, 0.25, 0.4445),
         (0.011, 0.907, 0.79), (0.7532, 0.0596, 0.9017)), 62, (8.797, 8.391, 4.65, 90, 90, 90), 2.0,
    ),
    "bixbyite": Prototype(
        (("M3", "X2"), ("M2", "X3")), ((0.25, 0.25, 0.25), (0.466, 0, 0.25), (0.39, 0.153, 0.383)), 206,
        _cubic(10.1), 1.0,
    ),
    "garnet": Prototype(
        (("M2", "M3", "M4", "X2"), ("M3", "M3", "M3", "X2")),
        ((1 / 8, 0, 1 / 4), (0, 0, 0), (3 / 8, 0, 1 / 4), (0.03, 0.05, 0.65)), 230, _cubic(12.0), 1.0,
    ),
}  # fmt: skip
"""Structure types with coordinates of a well-known member."""


def labeled_crystals(count: int, seed: int = 0) -> Iterator[RawFrame]:
    """Yield crystals of 2 to 100 atoms with α as (ε∞ − 1)/(4π), Z* in e and P in e/Å².

    Of 100, about 2 are exact copies of earlier ones in another order of the atoms, 8 nearly so (strained by 0.1 %,
    rotated, shifted, some doubled), 40 are strained and displaced without any symmetry, and 1 breaks the sum rule.

    Args:
        count: Number of crystals.
        seed: Another seed, other crystals.
    """
    random = np.random.default_rng(seed)
    names = list(PROTOTYPES)
    weights = np.array([PROTOTYPES[name].weight for name in names])
    templates: dict[tuple[str, bool], Atoms] = {}
    pool: list[RawFrame] = []
    for index in range(count):
        lot = random.uniform()
        if pool and lot < 0.10:
            frame = _copy(pool[random.integers(len(pool))], random, exact=lot < 0.02)
        else:
            name = names[random.choice(len(names), p=weights / weights.sum())]
            frame = _labeled(_occupied(name, templates, random, distorted=lot < 0.5), random, wrong=lot > 0.99)
            if len(pool) < 2000:
                pool.append(frame)
        frame.index = index
        yield frame


def _occupied(
    name: str, templates: dict[tuple[str, bool], Atoms], random: np.random.Generator, distorted: bool
) -> Atoms:
    """Return a prototype with elements of its kinds at a plausible volume; the tag of an atom is its site."""
    prototype = PROTOTYPES[name]
    primitive = bool(random.uniform() < 0.8)
    if (name, primitive) not in templates:
        template = _template(prototype, primitive)
        templates[name, primitive] = template if len(template) <= 100 else _template(prototype, True)
    atoms = templates[name, primitive].copy()
    kinds = prototype.kinds[random.integers(len(prototype.kinds))]
    kinds = kinds + kinds[-1:] * (len(prototype.basis) - len(kinds))
    chosen: list[str] = []
    for position, kind in enumerate(kinds):
        if position and kind == kinds[position - 1] and kind.startswith("X"):
            chosen.append(chosen[-1])
        else:
            chosen.append(str(random.choice([item for item in IONS[kind] if item not in chosen])))
    atoms.numbers = np.array([atomic_numbers[item] for item in chosen])[atoms.get_tags()]
    i, j, d = neighbour_list("ijd", atoms, 4.0)
    bonds = covalent_radii[atoms.numbers[i]] + covalent_radii[atoms.numbers[j]]
    atoms.set_cell(atoms.cell[:] * float((bonds / d).max()) * random.uniform(0.97, 1.05), scale_atoms=True)
    if random.uniform() < 0.06:
        while len(atoms) <= 50:
            atoms = atoms.repeat(np.roll([2, 1, 1], random.integers(3)))
    if distorted:
        atoms.set_cell(atoms.cell[:] @ (np.eye(3) + random.normal(scale=0.01, size=(3, 3))), scale_atoms=True)
        atoms.positions += random.normal(scale=random.uniform(0.01, 0.06), size=atoms.positions.shape)
    atoms.info["charges"] = np.array([_valence(kind) for kind in kinds])[atoms.get_tags()]
    return atoms


def _template(prototype: Prototype, primitive: bool) -> Atoms:
    atoms = crystal(
        ["H"] * len(prototype.basis), basis=list(prototype.basis), spacegroup=prototype.group,
        cellpar=list(prototype.cell), primitive_cell=primitive, setting=prototype.setting,
    )  # fmt: skip
    tags = atoms.arrays["spacegroup_kinds"]
    return Atoms(["H"] * len(atoms), positions=atoms.positions, cell=atoms.cell, pbc=True, tags=tags)


def _valence(kind: str) -> float:
    return float(kind[1]) if kind.startswith("M") else -float(kind[1])


def _labeled(atoms: Atoms, random: np.random.Generator, wrong: bool) -> RawFrame:
    n = len(atoms)
    scalar = 1.2 * atoms.info["charges"]
    charges = (scalar - scalar.mean())[:, None, None] * np.eye(3) + random.normal(scale=0.005, size=(n, 3, 3))
    charges -= charges.mean(axis=0)
    if wrong:
        charges[0] += 1.5 * np.eye(3)
    epsilon = 1 + random.lognormal(mean=1.1, sigma=0.5)
    noise = random.normal(scale=0.002, size=(3, 3))
    alpha = ((epsilon - 1) * np.eye(3) + noise + noise.T) / (4 * np.pi)
    return RawFrame(
        numbers=atoms.numbers.astype(np.int64),
        positions=atoms.positions,
        cell=np.array(atoms.cell[:]),
        pbc=np.ones(3, dtype=bool),
        info={POLARIZABILITY_GAUSSIAN: alpha.ravel(), POLARIZATION: random.normal(scale=1e-5, size=3)},
        arrays={CHARGES: charges.reshape(n, 9)},
    )


def _copy(frame: RawFrame, random: np.random.Generator, exact: bool) -> RawFrame:
    """Return the same crystal in another order, or nearly the same in another frame and perhaps another cell."""
    atoms = frame.atoms()
    charges, info = frame.arrays[CHARGES], dict(frame.info)
    if not exact:
        if len(atoms) <= 50 and random.uniform() < 0.3:
            repeats = np.roll([2, 1, 1], random.integers(3))
            atoms, charges = atoms.repeat(repeats), np.tile(charges, (2, 1))
        atoms.set_cell(atoms.cell[:] * (1 + random.normal(scale=1e-3)), scale_atoms=True)
        atoms.positions += random.normal(scale=0.002, size=atoms.positions.shape) + random.uniform(size=3)
        turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
        atoms.set_cell(atoms.cell[:] @ turn.T, scale_atoms=True)
        charges = np.einsum("ia,nab,jb->nij", turn, charges.reshape(-1, 3, 3), turn).reshape(-1, 9)
        info[POLARIZABILITY_GAUSSIAN] = (turn @ info[POLARIZABILITY_GAUSSIAN].reshape(3, 3) @ turn.T).ravel()
        info[POLARIZATION] = turn @ info[POLARIZATION]
    order = random.permutation(len(atoms))
    atoms = atoms[order]
    return RawFrame(
        atoms.numbers.astype(np.int64), atoms.positions, np.array(atoms.cell[:]), frame.pbc, info,
        {CHARGES: charges[order]},
    )  # fmt: skip
