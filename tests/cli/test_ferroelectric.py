"""``fieldflows ferroelectric``: pairs, proposals, screening, published paths, errors in one line."""

from __future__ import annotations

import json

import pytest
from ase.io import write

from fieldflows.datasets.extxyz import write_extxyz
from fieldflows.schemas.ferroelectric import SpontaneousPolarizationDocument
from fieldflows.testing.structures import rocksalt_mgo
from tests.evaluation.test_published_paths import labeled
from tests.physics.pairs import PAIRS, lead_titanate

TOY = ("--model", "toy", "--other", "none", "--store", "results.db")


@pytest.fixture
def pair(tmp_path):
    nonpolar, polar = lead_titanate()
    write(tmp_path / "cubic.vasp", nonpolar, format="vasp")
    write(tmp_path / "polar.cif", polar)


def test_a_pair(cli, tmp_path, pair):
    answer = cli("ferroelectric", "polar.cif", "cubic.vasp", *TOY, "--out", "figures")
    assert answer.code == 0, answer.err
    assert "TiPbO3: Pm-3m (given) to P4mm" in answer.out
    assert "P_s = " in answer.out
    assert "barrier along the path" in answer.out
    assert "Flag polar_end_higher" in answer.out
    assert len(list((tmp_path / "figures").glob("TiPbO3_*.png"))) == 1


def test_json_and_the_store(cli, pair):
    answer = cli("ferroelectric", "polar.cif", "cubic.vasp", *TOY, "--json", "--no-check", "--frames", 4)
    document = SpontaneousPolarizationDocument.from_json_dict(json.loads(answer.out))
    assert (document.n_frames, document.ps_integral, document.nonpolar_origin) == (4, None, "given")
    again = cli("ferroelectric", "polar.cif", "cubic.vasp", *TOY, "--json", "--no-check", "--frames", 4)
    stored = SpontaneousPolarizationDocument.from_json_dict(json.loads(again.out))
    assert stored.provenance.created_at == document.provenance.created_at  # not computed again
    metal = cli("ferroelectric", "polar.cif", "cubic.vasp", *TOY, "--band-gap", 0)
    assert "a metal has no polarization" in metal.out


def test_an_independent_model(cli, pair):
    answer = cli("ferroelectric", "polar.cif", "cubic.vasp", "--model", "toy", "--other", "dielectric", "--json",
                 "--store", "results.db")  # fmt: skip
    document = SpontaneousPolarizationDocument.from_json_dict(json.loads(answer.out))
    assert [item.model.name for item in document.independent] == ["dielectric"]
    assert document.uncertainty > 0


def test_proposals(cli, pair):
    answer = cli("ferroelectric", "polar.cif", "--propose", "--json")
    found = json.loads(answer.out)
    assert {item["spacegroup_number"] for item in found} >= {123, 221}
    assert "P4/mmm" in cli("ferroelectric", "polar.cif", "--propose").out


def test_screening(cli, tmp_path):
    write(tmp_path / "many.extxyz", [PAIRS["BaTiO3"]()[1], rocksalt_mgo(), lead_titanate()[1]])
    answer = cli("ferroelectric", "--screen", "many.extxyz", *TOY, "--no-check", "--out", "figures")
    assert answer.code == 0, answer.err
    assert "2 results; 1 crystals are not polar" in answer.err
    assert "proposed_reference" in answer.out
    assert (tmp_path / "figures" / "fan.png").exists()
    answer = cli("ferroelectric", "--screen", "many.extxyz", *TOY, "--no-check", "--json")
    assert [item["formula_pretty"] for item in json.loads(answer.out)["results"]] == ["BaTiO3", "TiPbO3"]


def test_published_paths(cli, tmp_path):
    with (tmp_path / "paths.extxyz").open("w", encoding="utf-8") as handle:
        write_extxyz(handle, labeled("BaTiO3", 1)[0])
    answer = cli("ferroelectric", "--published", "paths.extxyz", "--model", "toy", "--other", "none", "--no-check",
                 "--out", "report")  # fmt: skip
    assert answer.code == 0, answer.err
    assert "| BaTiO3 | Pm-3m to P4mm | 45.90 |" in answer.out
    assert (tmp_path / "report" / "README.md").exists()
    assert "1 of 1 paths" in answer.err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "one of the three"),
        (("polar.cif", "--screen", "polar.cif"), "one of the three"),
        (("polar.cif", "polar.cif"), "same crystal"),
        (("cubic.vasp", "polar.cif"), "polar point group 4mm"),
        (("cubic.vasp",), "allows no polarization"),
        (("polar.cif", "cubic.vasp", "--estimate", "guess"), "branch, charges, difference"),
        (("missing.cif",), "does not exist"),
        (("--published", "missing.extxyz"), "There is no file"),
    ],
)
def test_errors_in_one_line(cli, pair, words, text):
    answer = cli("ferroelectric", *words, *TOY)
    assert answer.code == 2
    assert text in answer.err
    assert answer.err.strip().count("\n") == 0


def test_energies_of_a_model_without_any(cli, pair):
    answer = cli("ferroelectric", "polar.cif", "cubic.vasp", "--hessian-model", "dielectric", *TOY)
    assert answer.code == 2
    assert "hessian_model" in answer.err
