"""An evaluation from start to end with the toy model, which must score exactly what was added to its own answers."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from fieldflows import load_model
from fieldflows.errors import EvaluationError, InputError, SettingsError
from fieldflows.evaluation import forest
from fieldflows.evaluation.figures import point_density
from fieldflows.evaluation.predict import predict_frames
from fieldflows.evaluation.run import evaluate
from fieldflows.evaluation.settings import EvaluationSettings
from fieldflows.plotting import element_errors, evaluation_errors
from fieldflows.schemas.evaluation import EvaluationDocument
from tests.evaluation.made import LABELS, crystals, dataset, labeled, path


@pytest.fixture(scope="module")
def toy():
    return load_model("toy")


@pytest.fixture(scope="module")
def noisy():
    return dataset(crystals(0.1) + path(0.1))


@pytest.fixture(scope="module")
def report(toy, noisy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation") / "deep" / "report"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forest, "TREES", 10)
        return evaluate(toy, noisy, EvaluationSettings.of(splits=("all",), labels=LABELS), folder, False), folder


def test_the_author_of_the_labels_scores_zero(toy):
    found = evaluate(
        toy, dataset(crystals(0.0) + path(0.0)), EvaluationSettings.of(splits=("test",), labels=LABELS, forest="off")
    )
    quantities = found.document.subsets["test"].quantities
    assert {"energy_per_atom", "forces", "stress_off_diagonal", "polarization", "refractive_index"} < set(quantities)
    raw = quantities.pop("polarization_raw")
    for name in ("spontaneous_polarization_charges", "spontaneous_polarization_charges_norm"):
        assert quantities.pop(name).model.rmse > 0  # an estimate from the ends alone
    assert all(item.model.rmse < 1e-9 * max(1.0, item.label_spread) for item in quantities.values())
    half = 0.5 * np.linalg.norm(path(0.0)[0].atoms.cell[2]) / path(0.0)[0].atoms.get_volume() * 1602.176634
    assert raw.model.distance == pytest.approx(half)
    assert found.document.obeys_identities
    assert found.document.paths[0].label_norm > 1


def test_errors_are_what_was_added(report, noisy):
    document = report[0].document
    frames = [frame for frame in noisy.frames if frame.split == "valid"]
    clean = [labeled(frame.atoms, LABELS, 0.0, 0) for frame in frames]
    expected = np.mean([np.abs(frame.labels["forces"] - c["forces"]) for frame, c in zip(frames, clean, strict=True)])
    assert document.subsets["valid"].quantities["forces"].model.mae == pytest.approx(1e3 * expected)
    zero = np.mean([np.abs(frame.labels["forces"]) for frame in frames])
    assert document.subsets["valid"].quantities["forces"].baselines["zero"].mae == pytest.approx(1e3 * zero)
    assert set(document.subsets["test"].quantities["refractive_index"].baselines) == {"median", "forest"}
    assert (document.subsets["test"].frames, document.subsets["test"].materials) == (12, 3)


def test_heads_stand_beside_the_whole(report):
    document = report[0].document
    heads = [subset for subset in document.heads if subset.split == "train"]
    assert [subset.head for subset in heads] == ["one", "two"]
    whole = document.subsets["train"].quantities["forces"]
    parts = [subset.quantities["forces"] for subset in heads]
    assert sum(item.count for item in parts) == whole.count
    assert np.average([p.model.mae for p in parts], weights=[p.count for p in parts]) == pytest.approx(whole.model.mae)


def test_elements_outliers_and_the_sum_rule(report):
    document = report[0].document
    rule = next(item for item in document.sum_rules if item.split == "test")
    assert rule.predicted_max < 1e-9
    assert rule.published_mean > 0.01  # the noise, and what the cleaning took away
    elements = [item for item in document.elements if item.split == "train"]
    assert [item.mae_diagonal for item in elements] == sorted((item.mae_diagonal for item in elements), reverse=True)
    sodium = next(item for item in elements if item.element == "Na")
    assert sodium.materials == 2
    worst = [item for item in document.outliers if item.name == "born_charge_diagonal" and item.split == "train"]
    assert len(worst) == 8
    assert worst[0].mae == max(item.mae for item in worst)
    assert worst[0].predicted_sum < 1e-9 < worst[0].label_sum
    assert worst[0].element in ("Li", "Na", "K", "F", "Cl")


def test_everything_is_written(report):
    result, folder = report
    names = {item.name for item in folder.iterdir()}
    assert names == {
        "README.md", "metrics.json", "errors.csv", "frames.csv", "elements.csv", "outliers.csv", "paths.csv",
        "identities.csv",
    }  # fmt: skip
    document = EvaluationDocument.from_json_dict(json.loads((folder / "metrics.json").read_text()))
    assert document == result.document
    with (folder / "errors.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    wanted = ("valid", "forces", "zero", "")
    row = next(r for r in rows if (r["split"], r["quantity"], r["predictor"], r["head"]) == wanted)
    assert float(row["rmse"]) == document.subsets["valid"].quantities["forces"].baselines["zero"].rmse
    with (folder / "frames.csv").open() as handle:
        assert len(list(csv.DictReader(handle))) == 22
    text = (folder / "README.md").read_text()
    for words in ("Spontaneous polarization", "Acoustic sum rule", "holds", "forest: MAE (RMSE)", "BaTiO3"):
        assert words in text


def test_figures_are_drawn(toy, noisy, tmp_path):
    settings = EvaluationSettings.of(labels=("polarization", "born_effective_charges"), forest="off", identities=0)
    evaluate(toy, noisy, settings, tmp_path)
    names = {item.name for item in tmp_path.glob("*.png")}
    quantities = ("polarization", "polarization_norm", "born_charge_diagonal", "born_charge_off_diagonal")
    assert names == {
        "distributions.png", "elements_test.png", "sum_rule.png", "path_profiles.png", "spontaneous_polarization.png",
        *(f"parity_{name}.png" for name in quantities),
    }  # fmt: skip
    text = (tmp_path / "README.md").read_text()
    for name in names:
        assert f"({name})" in text
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(maxcolors=10**6)) > 10


def test_documents_alone_are_drawn(report, tmp_path):
    document = report[0].document
    figure = evaluation_errors(document, tmp_path / "errors.png")
    item = document.subsets["test"].quantities["refractive_index"]
    expected = item.model.mae / item.baselines["median"].mae
    line = next(line for line in figure.axes[0].lines if line.get_label() == "test, median")
    assert np.abs(line.get_ydata() - expected).min() < 1e-12
    assert (tmp_path / "errors.png").stat().st_size > 1000
    bars = element_errors(document, "train", tmp_path / "elements.png").axes[0].patches
    assert [bar.get_height() for bar in bars] == [e.mae_diagonal for e in document.elements if e.split == "train"]
    with pytest.raises(SettingsError, match="Did you mean 'train'"):
        element_errors(document, "tran")


def test_points_are_counted_around_each_point():
    x = np.concatenate([np.full(50, 0.3), [0.8]])
    density = point_density(x, x, (0.0, 1.0))
    assert density[-1] == 1.0
    assert 25 < density[0] <= 55
    together = np.linspace(0.2, 0.7, 500)
    assert point_density(together, together, (0.0, 1.0))[250] == pytest.approx(
        np.exp(-(((together - together[250]) * np.sqrt(2) * 80) ** 2) / 8).sum(), rel=0.15
    )


def test_symmetry_changes_nothing(toy, noisy):
    frames = [frame.with_(atoms=bulk_like(frame)) for frame in noisy.subset("test")[:2]]
    with_, without = (predict_frames(toy, frames, LABELS, symmetry) for symmetry in (True, False))
    for one, two in zip(with_.predictions, without.predictions, strict=True):
        for key in LABELS:
            assert one[key] == pytest.approx(two[key], abs=1e-9), key


def bulk_like(frame):
    """Return the crystal without its displacements: cubic, so that symmetry has something to do."""
    atoms = frame.atoms.copy()
    atoms.set_scaled_positions(np.round(2 * atoms.get_scaled_positions()) / 2)
    return atoms


def test_frames_that_name_a_head_are_given_to_it(noisy):
    """Two heads that differ by a factor: each frame must be answered by its own, in the order of the dataset."""
    from dataclasses import replace

    class Headed:
        def __init__(self, head):
            self.toy, self.factor = load_model("toy"), {"one": 1.0, "two": 2.0}[head]

        @property
        def info(self):
            return replace(self.toy.info, heads=("one", "two"))

        def evaluate(self, structures, fields=None, observables=("polarization",)):
            found = self.toy.evaluate(list(structures), fields=fields, observables=observables)
            return [replace(item, forces=self.factor * item.forces) for item in found]

    frames = noisy.subset("train")
    truth = [load_model("toy").evaluate(frame.atoms, observables=("forces",)).forces for frame in frames]
    found = predict_frames(Headed("one"), frames, ("forces",), open_head=Headed)
    assert [frame.source_index for frame in found.frames] == [frame.source_index for frame in frames]
    for frame, prediction, expected in zip(frames, found.predictions, truth, strict=True):
        assert prediction["forces"] == pytest.approx({"one": 1, "two": 2}[frame.head] * expected)
    plain = predict_frames(Headed("one"), frames, ("forces",))
    assert plain.predictions[0]["forces"] == pytest.approx(truth[0])


def test_what_goes_wrong_is_said(toy, noisy, tmp_path):
    with pytest.raises(InputError, match="empty"):
        evaluate(toy, dataset(crystals(0.1)[:8]), EvaluationSettings.of(splits=("test",)))
    with pytest.raises(EvaluationError, match="they hold polarization"):
        evaluate(toy, dataset(path(0.1)), EvaluationSettings.of(labels=("forces",)))
    with pytest.raises(SettingsError, match="identities"):
        EvaluationSettings.of(identities=-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write"):
        evaluate(toy, noisy, EvaluationSettings.of(forest="off", identities=0), tmp_path / "file")


def test_a_frame_that_fails_is_listed_and_the_rest_goes_on(toy, tmp_path):
    frames = crystals(0.1)
    bad = frames[10].atoms.copy()
    bad.positions[1] = bad.positions[0]
    odd = frames[11].with_(atoms=frames[11].atoms.copy(), source_index=99)
    odd.atoms.numbers[0] = 118
    data = dataset([*frames[:8], frames[10].with_(atoms=bad), frames[11], odd])
    settings = EvaluationSettings.of(splits=("valid", "test"), forest="off", identities=1)
    document = evaluate(toy, data, settings, tmp_path, False).document
    kinds = {problem.kind for problem in document.problems}
    assert len(document.problems) == 2
    assert "failed" in kinds
    assert document.subsets["test"].frames == 1
    assert [flag.code for flag in document.flags] == ["empty_subset", "frames_left_out"]
    assert list(document.subsets) == ["test"]
    assert "Frames left out" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "problems.csv").is_file()


def test_a_model_that_breaks_an_identity_is_flagged_and_the_command_says_so(noisy, tmp_path, monkeypatch, capsys):
    from fieldflows.backends import base
    from fieldflows.cli.main import run
    from tests.evaluation.test_identities import Broken, skew

    noisy.save(tmp_path / "data")
    monkeypatch.setattr(base, "load_model", lambda *args, **options: Broken(skew))
    words = ["evaluate", "broken", str(tmp_path / "data"), "--forest", "off", "--no-figures", "--no-symmetry"]
    with pytest.raises(SystemExit) as caught:
        run([*words, "--label", "polarizability", "--out", str(tmp_path / "out")])
    assert caught.value.code == 3
    shown = capsys.readouterr().out
    assert "VIOLATED" in shown
    assert "identity_violated: α = αᵀ" in shown
    document = EvaluationDocument.from_json_dict(json.loads((tmp_path / "out" / "metrics.json").read_text()))
    assert not document.obeys_identities
    assert "Read this first" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(SystemExit) as caught:
        run([*words, "--label", "polarizability", "--identities", "0"])
    assert not caught.value.code
