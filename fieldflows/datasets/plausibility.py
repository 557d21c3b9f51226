"""The gate that a wrong convention of the polarizability does not pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fieldflows.datasets.extxyz import RawFrame
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
