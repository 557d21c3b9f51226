"""The benchmark runs, compares like with like, and reports what it measured; nothing is asserted about speed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import reference
from benchmarks.__main__ import main
from benchmarks.cases import crystals, random_model
from benchmarks.response import RESPONSE, largest_difference
from benchmarks.timing import interleave, summarize


@pytest.fixture(scope="module")
def tiny():
    return random_model(channels=4)


@pytest.mark.parametrize("tag", ["p5", "r10"])
def test_the_package_agrees_with_the_reference(tiny, tag):
    atoms = crystals()[tag]
    naive = reference.response(tiny, atoms)
    product = tiny.evaluate(atoms, observables=RESPONSE)
    for name in RESPONSE:
        expected = naive[name].numpy()
        np.testing.assert_allclose(product.get(name), expected, rtol=1e-9, atol=1e-11, err_msg=name)
    assert np.abs(naive["born_effective_charges"].numpy()).max() > 1e-4, "a vanishing response would compare nothing"


def test_the_hessians_agree(tiny):
    atoms = crystals()["p5"]
    naive = reference.hessian(tiny, atoms).numpy()
    product = tiny.evaluate(atoms, observables=("hessian",)).get("hessian")
    np.testing.assert_allclose(product, naive, rtol=1e-9, atol=1e-10)
    assert np.abs(naive).max() > 1e-3


def test_the_rattled_crystal_has_no_symmetry_left():
    import spglib

    atoms = crystals()["r10"]
    cell = (atoms.cell[:], atoms.get_scaled_positions(), atoms.numbers)
    assert spglib.get_symmetry_dataset(cell, symprec=1e-3).number == 1


def test_command_writes_table_and_json(tmp_path, capsys):
    output = tmp_path / "out" / "bench.json"
    code = main(["--channels", "4", "--repeats", "2", "--crystals", "p5", "--output", str(output)])
    assert code == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    assert [(item["task"], item["tag"]) for item in report["timings"]] == [("response", "p5"), ("hessian", "p5")]
    for item in report["timings"]:
        assert item["ratio_low"] <= item["ratio"] <= item["ratio_high"]
        assert item["difference"] < 1e-9
        assert item["repeats"] == 2
    assert "hessian" in capsys.readouterr().out


def test_both_sides_take_turns():
    order = []
    times = interleave(lambda: order.append("naive"), lambda: order.append("product"), 3)
    assert order == ["naive", "product", "product", "naive", "naive", "product"]
    assert [len(side) for side in times] == [3, 3]


def test_ratios_are_taken_within_a_repeat():
    timing = summarize("response", "x", 1, [10.0, 40.0, 90.0], [5.0, 10.0, 30.0], 0.0)
    assert (timing.ratio_low, timing.ratio, timing.ratio_high) == (2.0, 3.0, 4.0)
    assert (timing.reference_ms, timing.product_ms) == (40.0, 10.0)


def test_a_wrong_result_shows():
    right = [np.array([1.0, 2.0])]
    assert largest_difference(right, [np.array([1.0, 2.2])]) == pytest.approx(0.1)
