"""The leaderboard beside the own numbers, and results in Matbench's own form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from fieldflows.datasets.extxyz import open_text
from fieldflows.datasets.matbench import OFFICIAL_ROWS
from fieldflows.errors import DataError
from fieldflows.evaluation.matbench.scores import METRICS, fold_key, fold_of_mbids, score_folds
from fieldflows.schemas.matbench import MatbenchScore, PublishedScore

BENCHMARK = "matbench_v0.1"
TASK = "matbench_dielectric"
VERSION = "0.6"
"""Version of the result files of Matbench whose form is written."""


def leaderboard() -> list[PublishedScore]:
    """Return the published numbers that come with the package, on all rows of the task, best first."""
    text = files("fieldflows").joinpath("data/matbench/leaderboard.yaml").read_text(encoding="utf-8")
    items = [PublishedScore.model_validate(item) for item in yaml.safe_load(text)["entries"]]
    return sorted(items, key=lambda item: item.mae)


def read_predictions(path: str | Path) -> dict[str, dict[str, Any]]:
    """Return published predictions: name to fold to ``data`` (identifier to n) and ``scores``.

    Two forms are read: such a mapping of several predictors, and one result file of Matbench.

    Args:
        path: JSON, plain or compressed.

    Raises:
        DataError: If it is neither.
    """
    path = Path(path)
    try:
        with open_text(path) as handle:
            content = json.load(handle)
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}.", "Check that the file is complete.") from error
    if isinstance(content, dict) and isinstance(content.get("tasks"), dict):
        task = content["tasks"].get(TASK)
        name = str((content.get("user_metadata") or {}).get("algorithm", path.stem))
        content = {name: task.get("results")} if isinstance(task, dict) else None
    good = isinstance(content, dict) and all(
        isinstance(folds, dict)
        and folds
        and all(isinstance(item, dict) and isinstance(item.get("data"), dict) for item in folds.values())
        for folds in content.values()
    )
    if not good:
        raise DataError(
            f"{path} holds no predictions of {TASK}.",
            "Expected is name to fold_k to data, identifier to n; or a result file of Matbench.",
        )
    return dict(content)  # type: ignore[arg-type]


def flat_predictions(folds: Mapping[str, Any]) -> dict[str, float]:
    """Return identifier to n over all folds of one predictor."""
    return {name: float(value) for item in folds.values() for name, value in item["data"].items()}


def with_same_rows(
    board: list[PublishedScore], published: Mapping[str, Mapping[str, Any]], labels: Mapping[str, float]
) -> list[PublishedScore]:
    """Return the leaderboard with the published predictions scored on the rows at hand, where there are any.

    Args:
        board: The leaderboard.
        published: As :func:`read_predictions` gives them.
        labels: Identifier to n of the rows at hand.
    """
    result = []
    for item in board:
        same: MatbenchScore | None = None
        if item.name in published:
            predictions = flat_predictions(published[item.name])
            same = score_folds(labels, predictions) if set(labels) <= set(predictions) else None
        result.append(item.model_copy(update={"same_rows": same}))
    return result


def results_json(
    name: str,
    labels: Mapping[str, float],
    predictions: Mapping[str, float],
    parameters: Mapping[str, Mapping[str, Any]],
    notes: Mapping[str, Any],
) -> dict[str, Any]:
    """Return results in the form of Matbench's ``results.json``; its own package reads them if all rows are there.

    Args:
        name: Name of the algorithm.
        labels: Identifier to n.
        predictions: Identifier to predicted n.
        parameters: Fold to what is noteworthy about it, in JSON types.
        notes: What else to say, in JSON types.
    """
    found = score_folds(labels, predictions)
    fold, folds = fold_of_mbids(), {}
    for key, item in found.folds.items():
        rows = {mbid: float(predictions[mbid]) for mbid in sorted(labels) if fold_key(fold[mbid]) == key}
        scores = {metric: float(getattr(item, metric)) for metric in METRICS}
        folds[key] = {"data": rows, "parameters": dict(parameters.get(key, {})), "scores": scores}
    complete = len(labels) == OFFICIAL_ROWS
    content: dict[str, Any] = {
        "@module": "matbench.bench",
        "@class": "MatbenchBenchmark",
        "version": VERSION,
        "tasks": {
            TASK: {
                "@module": "matbench.task",
                "@class": "MatbenchTask",
                "benchmark_name": BENCHMARK,
                "dataset_name": TASK,
                "results": folds,
            }
        },
        "user_metadata": {"algorithm": name, "rows": len(labels), "all_rows": complete, **dict(notes)},
        "benchmark_name": BENCHMARK,
        "datestamp": f"{datetime.now(UTC):%Y.%m.%d %H:%M.%S}",
    }
    return {**content, "hash": content_hash(content)}


def content_hash(content: Mapping[str, Any]) -> str:
    """Return the hash that Matbench compares when it reads results: SHA-256 of the JSON text with sorted keys.

    Lists hash like the tuples that Matbench makes of them, because JSON writes both alike.
    """
    text = json.dumps(json.loads(json.dumps(content)), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
