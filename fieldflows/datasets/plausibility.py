"""The gates that a wrong convention does not pass: the median ε∞, and the size of the other labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fieldflows.datasets.consistency import LARGEST_STRESS
from fieldflows.datasets.extxyz import RawFrame
from fieldflows.datasets.frame import LabeledFrame
from fieldflows.datasets.labels import CONVENTIONS, Convention, convert
from fieldflows.errors import ConventionError, LabelError
from fieldflows.units import EPSILON_VACUUM

TYPICAL_EPSILON = 4.0
"""Median ε∞ of insulators in the Materials Project: what a plausible convention should come near."""


def median_epsilon(raws: Sequence[RawFrame], key: str, convention: Convention) -> float | None:
    """Return the median over frames of tr ε∞/3 = 1 + tr α/(3 ε_vac), or None if no frame has a finite label.

    Args:
        raws: Frames as the file has them.
        key: Key of the polarizability.
        convention: How to read it.
    """
    values = []
    for raw in raws:
        try:
            alpha = convert(raw, key, convention)
        except LabelError:
            continue
        if alpha is not None and np.isfinite(alpha).all():
            values.append(1 + float(np.trace(alpha)) / (3 * EPSILON_VACUUM))
    return float(np.median(values)) if values else None


def check_plausible(
    raws: Sequence[RawFrame], key: str, convention: Convention, window: tuple[float, float], source: str
) -> float | None:
    """Return the median ε∞ of a source, or raise if no crystal data can look like that.

    Args:
        raws: Frames as the file has them.
        key: Key of the polarizability.
        convention: The one that was declared.
        window: Smallest and largest plausible median, dimensionless.
        source: Name for the message.

    Raises:
        ConventionError: If the median is outside the window; names the conventions that would bring it inside,
            the likeliest first.
    """
    median = median_epsilon(raws, key, convention)
    low, high = window
    if median is None or low <= median <= high:
        return median
    others = {
        name: median_epsilon(raws, key, other)
        for name, other in CONVENTIONS["polarizability"].items()
        if name != convention.name
    }
    fitting = {name: value for name, value in others.items() if value is not None and low <= value <= high}
    ranked = sorted(fitting, key=lambda name: abs(np.log(fitting[name] / TYPICAL_EPSILON)))
    if ranked:
        first, *rest = ranked
        hint = f"The labels are likely {first!r} ({CONVENTIONS['polarizability'][first].description}): median "
        hint += f"{fitting[first]:.3g}."
        if rest:
            hint += " Also possible: " + ", ".join(f"{name!r} ({fitting[name]:.3g})" for name in rest) + "."
    else:
        hint = "No known convention gives a plausible median: check the key and the file."
    raise ConventionError(
        f"Source {source!r}: {key} read as {convention.name!r} gives a median ε∞ of {median:.4g} over {len(raws)} "
        f"frames; {low:g} to {high:g} is plausible.",
        hint,
    )


LARGEST: dict[str, tuple[float, str, str]] = {
    "forces": (100.0, "eV/Å", "forces are in eV/Å, not in meV/Å or Ry/bohr"),
    "stress": (LARGEST_STRESS, "eV/Å³", "stresses are likely in kbar ('vasp_kbar') or GPa: declare it"),
    "polarization": (
        5.0, "e·Ω^(-2/3)", "the polarization is likely in µC/cm² ('uC_per_cm2') or per cell ('dipole_e_angstrom'): "
        "declare it",
    ),
    "born_effective_charges": (20.0, "e", "Born charges are in e, for a displacement in Å"),
}  # fmt: skip
"""Largest plausible median over frames of the largest component, its unit, and what is wrong above it.

The polarization is measured by Ω^(2/3)/e: a quantum of it is e|a|/Ω, about 1 in this unit for any cell.
"""


def check_magnitudes(frames: Sequence[LabeledFrame], source: str) -> None:
    """Raise if labels are larger than any crystal has them; too small ones cannot be told from symmetric ones.

    Args:
        frames: Labels in internal units, as declared.
        source: Name for the message.

    Raises:
        ConventionError: Names label, median and likely unit.
    """
    for label, (largest, unit, advice) in LARGEST.items():
        values = []
        for frame in frames:
            if label in frame.labels and np.isfinite(frame.labels[label]).all():
                scale = frame.atoms.get_volume() ** (2 / 3) if label == "polarization" else 1.0
                values.append(float(np.abs(frame.labels[label]).max()) * scale)
        if values and np.median(values) > largest:
            raise ConventionError(
                f"Source {source!r}: the median over {len(values)} frames of the largest component of {label} is "
                f"{np.median(values):.4g} {unit}; at most {largest:g} {unit} is plausible.",
                f"{advice[0].upper()}{advice[1:]}.",
            )
