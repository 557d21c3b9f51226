"""Results as files: JSON, CSV and Parquet written one document after the other."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldflows.errors import StoreError
from fieldflows.store.export import value_at, write_csv, write_json, write_parquet
from fieldflows.store.query import resolve_field

FIELDS = [resolve_field(name) for name in ("formula", "n", "elements", "nsites", "relaxation.converged")]
ROWS = [
    {"formula_pretty": "MgO", "n": 1.7, "elements": ["Mg", "O"], "nsites": 2, "relaxation": {"converged": True}},
    {"formula_pretty": "Si", "n": None, "elements": ["Si"], "nsites": 2, "relaxation": None},
]


def test_values_at_paths() -> None:
    document = {"a": [{"b": 1}, {"b": 2}], "c": {"d": [3, 4]}}
    assert value_at(document, "a.b") == [1, 2]
    assert value_at(document, "c.d.1") == 4
    assert value_at(document, "c.d.7") is None
    assert value_at(document, "c.x.y") is None


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.lists(st.dictionaries(st.text(), plain | st.lists(plain) | st.dictionaries(st.text(), plain))))
def test_json_is_that_of_the_library(documents: list[dict]) -> None:
    stream = io.StringIO()
    write_json(documents, stream)
    assert stream.getvalue() == json.dumps(documents, indent=2, ensure_ascii=False) + "\n"


def test_csv() -> None:
    stream = io.StringIO()
    write_csv(iter(ROWS), ["formula_pretty", "n", "elements"], stream)
    assert list(csv.reader(io.StringIO(stream.getvalue()))) == [
        ["formula_pretty", "n", "elements"],
        ["MgO", "1.7", "Mg;O"],
        ["Si", "", "Si"],
    ]


def test_parquet_is_read_back_over_several_portions(tmp_path: Path) -> None:
    from pyarrow import parquet

    rows = ROWS * 1300
    assert write_parquet(iter(rows), FIELDS, tmp_path / "x.parquet") == 2600
    table = parquet.read_table(tmp_path / "x.parquet")
    assert table.to_pylist()[-2:] == [
        {"formula_pretty": "MgO", "n": 1.7, "elements": '["Mg", "O"]', "nsites": 2.0, "relaxation.converged": True},
        {"formula_pretty": "Si", "n": None, "elements": '["Si"]', "nsites": 2.0, "relaxation.converged": None},
    ]
    assert table.num_rows == 2600


def test_a_parquet_file_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_text("old")
    with pytest.raises(StoreError, match="do not fit"):
        write_parquet([{"n": "text"}], FIELDS, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_without_pyarrow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(StoreError, match="pyarrow") as caught:
        write_parquet(ROWS, FIELDS, tmp_path / "x.parquet")
    assert "fieldflows[parquet]" in str(caught.value)
