"""The demonstration: its crystals are what they say, published values are consistent, and the command shows them."""

from __future__ import annotations

import re
import sqlite3

import numpy as np
import pytest
import spglib
from pymatgen.core import Lattice

from fieldflows.backends.base import load_model
from fieldflows.cli.main import run
from fieldflows.demo.comparison import charge_pairs, compare, index_pairs, score
from fieldflows.demo.crystals import PublishedCharge, PublishedOptics, load_crystals, load_sources
from fieldflows.demo.figure import draw
from fieldflows.properties.base import PropertyInput
from fieldflows.properties.dielectric import DielectricProperty, DielectricSettings
from fieldflows.properties.run import run_property

CRYSTALS = load_crystals()
BY_NAME = {crystal.name: crystal for crystal in CRYSTALS}
each = pytest.mark.parametrize("crystal", CRYSTALS, ids=lambda crystal: crystal.name)


@pytest.fixture(scope="module")
def documents():
    model = load_model("toy")
    inputs = [PropertyInput(crystal.primitive(), material_id=crystal.name) for crystal in CRYSTALS]
    return run_property(DielectricProperty(DielectricSettings(ionic=False)), inputs, model)


def test_there_are_enough_of_them():
    assert len(BY_NAME) == len(CRYSTALS) >= 20
    assert sum(bool(crystal.charges) for crystal in CRYSTALS) >= 12


@each
def test_the_structure_has_its_space_group(crystal):
    structure = crystal.primitive()
    dataset = spglib.get_symmetry_dataset(
        (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers), symprec=1e-3
    )
    assert dataset.number == crystal.spacegroup
    assert len(set(dataset.mapping_to_primitive)) == len(structure), "the cell is primitive"


@each
def test_the_formula_is_that_of_the_name(crystal):
    formula = crystal.name.split("-")[0]
    reduced = crystal.primitive().composition.reduced_composition
    assert reduced.almost_equals(type(reduced)(formula))


@each
def test_the_primitive_cell_stays_in_the_frame_of_the_conventional_one(crystal):
    primitive = crystal.primitive().lattice
    conventional = Lattice.from_parameters(*crystal.cell_parameters())
    multiples = conventional.matrix @ np.linalg.inv(primitive.matrix)
    np.testing.assert_allclose(multiples, multiples.round(), atol=1e-6)
    if 75 <= crystal.spacegroup <= 194:
        np.testing.assert_allclose(conventional.matrix[2, :2], 0.0, atol=1e-9)


@each
def test_bonds_are_of_chemical_length(crystal):
    structure = crystal.primitive()
    radii = {site.specie.symbol: float(site.specie.atomic_radius) for site in structure}
    for site in structure:
        nearest = min(structure.get_neighbors(site, 4.0), key=lambda neighbor: neighbor.nn_distance)
        total = radii[site.specie.symbol] + radii[nearest.specie.symbol]
        assert 0.7 * total < nearest.nn_distance < 1.4 * total


@each
def test_every_value_has_a_source(crystal):
    keys = {crystal.structure, crystal.optics.source, *(charge.source for charge in crystal.charges)}
    assert keys <= set(load_sources())


def test_every_source_is_used_and_dated():
    used = {key for c in CRYSTALS for key in (c.structure, c.optics.source, *(q.source for q in c.charges))}
    assert used == set(load_sources())
    for key, text in load_sources().items():
        assert key == "crc" or re.search(r"\((19|20)\d\d", text), text


@each
def test_published_charges_obey_the_sum_rule(crystal):
    """Σ Z* = 0: where every atom is covered, published values must add up to nothing but rounding."""
    structure = crystal.primitive()
    counts = {str(element): int(n) for element, n in structure.composition.items()}
    if crystal.prototype == "cubic perovskite":
        along = {charge.component: charge.value for charge in crystal.charges if charge.element == "O"}
        total = along["zz"] + 2 * along["xx"] + sum(q.value for q in crystal.charges if q.component == "iso")
        assert abs(total) < 0.03
        return
    for component in {charge.component for charge in crystal.charges}:
        values = {charge.element: charge.value for charge in crystal.charges if charge.component == component}
        assert set(values) == set(counts)
        assert abs(sum(counts[element] * value for element, value in values.items())) < 0.03


def test_the_oxygen_of_a_perovskite_is_the_one_that_is_meant(documents):
    crystal = BY_NAME["SrTiO3-cubic"]
    structure = crystal.primitive()
    charge = next(charge for charge in crystal.charges if charge.component == "zz")
    oxygen = structure[crystal.atom(structure, charge)]
    titanium = next(site for site in structure if site.specie.symbol == "Ti")
    bonds = [n.coords - oxygen.coords for n in structure.get_neighbors(oxygen, 2.0) if n.specie == titanium.specie]
    assert len(bonds) == 2
    for bond in bonds:
        np.testing.assert_allclose(np.abs(bond), [0, 0, 3.905 / 2], atol=1e-6)


def test_components_are_picked():
    tensor = np.diag([1.0, 2.0, 6.0])
    picked = [
        PublishedCharge(element="O", component=component, value=0, kind="k", source="s").pick(tensor)
        for component in ("iso", "xx", "yy", "zz")
    ]
    assert picked == [3.0, 1.0, 2.0, 6.0]


def test_optics_take_permittivities_or_indices():
    by_index = PublishedOptics(n=(2.0, 2.0, 1.0), wavelength=589, kind="measured", source="s")
    assert by_index.principal == (1.0, 4.0, 4.0)
    assert by_index.refractive_index == pytest.approx(3**0.5)
    with pytest.raises(ValueError, match="either"):
        PublishedOptics(kind="measured", source="s")


def test_comparison_pairs_by_name(documents):
    comparisons = compare(CRYSTALS, reversed(documents))
    assert [item.crystal.name for item in comparisons] == list(BY_NAME)
    quartz = next(item for item in comparisons if item.crystal.name == "SiO2-quartz")
    published, computed = quartz.refractive_indices
    assert published == pytest.approx(1.538, abs=1e-3)
    assert computed == quartz.document.n
    silicon = np.array(quartz.document.born_effective_charges)[0]
    assert quartz.charges[0].model == pytest.approx(np.trace(silicon) / 3)
    assert len(charge_pairs(comparisons)) == sum(len(crystal.charges) for crystal in CRYSTALS)


def test_missing_documents_are_left_out(documents):
    assert compare(CRYSTALS, documents[:3]) == compare(CRYSTALS[:3], documents)


def test_score():
    result = score([(1.0, 1.5), (2.0, 1.0)], "e")
    assert (result.count, result.mae, result.bias) == (2, 0.75, -0.25)
    assert np.isnan(score([], "e").mae)


def test_figure_holds_every_point(documents, tmp_path):
    from PIL import Image

    comparisons = compare(CRYSTALS, documents)
    path = draw(comparisons, tmp_path / "new" / "parity.png", "toy")
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.shape[0] > 600
    assert pixels.shape[1] > 1200
    assert len(index_pairs(comparisons)) == len(CRYSTALS)
    for color in ((0x0F, 0x76, 0x6E), (0xB4, 0x53, 0x09)):
        assert (np.abs(pixels.astype(int) - color).sum(axis=2) < 12).sum() > 500, "points are drawn"


def test_figure_of_crystals_without_published_charges(documents, tmp_path):
    comparisons = compare(CRYSTALS[:2], documents)
    assert charge_pairs(comparisons) == []
    assert draw(comparisons, tmp_path / "parity.svg", "toy").stat().st_size > 1000


def command(capsys, *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        run(["demo", *words])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_the_command_shows_stores_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, _ = command(capsys, "--model", "toy")
    assert code == 0
    for crystal in CRYSTALS:
        assert crystal.label in out
    assert f"{len(CRYSTALS)}/{len(CRYSTALS)}" in out, "the progress bar"
    assert load_sources()["zhong1994"][:40] in out
    assert "Electronic quantities only" in out
    assert (tmp_path / "demo-output" / "parity.png").stat().st_size > 10_000
    store = tmp_path / "demo-output" / "store.db"
    with sqlite3.connect(store) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)

    with pytest.raises(SystemExit) as stop:
        run(["query", "n > 0", "--store", str(store), "--json"])
    assert stop.value.code in (0, None)
    assert capsys.readouterr().out.count('"material_id"') == len(CRYSTALS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo-output"], "nothing else is left behind"


def test_a_model_that_does_not_exist_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, err = command(capsys, "--model", "no-such-model")
    assert code == 2
    assert err.strip().count("\n") == 0
    assert "no-such-model" in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    code, _, err = command(capsys, "--model", "toy", "--out", str(tmp_path / "file" / "folder"))
    assert code == 2
    assert "--out" in err


def test_the_readme_counts_the_crystals():
    from tests.docs.pages import ROOT

    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"screens {len(CRYSTALS)} well-known crystals" in text


def test_crystals_without_a_number_are_counted_out_loud(documents):
    from fieldflows.demo.figure import _summary

    invalid = documents[0].model_copy(update={"n": None, "status_electronic": "invalid"})
    comparisons = compare(CRYSTALS, [invalid, *documents[1:]])
    assert comparisons[0].refractive_indices is None
    assert _summary(index_pairs(comparisons), "", len(comparisons)).startswith("27 of 28 values, MAE")
    assert _summary([(1.0, 2.0)], "e", 1) == "1 values, MAE 1.00 e, mean difference +1.00 e"


def test_crystals_that_the_model_has_seen_are_marked():
    from dataclasses import replace
    from types import SimpleNamespace

    from fieldflows.cli.demo import mark

    info = load_model("toy").info
    item = SimpleNamespace(document=SimpleNamespace(formula_pretty="MgO"))
    assert mark(item, info) == ""
    assert mark(item, replace(info, provenance={"formulas": {"train": ["MgO"], "valid": []}})) == "*"
    assert mark(item, replace(info, provenance={"formulas": {"train": ["NaCl"], "valid": ["CaO"]}})) == ""
