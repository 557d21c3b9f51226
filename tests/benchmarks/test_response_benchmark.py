"""The benchmarks run, compare like with like, and report what they measured; nothing is asserted about speed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import spglib
import torch
from matscipy.neighbours import neighbour_list

from benchmarks import baseline
from benchmarks.__main__ import main
from benchmarks.agreement import relative_difference
from benchmarks.baseline import RESPONSE
from benchmarks.cases import published_crystals, random_model, rattled
from benchmarks.response import ANY
from benchmarks.timing import Estimate, interleave, summarize


@pytest.fixture(scope="module")
def crystals():
    return published_crystals()


@pytest.fixture(scope="module")
def tiny(crystals):
    return random_model([crystals["p5"], crystals["q9"]], channels=4)


def number_of(atoms):
    return spglib.get_symmetry_dataset(
        (atoms.cell[:], atoms.get_scaled_positions(), atoms.numbers), symprec=1e-3
    ).number


@pytest.mark.parametrize(
    ("tag", "group", "primitive"), [("p5", 221, 5), ("q9", 154, 9), ("m36", 62, 36), ("l80", 206, 40)]
)
def test_crystals_are_what_they_are_called(crystals, tag, group, primitive):
    atoms = crystals[tag]
    assert len(atoms) == int(tag[1:])
    assert number_of(atoms) == group
    cell = spglib.find_primitive((atoms.cell[:], atoms.get_scaled_positions(), atoms.numbers))
    assert len(cell[2]) == primitive
    assert number_of(rattled(atoms)) == 1


@pytest.mark.parametrize(
    ("tag", "pair", "neighbors", "shortest", "longest"),
    [
        ("q9", "Si-O", 4, 1.60, 1.62),
        ("m36", "Si-O", 4, 1.63, 1.65),
        ("m36", "Al-O", 4, 1.88, 1.93),
        ("m36", "Al-F", 2, 1.79, 1.81),
        ("l80", "In-O", 6, 2.12, 2.21),
    ],
)
def test_bond_lengths_are_those_of_the_minerals(crystals, tag, pair, neighbors, shortest, longest):
    atoms = crystals[tag]
    center, ligand = pair.split("-")
    i, j, d = neighbour_list("ijd", atoms, longest + 0.25)
    bonds = (atoms.symbols[i] == center) & (atoms.symbols[j] == ligand)
    counts = np.bincount(i[bonds], minlength=len(atoms))[atoms.symbols == center]
    assert set(counts) == {neighbors}
    assert shortest < d[bonds].min() <= d[bonds].max() < longest


def test_the_baseline_agrees_with_finite_differences(tiny, crystals):
    """The yardstick itself is held against differences of its own energy, and of its own first derivatives."""
    atoms = rattled(crystals["p5"])
    values = baseline.one(baseline.response(tiny.network, atoms))
    step = 1e-3
    shifted = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[2, 1] += sign * step
        shifted.append(baseline.one(baseline.response(tiny.network, moved)))
    force = -(shifted[0]["energy"] - shifted[1]["energy"]) / (2 * step)
    np.testing.assert_allclose(values["forces"][2, 1], force, rtol=1e-5)
    charge = atoms.get_volume() * (shifted[0]["polarization"] - shifted[1]["polarization"]) / (2 * step)
    np.testing.assert_allclose(values["born_effective_charges"][2, :, 1], charge, rtol=1e-4, atol=1e-8)
    column = -(shifted[0]["forces"] - shifted[1]["forces"]).reshape(-1) / (2 * step)
    rows = baseline.hessian_rows(tiny.network, atoms)
    np.testing.assert_allclose(rows.values[7], column, rtol=1e-4, atol=1e-6)
    assert rows.complete
    assert np.abs(charge).max() > 1e-6, "a vanishing response would compare nothing"


def test_rows_of_the_baseline_are_rows_of_the_whole(tiny, crystals):
    whole = baseline.hessian_rows(tiny.network, crystals["p5"])
    part = baseline.hessian_rows(tiny.network, crystals["p5"], limit=3)
    assert part.indices == (0, 7, 14)
    assert not part.complete
    np.testing.assert_allclose(part.values, whole.values[list(part.indices)], atol=1e-13)
    assert part.seconds > 0


def test_scripted_modules_are_the_same_function(tiny, crystals):
    twin = baseline.scripted(tiny.network)
    assert any(isinstance(module, torch.jit.ScriptModule) for module in twin.modules())
    assert not any(isinstance(module, torch.jit.ScriptModule) for module in tiny.network.modules())
    expected = baseline.one(baseline.response(tiny.network, crystals["p5"]))
    found = baseline.one(baseline.response(twin, crystals["p5"]))
    for name in RESPONSE:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-10, atol=1e-12, err_msg=name)


def test_command_writes_table_and_json(tmp_path, capsys):
    output = tmp_path / "out" / "bench.json"
    arguments = ["--channels", "4", "--repeats", "2", "--rows", "3", "--crystals", "p5", "--source", "published"]
    assert main([*arguments, "--tasks", "response", "hessian", "--output", str(output)]) == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    assert set(report) == {"response", "hessian"}
    assert report["response"]["settings"]["channels"] == 4
    for name, section in report.items():
        assert section["timings"][0]["variant"] == ANY
        for item in section["timings"]:
            assert item["task"] == name
            assert item["ratio_low"] <= item["ratio"] <= item["ratio_high"]
            assert item["difference"] < 1e-8
            assert item["repeats"] == 2
    assert report["hessian"]["timings"][0]["baseline_rows"] == [3, 15]
    assert "hessian" in capsys.readouterr().out


def test_sides_take_turns():
    order = []
    times = interleave({name: lambda name=name: order.append(name) for name in "abc"}, 3)
    assert "".join(order) == "abcbcacab"
    assert [len(times[name]) for name in "abc"] == [3, 3, 3]


def test_an_estimate_reports_its_own_time():
    times = interleave({"a": lambda: Estimate(2.5)}, 2)
    assert times == {"a": [2500.0, 2500.0]}


def test_ratios_are_taken_within_a_repeat():
    timing = summarize("response", ("x", "X", 1), ANY, [10.0, 40.0, 90.0], [5.0, 10.0, 30.0], 0.0)
    assert (timing.ratio_low, timing.ratio, timing.ratio_high) == (2.0, 3.0, 4.0)
    assert (timing.baseline_ms, timing.product_ms) == (40.0, 10.0)


def test_a_wrong_result_shows():
    right = np.array([1.0, 2.0])
    assert relative_difference("hessian", right, np.array([1.0, 2.2])) == pytest.approx(0.1)
    assert relative_difference("forces", np.zeros(3), np.full(3, 1e-4)) == pytest.approx(0.1)
