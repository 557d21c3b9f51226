"""The conventions page says what the code does."""

from __future__ import annotations

import re

import pytest

from fieldflows import units
from fieldflows.observables import OBSERVABLES, Observable
from fieldflows.schemas.dielectric import DielectricDocument
from tests.docs.pages import ROOT

TEXT = (ROOT / "docs" / "concepts" / "conventions.md").read_text(encoding="utf-8")


def row(item: Observable) -> str:
    extents = ", ".join(str(extent) for extent in item.shape)
    shape = f"({extents},)" if len(item.shape) == 1 else f"({extents})"
    return f"| `{item.name}` | {item.symbol} | {shape} | {item.unit} | {item.definition} |"


@pytest.mark.parametrize("name", OBSERVABLES)
def test_every_observable_has_its_row(name):
    assert row(OBSERVABLES[name]) in TEXT.splitlines()


def test_the_table_holds_nothing_else():
    section = TEXT.split("## Observables")[1].split("##")[0]
    assert re.findall(r"^\| `(\w+)`", section, re.MULTILINE) == list(OBSERVABLES)


@pytest.mark.parametrize("name", ["epsilon_electronic", "epsilon_ionic", "epsilon_total", "n", "total", "electronic"])
def test_names_of_documents_exist(name):
    assert name in DielectricDocument.model_fields
    assert f"`{name}`" in TEXT


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (units.EPSILON_VACUUM, "0.005526349"),
        (units.POLARIZABILITY_GAUSSIAN_TO_INTERNAL, "0.0694461"),
    ],
)
def test_numbers_are_those_of_the_code(value, text):
    assert text in TEXT
    assert float(text) == pytest.approx(value, rel=1e-6)
