"""The heuristic for metals."""

from __future__ import annotations

import pytest

from fieldflows.physics.composition import NONMETALS, is_all_metal


@pytest.mark.parametrize("symbols", [("Cu",), ("Ni", "Al"), ("Fe", "Fe", "Pt"), ("La", "U")])
def test_metals(symbols):
    assert is_all_metal(symbols)


@pytest.mark.parametrize("symbols", [("Si",), ("Mg", "O"), ("Ti", "N"), ("Xe",), ("Ga", "As"), ("H",)])
def test_others(symbols):
    assert not is_all_metal(symbols)


def test_list_agrees_with_pymatgen():
    """pymatgen knows metals and metalloids; ours counts as nonmetal what pymatgen calls no metal."""
    from pymatgen.core import Element

    differ = {
        e.symbol for e in Element if e.Z <= 94 and e.symbol not in ("D", "T") and e.is_metal == (e.symbol in NONMETALS)
    }
    assert differ <= {"Po", "At"}
    with pytest.raises(ValueError, match="at least one"):
        is_all_metal([])
