"""The report: verdicts over folds, subsets of rows, worst rows with reasons, files, and the official file."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from fieldflows import load_model
from fieldflows.artifacts import FileArtifacts
from fieldflows.datasets.extxyz import RawFrame, file_sha256
from fieldflows.datasets.matbench import MatbenchEntry, official_folds, official_mbid
from fieldflows.errors import ArtifactError, DataError
from fieldflows.evaluation.matbench import files
from fieldflows.evaluation.matbench.figures import parity_with_inset
from fieldflows.evaluation.matbench.files import official_file, read_task
from fieldflows.evaluation.matbench.gather import gather, predictions_of
from fieldflows.evaluation.matbench.predict import IndexProperty, predict_indices
from fieldflows.evaluation.matbench.published import flat_predictions, read_predictions
from fieldflows.evaluation.matbench.report import write_report
from fieldflows.evaluation.matbench.scores import score_folds
from fieldflows.evaluation.matbench.worst import moss_gap, worst_rows
from fieldflows.physics.dielectric import electronic_permittivity
from fieldflows.physics.optics import refractive_index
from fieldflows.properties.base import model_card
from fieldflows.schemas.matbench import FoldResult, MatbenchFoldDocument, MatbenchReport, Replaced, SeenBefore
from fieldflows.structures import as_atoms
from tests.evaluation.matbench_made import crystals, true_index, write_task

NAMES = ("Ge", "Si", "MgO", "NaCl", "MnO", "NaF", "KCl", "LiF", "KBr", "CaO", "SrO", "BaO")


def entry(row: int, atoms, n: float) -> MatbenchEntry:
    raw = RawFrame(
        index=row, numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell[:], pbc=(True,) * 3,
        info={}, arrays={},
    )  # fmt: skip
    return MatbenchEntry(row, raw, n, official_mbid(row), int(official_folds()[row]))


@pytest.fixture(scope="module")
def entries() -> list[MatbenchEntry]:
    made = [bulk(name, "diamond" if name in ("Ge", "Si") else "rocksalt", a=5.0) for name in NAMES]
    labels = [12.0, 3.5, *np.linspace(1.3, 2.4, len(made) - 2)]
    return [entry(row, atoms, float(n)) for row, (atoms, n) in enumerate(zip(made, labels, strict=True))]


def documents(entries, verdicts=("leaky",) * 5, shift: float = 0.1, replaced=()) -> list[MatbenchFoldDocument]:
    card, made = model_card(load_model("toy")), []
    for fold in range(5):
        rows = [item for item in entries if item.fold == fold]
        seen = SeenBefore(
            verdict=verdicts[fold],
            reason="as made",
            by_formula=tuple(item.mbid for item in rows[:1]) if verdicts[fold] == "leaky" else (),
            by_structure=None,
        )
        result = FoldResult(
            mode="fixed", fold=fold, predictions={item.mbid: item.n + shift for item in rows}, fallback=2.0,
            replaced=tuple(Replaced(mbid=name, reason="why") for name in replaced if name in {r.mbid for r in rows}),
            model=card, seen=seen,
        )  # fmt: skip
        made.append(
            MatbenchFoldDocument(
                key="k",
                fold=fold,
                results=(result,),
                file_sha256="0" * 64,
                settings={},
                wall_time=0.0,
                code_version="0",
            )
        )
    return [document for document in made if document.results[0].predictions]


def test_subsets_and_verdict_of_a_leaky_model(entries):
    report = gather(entries, documents(entries))
    (method,) = report.methods
    assert (method.verdict, method.fold_honest) == ("leaky", False)
    seen = {name for item in documents(entries) for name in item.results[0].seen.by_formula}
    assert method.seen_formulas == len(seen)
    assert method.clean_rows.rows == len(entries) - len(seen)
    assert method.moderate.rows == len(entries) - 1
    assert method.all_rows.over_folds["mae"].mean == pytest.approx(0.1)
    assert method.all_rows.median_error == pytest.approx(0.1)
    assert not report.complete
    assert {flag.code for flag in report.flags} == {"not_all_rows", "leaky"}
    assert MatbenchReport.from_json_dict(json.loads(json.dumps(report.to_json_dict()))) == report


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("clean",) * 5, "clean"),
        (("clean", "clean", "unknown", "clean", "clean"), "unknown"),
        (("clean", "unknown", "leaky", "clean", "clean"), "leaky"),
    ],
)
def test_one_fold_decides_the_verdict(entries, verdicts, expected):
    found = {document.fold: document for document in documents(entries, verdicts)}
    present = {verdicts[fold] for fold in found}
    assert expected in present
    (method,) = gather(entries, list(found.values())).methods
    assert method.verdict == expected
    assert method.fold_honest == (expected == "clean")
    assert (method.clean_rows is None) == (expected != "leaky")


def test_folds_that_were_not_done_do_not_count(entries):
    some = documents(entries)[:2]
    report = gather(entries, some)
    done = {document.fold for document in some}
    assert report.rows == sum(item.fold in done for item in entries)
    # the dummy still knows the rows of all other folds
    assert report.dummy.rows == report.rows
    with pytest.raises(DataError, match="one file"):
        gather(entries, [])


def test_the_worst_rows_and_why(entries):
    predictions = {item.mbid: item.n for item in entries}
    predictions |= {entries[0].mbid: 3.0, entries[1].mbid: 5.0, entries[4].mbid: 2.6, entries[5].mbid: 2.4}
    found = worst_rows(entries, predictions, [entries[5].mbid], 4)
    assert [row.formula for row in found] == ["Ge", "Si", "MnO", "NaF"]
    assert found[0].reasons[:2] == ("near_metal", "gap_too_wide")
    assert "gap_too_narrow" in found[1].reasons
    assert "open_shell" in found[2].reasons
    assert "no_number" in found[3].reasons
    assert "rare_element" in found[0].reasons  # germanium is in no other row
    assert found[0].label_gap == pytest.approx(95 / 12.0**4)
    assert moss_gap(3.42) == pytest.approx(0.69, abs=0.01)  # silicon by that rule; measured are 1.12 eV


def test_the_files_of_a_report(entries, tmp_path):
    folds = documents(entries, replaced=(entries[3].mbid,))
    published = {"dummy": {"fold_0": {"data": {item.mbid: 2.0 for item in entries}}}}
    report = write_report(gather(entries, folds, published), entries, folds, tmp_path / "report")
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {
        "README.md", "report.json", "scores.csv", "predictions.csv", "worst.csv", "results_fixed.json",
        "parity_fixed.png",
    }  # fmt: skip
    text = (tmp_path / "report" / "README.md").read_text()
    assert "**leaky**" in text
    assert "**replaced**" in text
    assert "MODNet" in text
    assert "0.2711" in text
    dummy = next(item for item in report.leaderboard if item.name == "dummy")
    labels = {item.mbid: item.n for item in entries}
    assert dummy.same_rows == score_folds(labels, dict.fromkeys(labels, 2.0))
    results = read_predictions(tmp_path / "report" / "results_fixed.json")
    assert flat_predictions(results["toy"]) == predictions_of(folds, "fixed")
    rows = list(csv.DictReader((tmp_path / "report" / "predictions.csv").open()))
    assert {row["mbid"]: float(row["n"]) for row in rows} == labels
    assert MatbenchReport.from_json_dict(json.loads((tmp_path / "report" / "report.json").read_text())) == report


def test_the_figure_has_an_inset_of_the_small_ones():
    label = np.concatenate([np.linspace(1.3, 3.0, 200), [12.0, 60.0]])
    figure = parity_with_inset(label, label, np.zeros(202, bool), "model", "scores")
    (ax,) = figure.axes
    (inset,) = ax.child_axes[:1]
    assert ax.get_xlim()[1] > 60
    assert inset.get_xlim() == (1.0, 3.0)
    assert inset.get_xlabel() == "200 of 202 rows"


def test_indices_are_those_of_the_model_and_failures_are_alone():
    good = [as_atoms(atoms) for atoms in list(crystals().values())[:3]]
    broken = bulk("LiF", "rocksalt", a=4.0)
    broken.positions[1] = broken.positions[0] + 1e-4
    toy = load_model("toy")
    found = predict_indices(toy, [good[0], broken, *good[1:]])
    assert [item.n is None for item in found] == [False, True, False, False]
    assert found[1].reason
    for item, atoms in zip((found[0], *found[2:]), good, strict=True):
        assert item.n == pytest.approx(true_index(atoms), abs=1e-9)
    plain = predict_indices(toy, good, symmetry=False)
    np.testing.assert_allclose([item.n for item in plain], [item.n for item in (found[0], *found[2:])], atol=1e-9)
    model = load_model("dielectric")
    (item,) = predict_indices(model, [bulk("MgO", "rocksalt", a=4.21)])
    alpha = model.evaluate(bulk("MgO", "rocksalt", a=4.21)).polarizability
    assert item.n == pytest.approx(refractive_index(electronic_permittivity(alpha)), abs=1e-6)
    assert IndexProperty().settings_dict() == {"symmetry": True}


def test_the_official_file_is_fetched_and_verified(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("FIELDFLOWS_ARTIFACTS", str(tmp_path / "artifacts"))
    (tmp_path / "web").mkdir()
    path, _ = write_task(tmp_path / "web")
    monkeypatch.setattr(files, "OFFICIAL_SHA256", file_sha256(path))
    with pytest.raises(DataError, match="--download"):
        official_file()
    found = official_file(True, path.as_uri())
    assert found.read_bytes() == path.read_bytes()
    assert official_file() == found
    found.write_bytes(b"another")
    with pytest.raises(DataError, match="was altered"):
        official_file()
    found.unlink()
    monkeypatch.setattr(files, "OFFICIAL_SHA256", "0" * 64)
    with pytest.raises(ArtifactError, match="altered or cut off"):
        official_file(True, path.as_uri())
    assert not FileArtifacts(tmp_path / "artifacts").path("0" * 64).exists()


def test_a_file_without_index_must_be_the_official_one(tmp_path):
    path, index = write_task(tmp_path)
    with pytest.raises(DataError, match="expected is"):
        read_task(path)
    found, sha256 = read_task(path, index)
    assert len(found) == len(crystals())
    assert sha256 == file_sha256(Path(path))
