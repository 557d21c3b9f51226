"""Synthetic crystals with symmetric labels, and the files that foreign codes would write of them."""

from __future__ import annotations

import lzma
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import constants

# Written out here, so that the package's own factors are held against something.
EPS0 = constants.epsilon_0 * constants.angstrom / constants.e  # e/(V·Å)
UC_PER_CM2 = constants.e / constants.angstrom**2 * 100.0  # per e/Å²


@dataclass
class Crystal:
    """One crystal and its physical response."""

    symbols: list[str]
    cell: np.ndarray
    scaled: np.ndarray
    epsilon: np.ndarray
    charges: np.ndarray
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def positions(self) -> np.ndarray:
        return self.scaled @ self.cell

    @property
    def volume(self) -> float:
        a, b, c = self.cell
        return abs(float(a @ np.cross(b, c)))

    def copy(self, **changes) -> Crystal:
        values = {name: getattr(self, name) for name in ("symbols", "cell", "scaled", "epsilon", "charges", "extra")}
        return Crystal(**{name: np.copy(v) if isinstance(v, np.ndarray) else v for name, v in values.items()} | changes)


def perovskite(a: str = "Sr", b: str = "Ti", x: str = "O", length: float = 3.9, epsilon: float = 6.0) -> Crystal:
    """Return a cubic perovskite whose Z* obey its symmetry and the sum rule."""
    scaled = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]], dtype=float)
    charges = np.array([np.eye(3) * 2.5, np.eye(3) * 7.3] + [np.eye(3) * -2.0] * 3)
    for site, axis in ((2, 2), (3, 1), (4, 0)):
        charges[site, axis, axis] = -5.8
    return Crystal([a, b, x, x, x], np.eye(3) * length, scaled, np.eye(3) * epsilon, charges)


def number(x: float) -> str:
    return repr(float(x))


def extxyz_text(crystal: Crystal, info: dict, charges_key: str = "REF_becs", arrays: dict | None = None) -> str:
    """Return one frame of extended XYZ, written independently of the package."""
    columns, blocks = ["species:S:1", "pos:R:3"], [crystal.positions]
    per_atom = ({charges_key: crystal.charges} if charges_key else {}) | (arrays or {})
    for key, array in per_atom.items():
        flat = np.asarray(array).reshape(len(crystal.symbols), -1)
        columns.append(f"{key}:R:{flat.shape[1]}")
        blocks.append(flat)
    pairs = [
        'Lattice="' + " ".join(map(number, crystal.cell.ravel())) + '"',
        "Properties=" + ":".join(columns),
        'pbc="T T T"',
    ]
    for key, value in info.items():
        text = value if isinstance(value, str) else " ".join(map(number, np.ravel(value)))
        pairs.append(f'{key}="{text}"')
    lines = [str(len(crystal.symbols)), " ".join(pairs)]
    for i, symbol in enumerate(crystal.symbols):
        lines.append(" ".join([symbol, *(number(x) for block in blocks for x in block[i])]))
    return "\n".join(lines) + "\n"


def gaussian(crystal: Crystal) -> np.ndarray:
    """(ε∞ − 1)/(4π)."""
    return (crystal.epsilon - np.eye(3)) / (4 * np.pi)


def dielectric_text(crystal: Crystal, **info) -> str:
    """Return a frame as the paper's dielectric files have it."""
    keys = {
        "REF_electric_field": "0.0 0.0 0.0",
        "REF_polarisability": gaussian(crystal),
        "REF_dielectric_ionic": np.eye(3) * 10.0,
        "config_energy_weight": "0.0",
    }
    return extxyz_text(crystal, keys | info)


def write(path: Path, text: str) -> Path:
    if path.suffix == ".xz":
        with lzma.open(path, "wt") as handle:
            handle.write(text)
    else:
        path.write_text(text)
    return path


FORMULAS = [
    (a, b, x, 3.7 + 0.07 * k, 2.5 + 0.3 * k)
    for k, (a, b, x) in enumerate((a, b, x) for a in ("Ca", "Sr", "Ba") for b in ("Ti", "Zr", "Hf") for x in ("O", "S"))
]
