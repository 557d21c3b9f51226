"""The rows with the largest errors, and what the numbers themselves say about why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from fieldflows.evaluation.matbench.folds import formula_of
from fieldflows.schemas.matbench import WorstRow

if TYPE_CHECKING:
    from fieldflows.datasets.matbench import MatbenchEntry

MOSS = 95.0
"""n⁴ E_g in eV: T. S. Moss, Phys. Status Solidi B 131, 415 (1985)."""

NEAR_METAL = 0.2
"""Gap in eV by Moss's rule below which a label is that of a near-metal: n above 4.67."""

WRONG_GAP = 2.0
"""Ratio of the gaps of prediction and label from which on the gap is called wrong."""

FEW = 5
"""Rows of other folds with an element below which it counts as rare."""

_D_SHELLS = ("V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Mo", "W", "Re", "Ru", "Os", "Ir")
_F_SHELLS = ("Ce", "Pr", "Nd", "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "U", "Np", "Pu")
OPEN_SHELLS: frozenset[str] = frozenset((*_D_SHELLS, *_F_SHELLS))
"""Elements with d or f shells that are often open in crystals."""


def moss_gap(n: float) -> float:
    """Return the gap in eV that belongs to a refractive index by Moss's rule, E_g = 95 eV/n⁴.

    Example:
        >>> round(moss_gap(3.4), 2)
        0.71
    """
    return MOSS / n**4


def worst_rows(
    entries: Sequence[MatbenchEntry], predictions: Mapping[str, float], replaced: Collection[str], number: int
) -> list[WorstRow]:
    """Return the rows with the largest absolute errors, the largest first.

    Args:
        entries: The rows.
        predictions: Identifier to predicted n.
        replaced: Identifiers of rows for which the model gives no number.
        number: How many.
    """
    order = sorted(entries, key=lambda entry: -abs(predictions[entry.mbid] - entry.n))[:number]
    counts = _element_counts(entries)
    return [_row(entry, predictions[entry.mbid], entry.mbid in replaced, counts) for entry in order]


def _element_counts(entries: Sequence[MatbenchEntry]) -> Counter[tuple[str, int | None]]:
    """Return the number of rows by element and fold."""
    return Counter((symbol, entry.fold) for entry in entries for symbol in set(entry.atoms.symbols))


def _row(entry: MatbenchEntry, predicted: float, replaced: bool, counts: Counter[tuple[str, int | None]]) -> WorstRow:
    gaps = moss_gap(entry.n), moss_gap(predicted)
    codes: list[tuple[str, str]] = []
    if replaced:
        codes.append(("no_number", "the model gives no number, the mean of the other folds stands here"))
    if gaps[0] < NEAR_METAL:
        codes.append(("near_metal", f"label of a near-metal, n above {(MOSS / NEAR_METAL) ** 0.25:.2g}"))
    compared = f"gap of about {gaps[1]:.2g} eV by the prediction, {gaps[0]:.2g} eV by the label"
    if gaps[1] > WRONG_GAP * gaps[0]:
        codes.append(("gap_too_wide", compared))
    elif gaps[0] > WRONG_GAP * gaps[1]:
        codes.append(("gap_too_narrow", compared))
    symbols = sorted(set(entry.atoms.symbols))
    if shells := [symbol for symbol in symbols if symbol in OPEN_SHELLS]:
        text = f"d or f shells of {', '.join(shells)} may be open: the gap hangs on magnetic order and U"
        codes.append(("open_shell", text))
    rare = [
        s for s in symbols if sum(n for (name, fold), n in counts.items() if name == s and fold != entry.fold) < FEW
    ]
    if rare:
        codes.append(("rare_element", f"{', '.join(rare)} in fewer than {FEW} rows of the other folds"))
    if not codes:
        codes.append(("unexplained", "nothing in composition and index stands out"))
    return WorstRow(
        mbid=entry.mbid,
        formula=formula_of(entry),
        fold=int(entry.fold or 0),
        label=entry.n,
        predicted=predicted,
        label_gap=gaps[0],
        predicted_gap=gaps[1],
        reasons=tuple(code for code, _ in codes),
        comment="; ".join(text for _, text in codes),
    )
