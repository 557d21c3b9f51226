"""Every benchmark compares the same results on both sides; nothing is asserted about speed."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from benchmarks import ionic, training
from benchmarks.__main__ import main
from benchmarks.baseline import RESPONSE
from benchmarks.cases import headline_crystals, primitive, random_model, symmetrized
from benchmarks.dynamics import GIVEN, OWN, PlainMACE, measure_dynamics, walk
from benchmarks.precision import NAMES, measure_precision
from benchmarks.response import ANY, SYMMETRIC, measure_hessian, measure_response


@pytest.fixture(scope="module")
def crystals():
    return headline_crystals("published")[1]


@pytest.fixture(scope="module")
def tiny(crystals):
    return random_model([crystals["p5"], crystals["q9"]], channels=4)


def test_the_random_network_responds_like_a_crystal(tiny, crystals):
    """Else agreement would be that of zeros."""
    response = tiny.evaluate(crystals["q9"], observables=RESPONSE)
    assert np.abs(response.born_effective_charges).max() > 0.1
    assert np.abs(response.polarizability).max() > 1e-4
    assert np.abs(response.forces).max() > 1e-2


def test_crystals_obey_their_group_and_primitive_cells_are_smaller(crystals):
    assert len(primitive(crystals["l80"])) == 40
    assert primitive(crystals["l80"]).get_volume() == pytest.approx(crystals["l80"].get_volume() / 2)
    for atoms in crystals.values():
        np.testing.assert_allclose(symmetrized(atoms).positions, atoms.positions, atol=1e-10)


def test_response_and_hessian_agree_with_the_baseline(tiny, crystals):
    chosen = {"p5": crystals["p5"]}
    timings = [*measure_response(tiny, chosen, 1), *measure_hessian(tiny, chosen, 1)]
    assert [(t.task, t.variant) for t in timings] == [
        (task, variant) for task in ("response", "hessian") for variant in (ANY, SYMMETRIC)
    ]
    for timing in timings:
        assert timing.difference < 1e-9, timing
        assert timing.baseline_rows is None


def test_the_pipeline_agrees_with_the_baseline(tiny, crystals):
    for rows, computed in ((2, (2, 15)), (None, None)):
        timings = list(ionic.measure_ionic(tiny, {"p5": crystals["p5"]}, 1, rows=rows))
        assert [t.variant for t in timings] == [ANY, SYMMETRIC]
        for timing in timings:
            assert timing.difference < 1e-7, timing
            assert timing.baseline_rows == computed


def test_a_wrong_pipeline_shows(tiny, crystals):
    """Each quantity that is compared can fail the comparison."""
    expected = ionic.pipeline(tiny, crystals["p5"])
    found = ionic.product(tiny, crystals["p5"], ionic.SETTINGS[SYMMETRIC])
    assert ionic.difference(expected, found) < 1e-7
    for wrong in (
        {"electronic": expected.electronic + 0.1},
        {"charges": expected.charges * 1.01},
        {"omega_squared": expected.omega_squared * 1.01},
        {"ionic": expected.ionic * 1.01},
        {"rows": dataclasses.replace(expected.rows, values=expected.rows.values * 1.01)},
    ):
        changed = ionic.Baseline(**{**vars(expected), **wrong})
        assert ionic.difference(changed, found) > 1e-3, wrong


def test_training_steps_agree_with_the_baseline(crystals, monkeypatch):
    monkeypatch.setattr(training, "mixed_batch", lambda source: [crystals["p5"]] * 2)
    timings = list(training.measure_training({"q9": crystals["p5"]}, "published", 1, 2, torch.float64))
    assert [(t.tag, t.variant, t.n_atoms) for t in timings] == [
        ("q9", ANY, 5),
        ("q9", SYMMETRIC, 5),
        ("mix4", ANY, 10),
        ("mix4", SYMMETRIC, 10),
    ]
    for timing in timings:
        assert timing.difference < 1e-9, timing


def test_published_batches_hold_four_crystals():
    batch = training.mixed_batch("published")
    assert [len(atoms) for atoms in batch] == [9, 10, 6, 12]
    assert [atoms.get_chemical_formula(empirical=True) for atoms in batch] == ["O2Si", "LiNbO3", "O2Ti", "O4SiZr"]


def test_a_step_changes_the_weights_alike(tiny, crystals):
    pair = [training._trainee(tiny.network, [crystals["p5"]], variant) for variant in (None, SYMMETRIC)]
    before = {name: p.detach().clone() for name, p in pair[0].parameters.items()}
    assert pair[0].step() == pytest.approx(pair[1].step(), rel=1e-12)
    moved = max(float((p - before[name]).abs().max()) for name, p in pair[0].parameters.items())
    assert moved > 1e-4
    second = [trainee.step() for trainee in pair]
    assert second[0] == pytest.approx(second[1], rel=1e-6)


def test_dynamics_agree_with_plain_mace(tiny, crystals):
    timings = list(measure_dynamics(tiny, {"p5": crystals["p5"]}, 2))
    assert [t.variant for t in timings] == [f"mace-torch with {name}" for name in (OWN, GIVEN)]
    for timing in timings:
        assert timing.difference < 1e-9, timing


def test_plain_mace_has_no_field(tiny, crystals):
    plain = PlainMACE(tiny.network)
    assert not [name for name in plain.model.state_dict() if name.startswith("field_")]
    assert any(isinstance(module, torch.jit.ScriptModule) for module in plain.model.modules())
    atoms = walk(crystals["p5"], 2)[1]
    own, given = plain.evaluate(plain.own_batch(atoms)), plain.evaluate(plain.given_batch(atoms))
    for name, value in own.items():
        np.testing.assert_allclose(given[name], value, atol=1e-12)


def test_precision_is_listed_for_every_observable(tiny, crystals):
    found = list(measure_precision(tiny, {"p5": crystals["p5"]}))
    assert [item["model"].split()[0] for item in found] == ["random", "dielectric"]
    for item in found:
        assert list(item["errors"]) == list(NAMES)
        for error in item["errors"].values():
            assert 0 <= error["relative"] <= error["relative_max"] < 0.01
    assert found[0]["errors"]["forces"]["absolute"] > 0


def test_quick_runs_write_a_section_per_task(tmp_path, capsys, monkeypatch):
    output = tmp_path / "speed.json"
    monkeypatch.setitem(__import__("benchmarks.__main__").__main__.QUICK, "crystals", ["p5"])
    tasks = ["dynamics", "scripted", "precision"]
    assert main(["--quick", "--source", "published", "--tasks", *tasks, "--output", str(output)]) == 0
    sections = json.loads(output.read_text(encoding="utf-8"))
    assert sorted(sections) == sorted(tasks)
    assert sections["scripted"]["timings"][0]["difference"] < 1e-10
    assert sections["precision"]["settings"]["crystals"] == "published"
    printed = capsys.readouterr().out
    assert "TorchScript" in printed
    assert "polarizability" in printed
