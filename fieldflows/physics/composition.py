"""What a composition alone suggests about a band gap."""

from __future__ import annotations

from collections.abc import Iterable

NONMETALS: frozenset[str] = frozenset(
    ("H", "He", "B", "C", "N", "O", "F", "Ne", "Si", "P", "S", "Cl", "Ar", "Ge", "As", "Se", "Br", "Kr")
) | frozenset(("Sb", "Te", "I", "Xe", "Po", "At", "Rn", "Ts", "Og"))
"""Nonmetals and metalloids: elements that can take electrons in a compound with a gap."""


def is_all_metal(symbols: Iterable[str]) -> bool:
    """Return whether every element is a metal, so that the crystal is most likely one too.

    A heuristic: exceptions such as CsAu or Mg2Sn-like semiconductors exist, and many compounds with a nonmetal
    (TiN, LaB6, ReO3) conduct all the same.  Only a band gap from elsewhere decides.

    Args:
        symbols: Chemical symbols; repetitions do not matter.

    Raises:
        ValueError: If no element is given.

    Example:
        >>> is_all_metal(["Cu", "Zn"]), is_all_metal(["Mg", "O"])
        (True, False)
    """
    elements = set(symbols)
    if not elements:
        raise ValueError("a composition needs at least one element")
    return not elements & NONMETALS
