"""Metrics, folds, the leaderboard, and results in Matbench's own form."""

from __future__ import annotations

import csv
import hashlib
import json
import lzma
import os
from pathlib import Path

import numpy as np
import pytest

from fieldflows.datasets.matbench import OFFICIAL_ROWS, official_folds, official_mbid
from fieldflows.errors import DataError
from fieldflows.evaluation.matbench.published import (
    content_hash,
    flat_predictions,
    leaderboard,
    read_predictions,
    results_json,
    with_same_rows,
)
from fieldflows.evaluation.matbench.scores import METRICS, dummy_predictions, score, score_folds


@pytest.fixture(scope="module")
def published() -> tuple[dict[str, float], dict]:
    """Targets of all rows, and published predictions."""
    folder = os.environ.get("FIELDFLOWS_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FIELDFLOWS_DATA is not set: the real data are not at hand")
    with lzma.open(Path(folder) / "matbench_dielectric_targets.csv.xz", "rt") as handle:
        labels = {row["mbid"]: float(row["n"]) for row in csv.DictReader(handle)}
    return labels, read_predictions(Path(folder) / "matbench_dielectric_published_predictions.json.xz")


def near(value: float):
    """Within 1e-6, relative above 1: the file holds predictions with seven digits, which a max_error shows."""
    return pytest.approx(value, abs=1e-6, rel=1e-6)


def made_rows(seed: int = 0) -> tuple[dict[str, float], dict[str, float]]:
    rng = np.random.default_rng(seed)
    names = [official_mbid(int(row)) for row in rng.permutation(OFFICIAL_ROWS)[:60]]
    labels = dict(zip(names, rng.uniform(1.2, 6.0, 60).tolist(), strict=True))
    return labels, {name: n + rng.normal() for name, n in labels.items()}


def test_metrics_by_hand():
    found = score([2.0, 4.0, 5.0], [2.5, 3.0, 5.0])
    assert found.rows == 3
    assert found.mae == pytest.approx(0.5)
    assert found.rmse == pytest.approx(np.sqrt(1.25 / 3))
    assert found.mape == pytest.approx((0.25 + 0.25) / 3)
    assert found.max_error == 1.0


def test_metrics_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    labels, predictions = (np.array(list(values.values())) for values in made_rows())
    found = score(labels, predictions)
    assert found.mae == pytest.approx(metrics.mean_absolute_error(labels, predictions), abs=1e-14)
    assert found.rmse == pytest.approx(metrics.root_mean_squared_error(labels, predictions), abs=1e-14)
    assert found.mape == pytest.approx(metrics.mean_absolute_percentage_error(labels, predictions), abs=1e-14)
    assert found.max_error == pytest.approx(metrics.max_error(labels, predictions), abs=1e-14)


@pytest.mark.parametrize(("labels", "values"), [([], []), ([1.0], [1.0, 2.0]), ([2.0], [np.nan])])
def test_what_cannot_be_scored_is_refused(labels, values):
    with pytest.raises(DataError, match="as many finite predictions"):
        score(labels, values)


def test_the_fold_follows_from_the_identifier_on_any_subset():
    labels, predictions = made_rows()
    folds = official_folds()
    whole = score_folds(labels, predictions)
    reverse = dict(reversed(list(labels.items())))
    assert score_folds(reverse, predictions).folds.keys() == whole.folds.keys()
    for fold in range(5):
        names = [name for name in labels if folds[int(name[-4:]) - 1] == fold]
        expected = score([labels[name] for name in names], [predictions[name] for name in names])
        assert whole.folds[f"fold_{fold}"] == expected
        assert score_folds({name: labels[name] for name in names}, predictions).folds == {f"fold_{fold}": expected}
    maes = [item.mae for item in whole.folds.values()]
    assert whole.over_folds["mae"].mean == pytest.approx(np.mean(maes))
    assert whole.over_folds["mae"].std == pytest.approx(np.std(maes))
    assert (whole.over_folds["mae"].min, whole.over_folds["mae"].max) == (min(maes), max(maes))


def test_foreign_and_missing_rows_are_named():
    labels, predictions = made_rows()
    with pytest.raises(DataError, match="'mp-1' is no row"):
        score_folds({"mp-1": 2.0}, {"mp-1": 2.0})
    name = next(iter(labels))
    with pytest.raises(DataError, match=f"no prediction {name}"):
        score_folds(labels, {key: n for key, n in predictions.items() if key != name})


def test_the_dummy_never_sees_its_own_fold():
    labels, _ = made_rows()
    folds = official_folds()
    before = dummy_predictions(labels)
    name = next(iter(labels))
    after = dummy_predictions({**labels, name: 999.0})
    fold = folds[int(name[-4:]) - 1]
    for other in labels:
        same = folds[int(other[-4:]) - 1] == fold
        assert (after[other] == before[other]) == same


def test_results_come_back_and_have_the_form_of_matbench(tmp_path):
    labels, predictions = made_rows()
    content = results_json("mine", labels, predictions, {"fold_0": {"head": None}}, {"mode": "fixed"})
    # keys that matbench requires when it reads a file, and no others
    assert set(content) == {
        "@module", "@class", "version", "benchmark_name", "tasks", "user_metadata", "datestamp", "hash",
    }  # fmt: skip
    task = content["tasks"]["matbench_dielectric"]
    assert set(task) == {"@module", "@class", "benchmark_name", "dataset_name", "results"}
    assert content["benchmark_name"] == task["benchmark_name"] == "matbench_v0.1"
    for fold in task["results"].values():
        assert set(fold) == {"data", "parameters", "scores"}
        assert set(fold["scores"]) == set(METRICS)
        assert all(isinstance(value, float) for value in (*fold["data"].values(), *fold["scores"].values()))
    assert task["results"]["fold_0"]["parameters"] == {"head": None}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    read = json.loads(path.read_text())
    stated = read.pop("hash")

    def in_order(value):  # matbench sorts the keys of every dictionary, then hashes the JSON text
        return {k: in_order(v) for k, v in sorted(value.items())} if isinstance(value, dict) else value

    assert stated == hashlib.sha256(json.dumps(in_order(read)).encode("utf-8")).hexdigest()
    assert flat_predictions(read_predictions(path)["mine"]) == predictions


def test_the_hash_sees_a_changed_number():
    labels, predictions = made_rows()
    content = results_json("mine", labels, predictions, {}, {})
    stated = content.pop("hash")
    assert content_hash(content) == stated
    rows = content["tasks"]["matbench_dielectric"]["results"]["fold_0"]["data"]
    rows[next(iter(rows))] += 1e-9
    assert content_hash(content) != stated


@pytest.mark.parametrize(
    "content", ["[1]", '{"a": 1}', '{"tasks": {}}', '{"a": {"fold_0": {"scores": {}}}}', "nothing"]
)
def test_other_files_of_predictions_are_refused(tmp_path, content):
    path = tmp_path / "predictions.json"
    path.write_text(content)
    with pytest.raises(DataError, match="predictions"):
        read_predictions(path)


def test_the_leaderboard_is_in_order_and_marks_what_is_not_honest():
    board = leaderboard()
    assert [item.mae for item in board] == sorted(item.mae for item in board)
    assert {item.name: item.mae for item in board if item.name in ("MODNet", "coGN", "MACE-Field-MP-0")} == {
        "MODNet": 0.2711, "coGN": 0.3088, "MACE-Field-MP-0": 0.287,
    }  # fmt: skip
    assert [item.name for item in board if not item.fold_honest] == ["MACE-Field-MP-0"]


def test_published_predictions_give_their_published_scores(published):
    labels, models = published
    assert len(models) == 6
    for folds in models.values():
        found = score_folds(labels, flat_predictions(folds))
        for key, item in folds.items():
            for metric in METRICS:
                assert getattr(found.folds[key], metric) == near(item["scores"][metric])


def test_the_leaderboard_is_what_the_predictions_say(published):
    labels, models = published
    board = {item.name: item for item in with_same_rows(leaderboard(), models, labels)}
    assert set(models) <= set(board)
    for name in models:
        item = board[name]
        found = item.same_rows
        assert found is not None
        assert found.rows == OFFICIAL_ROWS
        for metric in METRICS:
            assert getattr(item, metric) == near(found.over_folds[metric].mean)
        assert item.mae_std == pytest.approx(found.over_folds["mae"].std, abs=1e-6)


def test_the_dummy_is_the_published_dummy(published):
    labels, models = published
    own, theirs = dummy_predictions(labels), flat_predictions(models["dummy"])
    assert max(abs(own[name] - theirs[name]) for name in labels) < 1e-6
    found = score_folds(labels, own)
    for key, item in models["dummy"].items():
        for metric in METRICS:
            assert getattr(found.folds[key], metric) == near(item["scores"][metric])
