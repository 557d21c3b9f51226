"""Nothing of a fold is learned from: datasets, models, heads, and what a model says that it has seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fieldflows import load_model
from fieldflows.backends.mace_field import foundation
from fieldflows.datasets.dataset import Dataset, dataset_digest
from fieldflows.errors import DataError, SettingsError
from fieldflows.evaluation.matbench.files import read_task
from fieldflows.evaluation.matbench.folds import formula_of, of_fold, other_folds, with_cubic_rows, without_materials
from fieldflows.evaluation.matbench.retrain import refuse_seen_backbone, train_fold
from fieldflows.evaluation.matbench.run import FoldTask, learnable, read_fold, run_fold
from fieldflows.evaluation.matbench.seen import known_formulas, same_structures, seen_before
from fieldflows.evaluation.matbench.settings import MatbenchSettings
from fieldflows.physics.dielectric import electronic_permittivity
from fieldflows.physics.optics import refractive_index
from fieldflows.schemas.matbench import MatbenchFoldDocument
from fieldflows.training.config import TrainingConfig
from fieldflows.training.loop import Trainer
from tests.evaluation.matbench_made import MARKED, TRAIN, crystals, dataset, fold_of, mbids, write_task

FOLD = 2
SETTINGS = MatbenchSettings.of(modes=("retrained", "corrected"), inner_folds=2, least_rows=5)
CONFIG = TrainingConfig.from_dict({**TRAIN, "dataset": {"path": "unused"}})
MARK = 7.7654321


def task(folder: Path, labels=None, factors=None, settings=SETTINGS, **changes) -> FoldTask:
    entries, sha256 = read_task(*write_task(folder, labels))
    return FoldTask(
        **{
            "entries": entries, "file_sha256": sha256, "fold": FOLD, "settings": settings, "training": CONFIG,
            "dataset": dataset(folder, factors), **changes,
        }
    )  # fmt: skip


def run(folder: Path, *args, **changes) -> MatbenchFoldDocument:
    folder.mkdir()
    return run_fold(task(folder, *args, **changes), folder / "out")


def judged() -> list[str]:
    return [formula for formula in crystals() if fold_of(formula) == FOLD]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[MatbenchFoldDocument, Path]:
    folder = tmp_path_factory.mktemp("matbench") / "plain"
    return run(folder), folder


def test_a_marked_fold_leaves_no_trace(plain, tmp_path):
    """Labels of all rows of the fold, and their tensors in the training data, are replaced: nothing changes."""
    before, folder = plain
    labels, factors = dict.fromkeys(judged(), MARK), dict.fromkeys(judged(), 30.0)
    after = run(tmp_path / "marked", labels, factors)
    assert after.file_sha256 != before.file_sha256
    for old, new in zip(before.results, after.results, strict=True):
        assert new.mode == old.mode
        assert new.predictions == old.predictions
        assert new.training.checkpoint_sha256 == old.training.checkpoint_sha256
        assert (new.head, new.fallback, new.replaced) == (old.head, old.fallback, old.replaced)
    assert before.results[1].head.kind != "none"  # there was a head to leave a trace in
    assert MARKED in judged()
    for path in [*(folder / "out").rglob("*"), *(tmp_path / "marked" / "out").rglob("*")]:
        if path.is_file() and "models" in path.parts:
            assert MARKED.encode() not in path.read_bytes(), path
            assert str(MARK).encode() not in path.read_bytes(), path
    model = load_model(after.results[0].training.checkpoint)
    assert "Mg" not in model.info.elements
    assert not set(judged()) & known_formulas(model.info)


def test_other_rows_and_crystals_do_leave_one(plain, tmp_path):
    """The same changes to another fold are seen: the test above can fail."""
    before, _ = plain
    others = [formula for formula in crystals() if fold_of(formula) not in (FOLD,)]
    after = run(tmp_path / "tensors", None, dict.fromkeys(others, 1.3))
    assert after.results[0].training.checkpoint_sha256 != before.results[0].training.checkpoint_sha256
    assert after.results[0].predictions != before.results[0].predictions
    after = run(tmp_path / "labels", dict.fromkeys(others, 2.5))
    gone = {row.mbid for row in before.results[0].replaced}
    for mbid, n in before.results[0].predictions.items():
        assert (after.results[0].predictions[mbid] == n) == (mbid not in gone)
        assert after.results[1].predictions[mbid] != before.results[1].predictions[mbid]
    assert after.results[0].fallback != before.results[0].fallback


def test_a_fixed_model_with_a_head_leaves_no_trace_either(tmp_path):
    settings = MatbenchSettings.of(modes=("fixed", "corrected"), inner_folds=2, least_rows=5)
    changes = {"settings": settings, "training": None, "model": load_model("toy")}
    before = run(tmp_path / "a", **changes)
    after = run(tmp_path / "b", dict.fromkeys(judged(), MARK), **changes)
    assert [item.mode for item in before.results] == ["fixed", "corrected"]
    assert [item.predictions for item in after.results] == [item.predictions for item in before.results]
    assert before.results[1].head.kind != "none"
    # labels are many times those of the toy model, so that a head that works comes closer to them
    labels = {entry.mbid: entry.n for entry in task(tmp_path / "a").entries}
    errors = [np.mean([abs(n - labels[mbid]) for mbid, n in item.predictions.items()]) for item in before.results]
    assert errors[1] < 0.5 * errors[0]
    assert {item.seen.verdict for item in before.results} == {"unknown"}


def test_a_model_of_the_fold_is_clean_and_says_what_was_taken_out(plain):
    document, _ = plain
    first = document.results[0]
    assert first.seen.verdict == "clean"
    assert first.training.removed_formulas == first.training.removed_frames == len(judged())
    assert set(first.predictions) == {mbids()[formula] for formula in judged()}
    # Mg occurs in no other crystal: the row gets the mean of the other folds, and is named
    assert [row.mbid for row in first.replaced] == [mbids()[MARKED]]
    assert "Mg" in first.replaced[0].reason
    assert first.predictions[mbids()[MARKED]] == first.fallback


def test_what_is_finished_is_not_done_again(plain, monkeypatch):
    document, folder = plain
    again = task(folder)

    def fail(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr("fieldflows.evaluation.matbench.run.train_fold", fail)
    assert run_fold(again, folder / "out") == document
    (path,) = (folder / "out").glob("fold_2-*.json")
    assert read_fold(path, "another") is None
    path.write_text(path.read_text()[:-9])
    assert read_fold(path, document.key) is None


def test_a_finished_training_is_taken_up_again(plain, monkeypatch):
    document, folder = plain
    (path,) = (folder / "out").glob("fold_2-*.json")
    kept = path.read_text()
    path.unlink()
    monkeypatch.setattr(Trainer, "_step", no_step)
    again = run_fold(task(folder), folder / "out")
    path.write_text(kept)
    assert again.results[0].training.checkpoint_sha256 == document.results[0].training.checkpoint_sha256
    assert [item.predictions for item in again.results] == [item.predictions for item in document.results]


def no_step(self, *args):
    raise AssertionError("trained again")


def test_a_fold_that_was_killed_goes_on(plain, tmp_path, monkeypatch):
    document, _ = plain
    run = CONFIG.run.model_copy(update={"checkpoint_steps": 1})
    made = task(tmp_path, training=CONFIG.model_copy(update={"run": run}))
    original, steps = Trainer._step, []

    def killed(self, *args):
        if len(steps) == 2:
            raise KeyboardInterrupt
        steps.append(self.state.step)
        original(self, *args)

    monkeypatch.setattr(Trainer, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run_fold(made, tmp_path / "out")
    assert not list((tmp_path / "out").glob("fold_2-*.json"))

    def counted(self, *args):
        steps.append(self.state.step)
        original(self, *args)

    monkeypatch.setattr(Trainer, "_step", counted)
    found = run_fold(made, tmp_path / "out")
    assert len(steps) == len(set(steps))  # no step was made twice
    assert found.results[0].predictions == document.results[0].predictions


def test_datasets_without_materials(tmp_path):
    whole = dataset(tmp_path)
    left = without_materials(whole, {"LiF", MARKED, "XeF2"}, "rest")
    assert len(left) == len(whole) - 2
    assert left.manifest.n_frames == len(left)
    assert left.digest == dataset_digest(left.frames) != whole.digest
    assert "Mg" not in left.manifest.elements
    assert {frame.material: frame.split for frame in left.frames}.items() <= {
        frame.material: frame.split for frame in whole.frames
    }.items()
    again = Dataset.load(left.save(tmp_path / "rest"))
    assert again.digest == left.digest
    assert MARKED not in (tmp_path / "rest" / "manifest.json").read_text()
    with pytest.raises(DataError, match="no training frame left"):
        without_materials(whole, {frame.material for frame in whole.frames}, "none")


def test_cubic_rows_are_whole_tensors(tmp_path):
    entries, _ = read_task(*write_task(tmp_path))
    others = other_folds(entries, FOLD)
    new = [formula_of(entry) for entry in others][:3]
    rest = without_materials(dataset(tmp_path), {*new, *judged()}, "rest")
    stretched = others[0].raw.cell @ np.diag([1.0, 1.0, 1.1])
    positions = others[0].raw.positions @ np.diag([1.0, 1.0, 1.1])
    tetragonal = replace(others[0], raw=replace(others[0].raw, cell=stretched, positions=positions))
    found, number = with_cubic_rows(rest, [tetragonal, *others[1:]], "more")
    assert number == 2  # neither the distorted crystal nor what the dataset holds already
    assert found.manifest.n_frames == len(found) == len(rest) + 2
    for frame in found.frames[-2:]:
        entry = next(item for item in entries if formula_of(item) == frame.material)
        epsilon = electronic_permittivity(frame.labels["polarizability"])
        np.testing.assert_allclose(epsilon, entry.n**2 * np.eye(3), atol=1e-12)
        assert refractive_index(epsilon) == pytest.approx(entry.n, abs=1e-12)
        assert frame.split in ("train", "valid", "test")
    assert Dataset.load(found.save(tmp_path / "more")).digest == found.digest
    assert with_cubic_rows(rest, [tetragonal], "same") == (rest, 0)


def test_a_fold_is_trained_with_cubic_rows(tmp_path):
    made = task(tmp_path)
    gone = {"LiF", "NaF", "KF", "LiI", "NaI"}
    left = without_materials(made.dataset, gone, "part")
    trained = train_fold(CONFIG, left, made.entries, FOLD, tmp_path / "out", cubic_rows=True)
    info = load_model(trained.checkpoint).info
    assert trained.n_added == len(gone - set(judged())) > 0
    assert not known_formulas(info) & set(judged())
    assert {f.material for f in trained.dataset.frames if f.split != "test"} == known_formulas(info)
    assert seen_before(info, of_fold(made.entries, FOLD)).verdict == "clean"


def test_rows_of_the_same_formula_are_not_learned_from(tmp_path):
    entries, _ = read_task(*write_task(tmp_path))
    twin = next(entry for entry in entries if entry.fold == 1)
    polymorph = replace(next(entry for entry in entries if entry.fold == FOLD), fold=0, mbid=twin.mbid, row=99)
    found = other_folds([*entries, polymorph], FOLD)
    assert polymorph not in found
    assert {entry.fold for entry in found} == {0, 1, 3, 4}
    assert not {formula_of(e) for e in found} & {formula_of(e) for e in of_fold(entries, FOLD)}


def test_a_head_learns_from_what_the_model_was_not_trained_on(plain):
    document, folder = plain
    made = task(folder)
    trained = train_fold(CONFIG, made.dataset, made.entries, FOLD, folder / "out" / "models" / f"fold_{FOLD}")
    assert trained.sha256 == document.results[0].training.checkpoint_sha256
    model = load_model(trained.checkpoint)
    _, labels, formulas = learnable(made, model, trained)
    assert len(labels) == len(formulas) == document.results[1].head.rows
    assert not set(formulas) & (known_formulas(model.info, ("train",)) | set(judged()))


def test_what_the_bundled_model_has_seen(tmp_path):
    entries, _ = read_task(*write_task(tmp_path))
    info = load_model("dielectric").info
    known = known_formulas(info)
    found = seen_before(info, entries)
    rows = {entry.mbid for entry in entries if formula_of(entry) in known}
    assert found.verdict == "leaky"
    assert 0 < len(rows) == len(found.by_formula)
    assert set(found.by_formula) == rows
    assert found.by_structure is None
    clean = [entry for entry in entries if entry.mbid not in rows]
    assert seen_before(info, clean).verdict == "clean"
    silent = replace(info, provenance={})
    assert seen_before(silent, entries).verdict == "unknown"
    tuned = replace(info, provenance={**info.provenance, "backbone": {"name": "large"}})
    found = seen_before(tuned, clean)
    assert found.verdict == "unknown"
    assert "its backbone large" in found.reason
    assert seen_before(tuned, clean, backbone_checked=True).verdict == "clean"
    with pytest.raises(SettingsError, match="was trained on the dataset"):
        seen_before(info, entries, dataset(tmp_path))


def test_structures_are_compared_beside_formulas(tmp_path):
    entries, _ = read_task(*write_task(tmp_path))
    data = dataset(tmp_path)
    trained = {frame.material for frame in data.frames if frame.split != "test"}
    assert set(same_structures(entries, data)) == {e.mbid for e in entries if formula_of(e) in trained}
    # a polymorph has the formula and another structure
    from ase.build import bulk

    frames = [
        frame.with_(atoms=bulk("LiF", "cesiumchloride", a=2.6))
        if frame.material == "LiF"
        else frame.with_(split="test")
        for frame in data.frames
    ]
    other = Dataset(
        [frame.with_(split="train") if frame.material == "LiF" else frame for frame in frames], data.manifest
    )
    lif = [entry for entry in entries if formula_of(entry) == "LiF"]
    assert same_structures(lif, other) == ()
    info = replace(load_model("toy").info, provenance={"formulas": {"train": ["LiF"]}, "dataset_digest": data.digest})
    found = seen_before(info, lif, other)
    assert (found.verdict, found.by_formula, found.by_structure) == ("leaky", (lif[0].mbid,), ())


def test_a_model_that_saw_the_fold_is_no_start():
    def config(name: str) -> TrainingConfig:
        return CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"backbone": name})})

    seen = next(iter(sorted(known_formulas(load_model("dielectric").info))))
    with pytest.raises(SettingsError, match=f"trained on 1 of the 2 formulas of the fold, such as {seen}"):
        refuse_seen_backbone(config("dielectric"), {seen, "KMgF3Xe"})
    refuse_seen_backbone(config("dielectric"), {"KMgF3Xe"})
    refuse_seen_backbone(CONFIG, {seen})


def test_what_is_missing_is_named(tmp_path):
    made = task(tmp_path)
    for changes, message in (
        ({"training": None}, "needs a training configuration"),
        ({"dataset": None}, "needs a dataset"),
        ({"training": None, "settings": MatbenchSettings.of(modes=("fixed",))}, "ask for a fixed model"),
    ):
        with pytest.raises(SettingsError, match=message):
            run_fold(replace(made, **changes), tmp_path / "out")
    nameless = [replace(entry, mbid="", fold=None) for entry in made.entries]
    with pytest.raises(DataError, match="17 of 17 rows have no identifier"):
        run_fold(replace(made, entries=nameless), tmp_path / "out")
    with pytest.raises(DataError, match="is in fold 2"):
        run_fold(replace(made, entries=[e for e in made.entries if e.fold != 2]), tmp_path / "out")
    with pytest.raises(SettingsError, match="Did you mean 'fixed'"):
        MatbenchSettings.of(modes=("fixd",))
    assert MatbenchSettings.of(modes=("all",)).modes == ("fixed", "retrained", "corrected")


def test_a_backbone_that_does_not_tell_all_is_no_start(monkeypatch):
    config = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"backbone": "some"})})

    def backbone(**facts):
        card = type("Card", (), facts)()
        monkeypatch.setattr(foundation, "load_backbone", lambda name, trust_pickle: (None, card))

    backbone(trained_labels=("energy", "forces"), provenance={})
    refuse_seen_backbone(config, {"MgO"})  # a plain potential has seen no response
    for provenance in ({}, {"formulas": {"train": []}, "backbone": {"name": "other"}}):
        backbone(trained_labels=("polarizability",), provenance=provenance)
        with pytest.raises(SettingsError, match="does not say of which materials in all"):
            refuse_seen_backbone(config, {"MgO"})
