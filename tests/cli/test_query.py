"""``fieldflows query``: tables, JSON, CSV, order, and errors."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from fieldflows.cli.query import value_at
from fieldflows.store import ResultsCollection, get_store


@pytest.fixture
def filled(cli, crystals: Path):
    assert cli("screen", crystals, "--model", "toy", "--store", "s.db").code == 0
    return lambda *words: cli("query", *words, "--store", "s.db")


def test_table(filled) -> None:
    everything = filled()
    assert everything.code == 0
    assert "3 of 3 results" in everything.out
    some = filled("n > 1.7 and e_total > 7")
    assert "1 of 3 results" in some.out
    assert "MgO" in some.out
    assert "NaCl" not in some.out
    assert "None of 3 results fits" in filled("n > 10").out


def test_json_and_columns(filled) -> None:
    documents = json.loads(filled('"Mg" in elements', "--json").out)
    stored = list(ResultsCollection.of(get_store("s.db")).query({"formula_pretty": "MgO"}))
    assert documents == stored
    columns = json.loads(
        filled('formula == "MgO"', "--json", "--columns", "formula, n,elements[0]".replace("[0]", ".0")).out
    )
    assert columns == [{"formula_pretty": "MgO", "n": stored[0]["n"], "elements.0": "Mg"}]


def test_csv_sort_and_limit(filled) -> None:
    rows = list(csv.DictReader(io.StringIO(filled("--csv", "--sort", "n").out)))
    assert [row["formula_pretty"] for row in rows] == ["MgO", "NaCl", "GaAs"]
    assert float(rows[0]["n"]) == pytest.approx(1.777, abs=1e-3)
    assert all(len(row["provenance.model.sha256"]) == 64 for row in rows)
    two = filled("--csv", "--sort", "e_total", "--ascending", "--limit", "2", "--columns", "formula").out
    assert two.split() == ["formula_pretty", "GaAs", "NaCl"]


def test_long_tables_stop_by_themselves(filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fieldflows.cli.output.MAX_ROWS", 2)
    answer = filled("--sort", "n")
    assert "3 of 3 results (the first 2 are shown; --limit 0 shows all)" in answer.out
    assert "GaAs" not in answer.out
    assert "GaAs" in filled("--sort", "n", "--limit", "0").out
    assert filled("--csv").out.count("\n") == 4


def test_mongo_filter(filled) -> None:
    assert "1 of 3" in filled('{"n": {"$gt": 1.7}}').out


def test_fields_are_listed_with_units(cli) -> None:
    answer = cli("query", "--fields")
    assert answer.code == 0
    assert "born_charge_min" in answer.out
    listed = {field["path"]: field for field in json.loads(cli("query", "--fields", "--json").out)}
    assert listed["volume"]["unit"] == "Å³"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nn > 2"], "Did you mean 'n'"),
        (["n = 2"], "Use == to compare"),
        (["__import__('os').system('touch hacked')"], "not understood"),
        (['{"$where": "1"}'], "not allowed"),
        (["--sort", "nn"], "Did you mean 'n'"),
        (["--columns", "nn"], "Did you mean 'n'"),
        (["--json", "--csv"], "exclude each other"),
    ],
)
def test_errors_are_one_line(filled, words: list[str], reason: str) -> None:
    answer = filled(*words)
    assert answer.code == 2
    assert reason in answer.err
    assert answer.err.count("\n") == 1
    assert not Path("hacked").exists()


def test_no_store_yet(cli) -> None:
    answer = cli("query", "n > 2")
    assert answer.code == 2
    assert "There is no store" in answer.err
    assert not Path("home").exists()


def test_csv_cells_cannot_be_formulas(cli) -> None:
    ResultsCollection.of(get_store("s.db")).put(
        [{"key": "k", "source": "=cmd()", "n": -2.0, "flags": [{"code": "a"}, {"code": "b"}]}]
    )
    (row,) = csv.DictReader(io.StringIO(cli("query", "--csv", "--store", "s.db").out))
    assert row["source"] == "'=cmd()"
    assert row["n"] == "-2.0"
    assert row["flags.code"] == "a;b"


def test_values_at_paths() -> None:
    document = {"a": [{"b": 1}, {"b": 2}], "c": {"d": [3, 4]}}
    assert value_at(document, "a.b") == [1, 2]
    assert value_at(document, "c.d.1") == 4
    assert value_at(document, "c.d.7") is None
    assert value_at(document, "c.x.y") is None
