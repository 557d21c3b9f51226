"""From a foreign key to a label: observable, unit, sign and index order are declared, never guessed.

Each source declares which key holds which observable in which *convention*; this module holds the factors.
The table of measured conventions is in ``docs/guides/datasets.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import pi
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldflows.datasets.extxyz import RawFrame
from fieldflows.datasets.frame import LABEL_SHAPES, LABEL_UNITS
from fieldflows.errors import LabelError, SettingsError, suggestion
from fieldflows.units import (
    E_PER_A2_TO_UC_PER_CM2,
    EPSILON_VACUUM,
    EV_PER_A3_TO_GPA,
    POLARIZABILITY_GAUSSIAN_TO_INTERNAL,
    VASP_KBAR_TO_EV_PER_A3,
)

FloatArray = NDArray[np.float64]

ALIASES: dict[str, tuple[str, ...]] = {
    "energy": ("REF_energy", "total_energy", "energy"),
    "forces": ("REF_forces", "forces", "force"),
    "stress": ("REF_stress", "stress"),
    "polarization": ("REF_polarisation", "REF_polarization", "polarisation", "polarization"),
    "born_effective_charges": (
        "REF_becs",
        "REF_bec",
        "REF_born_effective_charges",
        "born_effective_charges",
        "born_charges",
        "born_charge",
        "becs",
        "bec",
    ),
    "polarizability": ("REF_polarisability", "REF_polarizability", "polarisability", "polarizability"),
    "epsilon_ionic": ("REF_dielectric_ionic", "epsilon_ionic", "dielectric_ionic"),
    "piezoelectric": ("REF_piezoelectric", "piezoelectric"),
    "refractive_index": ("REF_refractive_index", "refractive_index", "n"),
}
"""Keys under which a label is looked for when its source names none; the first that is present counts."""

FIELD_KEYS: tuple[str, ...] = ("REF_electric_field", "electric_field", "external_field")
"""Keys under which files carry an applied electric field."""


@dataclass(frozen=True)
class Convention:
    """How a source writes one observable.

    Attributes:
        name: What a configuration calls it.
        observable: The label that it becomes.
        description: Unit, sign and index order, for the record.
        convert: (raw values, volume in Å³, cell in Å, number of atoms) to internal units and shape.
    """

    name: str
    observable: str
    description: str
    convert: Callable[[FloatArray, float, FloatArray, int], FloatArray]


def _tensor(factor: float) -> Callable[[FloatArray, float, FloatArray, int], FloatArray]:
    return lambda x, volume, cell, n: x.reshape(3, 3) * factor


def _vector(factor: float) -> Callable[[FloatArray, float, FloatArray, int], FloatArray]:
    return lambda x, volume, cell, n: x.reshape(3) * factor


def _stress(factor: float, order: tuple[int, ...]) -> Callable[[FloatArray, float, FloatArray, int], FloatArray]:
    """Six components at the given places of (xx, yy, zz, yz, xz, xy), or nine row-major ones."""

    def convert(x: FloatArray, volume: float, cell: FloatArray, n: int) -> FloatArray:
        if x.size == 9:
            return x.reshape(3, 3) * factor
        xx, yy, zz, yz, xz, xy = x.reshape(6)[list(order)]
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]) * factor

    return convert


def _lattice_components(x: FloatArray, volume: float, cell: FloatArray, n: int) -> FloatArray:
    lengths = np.linalg.norm(cell, axis=1)
    return np.asarray((x.reshape(3) / lengths) @ cell)


_VOIGT_ASE = (0, 1, 2, 3, 4, 5)
_VOIGT_VASP = (0, 1, 2, 4, 5, 3)  # places of xx, yy, zz, yz, xz, xy in VASP's xx, yy, zz, xy, yz, zx

CONVENTIONS: dict[str, dict[str, Convention]] = {}
"""Conventions by observable and name; the first of each observable is the internal one."""


def _register(
    observable: str,
    name: str,
    description: str,
    convert: Callable[[FloatArray, float, FloatArray, int], FloatArray],
) -> None:
    CONVENTIONS.setdefault(observable, {})[name] = Convention(name, observable, description, convert)


_register("energy", "eV", "eV per cell", lambda x, v, c, n: x.reshape(()))
_register("energy", "eV_per_atom", "eV per atom", lambda x, v, c, n: x.reshape(()) * n)
_register("forces", "eV_per_angstrom", "eV/Å, −∂F/∂u", lambda x, v, c, n: x.reshape(n, 3))
_register("stress", "eV_per_angstrom3", "eV/Å³, ASE sign; 9 or xx,yy,zz,yz,xz,xy", _stress(1.0, _VOIGT_ASE))
_register("stress", "GPa", "GPa, ASE sign; 9 or xx,yy,zz,yz,xz,xy", _stress(1 / EV_PER_A3_TO_GPA, _VOIGT_ASE))
_register(
    "stress", "vasp_kbar", "kbar, VASP sign; 9 or xx,yy,zz,xy,yz,zx", _stress(VASP_KBAR_TO_EV_PER_A3, _VOIGT_VASP)
)
_register("polarization", "e_per_angstrom2", "e/Å², Cartesian", _vector(1.0))
_register("polarization", "uC_per_cm2", "µC/cm², Cartesian", _vector(1 / E_PER_A2_TO_UC_PER_CM2))
_register("polarization", "C_per_m2", "C/m², Cartesian", _vector(100 / E_PER_A2_TO_UC_PER_CM2))
_register(
    "polarization", "dipole_e_angstrom", "e·Å per cell, Cartesian: divided by the volume", lambda x, v, c, n: x / v
)
_register(
    "polarization",
    "lattice_e_per_angstrom2",
    "e/Å², components along the normalized vectors of the frame's own cell",
    _lattice_components,
)
_register(
    "born_effective_charges",
    "polarization_displacement",
    "e, row-major 3x3 per atom, first index polarization, second displacement",
    lambda x, v, c, n: x.reshape(n, 3, 3),
)
_register(
    "born_effective_charges",
    "displacement_polarization",
    "e, row-major 3x3 per atom, first index displacement, second polarization: transposed",
    lambda x, v, c, n: x.reshape(n, 3, 3).transpose(0, 2, 1),
)
_register("polarizability", "e_per_volt_angstrom", "e/(V·Å), per volume", _tensor(1.0))
_register(
    "polarizability",
    "gaussian",
    "(ε∞ − 1)/(4π), dimensionless: times 4π·ε_vac",
    _tensor(POLARIZABILITY_GAUSSIAN_TO_INTERNAL),
)
_register("polarizability", "susceptibility", "ε∞ − 1, dimensionless: times ε_vac", _tensor(EPSILON_VACUUM))
_register(
    "polarizability",
    "permittivity",
    "ε∞, dimensionless: minus 1, times ε_vac",
    lambda x, v, c, n: (x.reshape(3, 3) - np.eye(3)) * EPSILON_VACUUM,
)
_register(
    "polarizability",
    "per_cell",
    "e·Å²/V per cell: divided by the volume",
    lambda x, v, c, n: x.reshape(3, 3) / v,
)
_register(
    "polarizability",
    "volume_angstrom3",
    "polarizability volume in Å³ per cell: times 4π·ε_vac, divided by the volume",
    lambda x, v, c, n: x.reshape(3, 3) * (4 * pi * EPSILON_VACUUM) / v,
)
_register("epsilon_ionic", "permittivity", "dimensionless", _tensor(1.0))
_register("piezoelectric", "voigt", "C/m², columns xx,yy,zz,yz,xz,xy", lambda x, v, c, n: x.reshape(3, 6))
_register(
    "piezoelectric",
    "vasp",
    "C/m², columns xx,yy,zz,xy,yz,zx: reordered to xx,yy,zz,yz,xz,xy",
    lambda x, v, c, n: x.reshape(3, 6)[:, list(_VOIGT_VASP)],
)
_register("refractive_index", "sqrt_mean_epsilon", "√(tr ε∞/3), dimensionless", lambda x, v, c, n: x.reshape(()))


def get_convention(observable: str, name: str) -> Convention:
    """Return a convention by observable and name.

    Raises:
        SettingsError: If either is unknown; suggests the nearest.
    """
    if observable not in CONVENTIONS:
        raise SettingsError(f"There is no label {observable!r}.", suggestion(observable, CONVENTIONS))
    if name not in CONVENTIONS[observable]:
        raise SettingsError(
            f"There is no convention {name!r} for {observable}.", suggestion(name, CONVENTIONS[observable])
        )
    return CONVENTIONS[observable][name]


def find_key(raw: RawFrame, observable: str) -> str | None:
    """Return the first key of :data:`ALIASES` that the frame holds, or None."""
    for key in ALIASES[observable]:
        if key in raw.arrays or key in raw.info:
            return key
    return None


def spellings(observable: str, key: str) -> tuple[str, ...]:
    """Return a key and its other spellings: ``REF_`` keys among themselves, plain ones among themselves.

    Files may hold both kinds side by side in different units, so one never stands in for the other.

    Example:
        >>> spellings("polarization", "REF_polarization")
        ('REF_polarization', 'REF_polarisation')
    """
    if key not in ALIASES[observable]:
        return (key,)
    kind = key.startswith("REF_")
    return (key, *(k for k in ALIASES[observable] if k != key and k.startswith("REF_") == kind))


def raw_value(raw: RawFrame, key: str) -> FloatArray | None:
    """Return what a frame holds under a key, per atom or per structure, as floats; None if it is absent.

    Raises:
        LabelError: If it is no number.
    """
    value: Any = raw.arrays.get(key, raw.info.get(key))
    if value is None:
        return None
    try:
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise LabelError(f"{key} of frame {raw.index} is not numeric: {str(value)[:60]!r}.") from None


def convert(raw: RawFrame, key: str, convention: Convention) -> FloatArray | None:
    """Return one label of a frame in internal units, or None if the frame has no such key.

    Raises:
        LabelError: If the number of components does not fit; not for values that are not finite (the cleaning
            rejects those).
    """
    value = raw_value(raw, key)
    if value is None:
        return None
    n = len(raw)
    volume = abs(float(np.linalg.det(raw.cell)))
    with np.errstate(all="ignore"):
        try:
            # not ascontiguousarray, which gives scalars an axis
            return np.array(convention.convert(value, volume, raw.cell, n), dtype=float, order="C")
        except ValueError:
            shape = LABEL_SHAPES[convention.observable]
            raise LabelError(
                f"{key} of frame {raw.index} has shape {value.shape}; {convention.observable} "
                f"({convention.description}) has shape {shape}.",
                "Check the key, or declare another convention.",
            ) from None


def convert_all(raw: RawFrame, rules: Mapping[str, tuple[str, Convention]]) -> dict[str, FloatArray]:
    """Return all labels of a frame: ``rules`` maps the observable to (key, convention).

    A frame that lacks the key but has another spelling of it (:func:`spellings`) is read under that one.
    """
    labels = {}
    for observable, (key, convention) in rules.items():
        present = next((k for k in spellings(observable, key) if k in raw.arrays or k in raw.info), key)
        value = convert(raw, present, convention)
        if value is not None:
            labels[observable] = value
    return labels


def describe(observable: str, key: str, convention: Convention) -> str:
    """Return one line for the manifest: key, convention, internal unit."""
    return f"{key}: {convention.name} ({convention.description}) → {observable} in {LABEL_UNITS[observable]}"
