"""``fieldflows query``: tables, JSON, CSV, order, and errors."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

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


def test_absent_values_come_last_in_both_directions(filled) -> None:
    results = ResultsCollection.of(get_store("s.db"))
    results.put([{"key": f"k{i}", "task": "dielectric", "formula_pretty": f"X{i}", "n": None} for i in range(2)])
    words = ("--csv", "--columns", "formula", "--sort", "n")
    assert filled(*words).out.split()[1:] == ["MgO", "NaCl", "GaAs", "X0", "X1"]
    assert filled(*words, "--ascending").out.split()[1:] == ["GaAs", "NaCl", "MgO", "X0", "X1"]
    assert filled(*words, "--ascending", "--limit", "4").out.split()[1:] == ["GaAs", "NaCl", "MgO", "X0"]
    assert filled(*words, "--limit", "2").out.split()[1:] == ["MgO", "NaCl"]


def test_sort_by_what_stands_in_a_list(filled) -> None:
    words = ("--json", "--columns", "epsilon_electronic_principal.2,n", "--sort", "epsilon_electronic_principal.2")
    rows = json.loads(filled(*words).out)
    values = [row["epsilon_electronic_principal.2"] for row in rows]
    assert values == sorted(values, reverse=True)
    assert values == pytest.approx([row["n"] ** 2 for row in rows], rel=1e-6)


def test_parquet(filled) -> None:
    from pyarrow import parquet

    answer = filled("n > 1.5", "--parquet", "out.parquet", "--sort", "n")
    assert answer.code == 0
    assert answer.out == ""
    table = parquet.read_table("out.parquet")
    stored = list(ResultsCollection.of(get_store("s.db")).query({"n": {"$gt": 1.5}}, sort={"n": -1}))
    assert table.column("formula_pretty").to_pylist() == [doc["formula_pretty"] for doc in stored]
    assert table.column("n").to_pylist() == [doc["n"] for doc in stored]
    assert str(table.schema.field("n").type) == "double"
    assert [json.loads(text) for text in table.column("flags.code").to_pylist()] == [
        [flag["code"] for flag in doc["flags"]] for doc in stored
    ]
    assert filled("n > 100", "--parquet", "none.parquet", "--columns", "formula,volume").code == 0
    empty = parquet.read_table("none.parquet")
    assert (empty.num_rows, empty.column_names) == (0, ["formula_pretty", "volume"])
    assert empty.schema.field("volume").metadata == {b"unit": "Å³".encode()}
    assert not list(Path().glob(".*parquet*"))


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
        (["--json", "--parquet", "x.parquet"], "exclude each other"),
        (["--parquet", "no/such/folder/x.parquet"], "cannot be written"),
        (['{"formula": {"$regex": "(a+)+$"}}'], "repeats a group"),
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
        [{"key": "k", "task": "dielectric", "source": "=cmd()", "n": -2.0, "flags": [{"code": "a"}, {"code": "b"}]}]
    )
    (row,) = csv.DictReader(io.StringIO(cli("query", "--csv", "--store", "s.db").out))
    assert row["source"] == "'=cmd()"
    assert row["n"] == "-2.0"
    assert row["flags.code"] == "a;b"


def test_other_kinds_of_results(filled, cli) -> None:
    row = {"key": "r", "task": "relax", "formula_pretty": "RbI", "volume": 95.5, "relaxation": {"converged": True}}
    ResultsCollection.of(get_store("s.db")).put([row])
    assert "RbI" not in filled().out
    assert "3 of 3 results" in filled().out
    relaxed = filled("--task", "relax").out
    assert "1 of 1 results" in relaxed
    assert "95.5" in relaxed
    assert "RbI" in filled("volume > 95", "--task", "relax", "--csv", "--columns", "formula").out
    assert filled("--task", "all", "--csv", "--columns", "formula").out.count("\n") == 5
    wrong = filled("--task", "relaxx")
    assert wrong.code == 2
    assert "Did you mean 'relax'" in wrong.err
