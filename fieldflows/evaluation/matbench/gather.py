"""From the documents of the folds to the report: scores, verdicts, the leaderboard beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fieldflows import __version__
from fieldflows.datasets.matbench import OFFICIAL_ROWS
from fieldflows.errors import DataError
from fieldflows.evaluation.matbench.published import leaderboard, with_same_rows
from fieldflows.evaluation.matbench.scores import dummy_predictions, score_folds
from fieldflows.evaluation.matbench.settings import MODES
from fieldflows.evaluation.matbench.worst import worst_rows
from fieldflows.schemas.common import Flag, make_flag
from fieldflows.schemas.matbench import (
    FoldResult,
    Leakage,
    MatbenchFoldDocument,
    MatbenchReport,
    MatbenchScore,
    MethodReport,
)

if TYPE_CHECKING:
    from fieldflows.datasets.matbench import MatbenchEntry

MODERATE = 10.0
"""Labels up to this n are scored on their own: a handful of larger ones decides the score of all."""


def gather(
    entries: Sequence[MatbenchEntry],
    folds: Sequence[MatbenchFoldDocument],
    published: Mapping[str, Mapping[str, Any]] | None = None,
    worst: int = 20,
) -> MatbenchReport:
    """Return the report over the folds that were done.

    Args:
        entries: All rows at hand.
        folds: Documents of the folds.
        published: Published predictions, for their scores on the same rows.
        worst: Rows with the largest errors to list per predictor.

    Raises:
        DataError: If there are no folds, or they come from different files.
    """
    files = sorted({document.file_sha256 for document in folds})
    if len(files) != 1:
        raise DataError(f"The folds of one report come from one file, found {len(files)}.", "Run the folds again.")
    done = {document.fold for document in folds}
    rows = [entry for entry in entries if entry.fold in done]
    labels = {entry.mbid: entry.n for entry in rows}
    means = dummy_predictions({entry.mbid: entry.n for entry in entries})
    methods = []
    for mode in MODES:
        results = [item for document in folds for item in document.results if item.mode == mode]
        if results:
            methods.append(_method(rows, labels, results, worst))
    return MatbenchReport(
        file_sha256=files[0],
        rows=len(rows),
        complete=len(rows) == OFFICIAL_ROWS,
        methods=tuple(methods),
        dummy=score_folds(labels, means),
        leaderboard=tuple(with_same_rows(leaderboard(), published or {}, labels)),
        flags=tuple(_flags(rows, done, methods, folds)),
        code_version=__version__,
    )


def predictions_of(folds: Sequence[MatbenchFoldDocument], mode: str) -> dict[str, float]:
    """Return identifier to predicted n of a mode over all folds."""
    found: dict[str, float] = {}
    for document in folds:
        for item in document.results:
            if item.mode == mode:
                found.update(item.predictions)
    return found


def _method(
    rows: Sequence[MatbenchEntry], labels: Mapping[str, float], results: Sequence[FoldResult], worst: int
) -> MethodReport:
    predictions = {name: n for item in results for name, n in item.predictions.items()}
    verdict = _verdict(results)
    replaced = tuple(row for item in results for row in item.replaced)
    told = verdict != "unknown"
    formulas = {name for item in results for name in item.seen.by_formula}
    known = [item.seen.by_structure for item in results]
    structures = None if any(item is None for item in known) else {name for item in known for name in item or ()}
    clean = {name: n for name, n in labels.items() if name not in formulas | (structures or set())}
    others = None if structures is None else {name: n for name, n in labels.items() if name not in structures}
    return MethodReport(
        name=_name(results),
        mode=results[0].mode,
        verdict=verdict,
        fold_honest=verdict == "clean",
        reason=" ".join(dict.fromkeys(item.seen.reason for item in results)) if verdict == "unknown" else _why(results),
        all_rows=score_folds(labels, predictions),
        moderate=score_folds({name: n for name, n in labels.items() if n <= MODERATE}, predictions),
        clean_rows=_part(clean, predictions) if verdict == "leaky" else None,
        other_structures=None if others is None or verdict == "clean" else _part(others, predictions),
        seen_formulas=len(formulas) if told else None,
        seen_structures=None if structures is None else len(structures),
        replaced=replaced,
        worst=tuple(worst_rows(rows, predictions, {row.mbid for row in replaced}, worst)),
    )


def _part(labels: Mapping[str, float], predictions: Mapping[str, float]) -> MatbenchScore | None:
    return score_folds(labels, predictions) if labels else None


def _verdict(results: Sequence[FoldResult]) -> Leakage:
    found = {item.seen.verdict for item in results}
    return "leaky" if "leaky" in found else "unknown" if "unknown" in found else "clean"


def _why(results: Sequence[FoldResult]) -> str:
    judged = sum(len(item.predictions) for item in results)
    if results[0].training is not None:
        frames = [item.training.removed_frames for item in results if item.training is not None]
        return (
            f"Per fold a model without the crystals of the fold's formulas ({min(frames)} to {max(frames)} taken out)."
        )
    seen = sum(len(item.seen.by_formula) for item in results)
    text = f"{seen} of {judged} rows are of formulas that the model was trained on or selected by"
    known = [item.seen.by_structure for item in results]
    if all(item is not None for item in known):
        text += f", {sum(len(item or ()) for item in known)} of crystals that it was"
    return text + "."


def _name(results: Sequence[FoldResult]) -> str:
    first = results[0]
    base = first.model.name + (", trained per fold" if first.training is not None else "")
    return base + (" + head" if first.mode == "corrected" else "")


def _flags(
    rows: Sequence[MatbenchEntry],
    done: set[int],
    methods: Sequence[MethodReport],
    folds: Sequence[MatbenchFoldDocument],
) -> list[Flag]:
    flags = []
    if len(rows) != OFFICIAL_ROWS:
        flags.append(
            make_flag(
                "not_all_rows",
                f"{len(rows)} of the {OFFICIAL_ROWS} rows of the task, folds {', '.join(map(str, sorted(done)))}: no "
                "score here stands beside a published one; compare with published predictions on the same rows.",
                len(rows),
                OFFICIAL_ROWS,
            )
        )
    for method in methods:
        if method.verdict == "leaky":
            flags.append(make_flag("leaky", f"{method.name} has seen what it is judged by: {method.reason}"))
        if method.verdict == "unknown":
            flags.append(make_flag("unknown_training", f"{method.name} counts as leaky: {method.reason}"))
        if method.replaced:
            flags.append(
                make_flag(
                    "replaced",
                    f"{method.name} gives no number for {len(method.replaced)} of {len(rows)} rows: the mean of the "
                    f"other folds stands there. {method.replaced[0].mbid}: {method.replaced[0].reason}",
                    len(method.replaced),
                    0,
                )
            )
    none = [
        document.fold
        for document in folds
        for item in document.results
        if item.head is not None and item.head.kind == "none"
    ]
    if none:
        flags.append(make_flag("no_head", f"No head was fitted in the folds {', '.join(map(str, none))}."))
    return flags
