"""A model against paths that it labeled itself, on branches of their own: the answers are known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fieldflows.backends.toy import ToyModel
from fieldflows.datasets.extxyz import RawFrame, write_extxyz
from fieldflows.datasets.paths import NORM_KEY, POLARIZATION_KEY, QUANTA_KEY
from fieldflows.errors import DataError
from fieldflows.evaluation.independent import with_independent_estimates
from fieldflows.evaluation.published_paths import compare_published
from fieldflows.evaluation.published_report import path_row, published_text, well_known_table, write_published_report
from fieldflows.physics.branches import polarization_fractions
from fieldflows.physics.paths import build_path
from fieldflows.properties.run import run_property
from fieldflows.properties.spontaneous_polarization import (
    Nonpolar,
    SpontaneousPolarizationProperty,
    SpontaneousPolarizationSettings,
)
from fieldflows.schemas.ferroelectric import PublishedPathsDocument
from fieldflows.structures import as_atoms
from fieldflows.testing.structures import random_rotation
from fieldflows.units import E_PER_A2_TO_UC_PER_CM2
from tests.physics.pairs import PAIRS
from tests.properties.charged import PointCharges

SETTINGS = SpontaneousPolarizationSettings(consistency=False, use_symmetry=False)
OFFSET = np.array([0.0, 0.0, 0.5])
IDS = {"BaTiO3": "mp-5986", "PbTiO3": "mp-1"}


def labeled(name, number):
    """Return ten frames of a pair with P of the toy model as published files hold it: quanta and an offset added."""
    rng = np.random.default_rng(number)
    frames = [as_atoms(frame) for frame in build_path(*PAIRS[name]()).frames]
    cell = frames[-1].cell[:]
    quanta = np.linalg.norm(cell, axis=1) / abs(np.linalg.det(cell)) * E_PER_A2_TO_UC_PER_CM2
    fractions = []
    for frame in frames:
        found = ToyModel().evaluate(frame, observables=("polarization",)).polarization
        fractions.append(polarization_fractions(found, frame.cell[:]))
    change = fractions[-1] - fractions[0]
    norm = np.linalg.norm(change @ cell) / abs(np.linalg.det(cell)) * E_PER_A2_TO_UC_PER_CM2
    raws = []
    for k, (frame, f) in enumerate(zip(frames, fractions, strict=True)):
        if k < 9:  # stored cells may be turned against each other
            frame.set_cell(frame.cell[:] @ random_rotation(number * 10 + k).T, scale_atoms=True)
        info = {
            "wfid": f"wfid_{number}", "path_index": k, "workflow_status": "COMPLETED", "category": "smooth",
            "polar_mpid": IDS[name], "nonpolar_mpid": f"mp-{number}0",
            POLARIZATION_KEY: (f + OFFSET + rng.integers(-3, 4, 3)) * quanta, QUANTA_KEY: quanta,
            NORM_KEY: float(norm),
        }  # fmt: skip
        raws.append(RawFrame(frame.numbers, frame.positions, frame.cell[:], frame.pbc, info))
    return raws, norm


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "paths.extxyz"
    with path.open("w", encoding="utf-8") as handle:
        for number, name in enumerate(("BaTiO3", "PbTiO3"), start=1):
            write_extxyz(handle, labeled(name, number)[0])
    return path


@pytest.fixture(scope="module")
def document(file):
    return compare_published(file, ToyModel(), settings=SETTINGS)


def errors(document, compared, group="all"):
    return next(item for item in document.errors if (item.group, item.compared) == (group, compared))


def test_a_model_has_no_error_against_itself(document):
    assert len(document.paths) == 2
    assert document.failures == ()
    assert document.largest_norm_error < 1e-6
    assert errors(document, "|P_s|, difference of P").rmse < 1e-6
    assert errors(document, "P, components, modulo quanta").rmse < 1e-6
    for item in document.paths:
        np.testing.assert_allclose(item.predicted.ps_difference, item.label, atol=1e-6)
        np.testing.assert_allclose(item.predicted_along, item.label_along, atol=1e-6)


def test_raw_labels_hold_an_offset_that_no_single_valued_polarization_has(document):
    """Half a quantum along c: the error of that component in every frame, of three."""
    half = np.array([0.5 * np.linalg.norm(_quantum(item)) for item in document.paths])
    found = errors(document, "P as published, modulo quanta")
    assert found.mae == pytest.approx(half.mean() / 3, rel=0.1)


def _quantum(item):
    return np.array(item.predicted.quanta)[2]


def test_zero_is_as_wrong_as_the_labels_are_large(document):
    norms = [item.label_norm for item in document.paths]
    assert errors(document, "|P_s|, Z* of the ends").zero_mae == pytest.approx(np.mean(norms))
    assert {item.seen for item in document.paths} == {"unknown"}


def test_the_report(document, tmp_path):
    write_published_report(document, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md", "metrics.json", "errors.csv", "paths.csv", "fan.png", "parity_polarization.png",
        "parity_spontaneous_polarization.png",
    }  # fmt: skip
    again = PublishedPathsDocument.from_json_dict(json.loads((tmp_path / "metrics.json").read_text()))
    assert again == document
    text = published_text(document, {})
    assert "the paper divides frames" in text.lower()
    assert "BaTiO3 | Pm-3m to P4mm | 45.90" in well_known_table(document.paths)
    row = path_row(document.paths[0])
    assert row["published"] == document.paths[0].label_norm
    assert isinstance(row["flags"], str)


def test_formulas_that_were_seen_are_told_apart(file):
    class Trained(ToyModel):
        @property
        def info(self):
            from dataclasses import replace

            return replace(super().info, provenance={"formulas": {"train": ["BaTiO3"], "valid": ["TiPbO3"]}})

    found = compare_published(file, Trained(), settings=SETTINGS)
    assert [item.seen for item in found.paths] == ["train", "valid"]
    assert {item.group for item in found.errors} == {
        "formulas used to select the model", "formulas not trained on", "formulas trained on", "all"
    }  # fmt: skip


def test_a_file_without_paths(tmp_path):
    raws, _ = labeled("BaTiO3", 1)
    with (tmp_path / "few.extxyz").open("w", encoding="utf-8") as handle:
        write_extxyz(handle, raws[:4])
    with pytest.raises(DataError, match="no polarization path"):
        compare_published(tmp_path / "few.extxyz", ToyModel(), settings=SETTINGS)


def test_independent_estimates_and_their_spread():
    """Two models whose charges differ by a factor: spread = half the difference of their P_s."""
    nonpolar, polar = PAIRS["PbTiO3"]()
    ions = {"Pb": 2.0, "Ti": 4.0, "O": -2.0}
    prop = SpontaneousPolarizationProperty(SETTINGS, Nonpolar(nonpolar))
    (first,) = run_property(prop, [polar], PointCharges(ions))
    half = PointCharges({name: 0.5 * q for name, q in ions.items()})
    both = with_independent_estimates(first, prop, [half])
    assert both.independent[0].ps_norm == pytest.approx(0.5 * first.ps_norm)
    assert both.uncertainty == pytest.approx(0.25 * first.ps_norm)
    assert both.band_low == pytest.approx(0.5 * first.ps_norm)
    assert both.status == "ok" if both.uncertainty <= 0.25 * first.ps_norm + 1e-9 else "ambiguous"
    opposite = PointCharges({name: -q for name, q in ions.items()})
    against = with_independent_estimates(first, prop, [opposite])
    assert against.status == "ambiguous"
    assert "models_disagree" in {flag.code for flag in against.flags}
    assert against.uncertainty == pytest.approx(first.ps_norm)
    assert with_independent_estimates(first, prop, []) == first


def test_a_model_that_does_not_know_the_elements_is_named():
    class Few(ToyModel):
        @property
        def info(self):
            from dataclasses import replace

            return replace(super().info, name="few", elements=("Zn", "O"))

    nonpolar, polar = PAIRS["PbTiO3"]()
    prop = SpontaneousPolarizationProperty(SETTINGS, Nonpolar(nonpolar))
    (first,) = run_property(prop, [polar], ToyModel())
    found = with_independent_estimates(first, prop, [Few()])
    assert found.independent == ()
    assert found.uncertainty is None
    assert any("few gives no estimate" in flag.message for flag in found.flags)
