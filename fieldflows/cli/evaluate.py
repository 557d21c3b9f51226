"""``fieldflows evaluate``: a model against the labels of a dataset."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fieldflows.cli.options import JsonOption

if TYPE_CHECKING:
    from fieldflows.backends.base import FieldModel
    from fieldflows.evaluation.predict import Progress
    from fieldflows.schemas.evaluation import EvaluationDocument, QuantityEvaluation

EXIT_VIOLATED = 3
"""Everything was evaluated, but the model violates a physical identity."""


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("evaluate")(evaluate)


def evaluate(
    model: Annotated[str, typer.Argument(help="Model: bundled name, path of a checkpoint, or sha256:HASH.")],
    dataset: Annotated[Path, typer.Argument(help="Directory of a built dataset, or its YAML file.")],
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="Subset: train, valid, test or all; may be repeated.", show_default="test"),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", help="Observable to compare; those trained on by default.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for report, metrics.json, tables and figures.")
    ] = None,
    figures: Annotated[bool, typer.Option("--figures/--no-figures", help="Draw figures into that folder.")] = True,
    identities: Annotated[
        int, typer.Option("--identities", help="Frames on which physical identities are tried; 0 for none.")
    ] = 3,
    forest: Annotated[
        str, typer.Option("--forest", help="Random forest beside ε∞ and n: auto (if installed), on or off.")
    ] = "auto",
    outliers: Annotated[int, typer.Option("--outliers", help="Worst frames listed per quantity and subset.")] = 10,
    head: Annotated[
        str | None,
        typer.Option("--head", help="Head of a model with several; by default that which a frame names, or the first."),
    ] = None,
    symmetry: Annotated[
        bool, typer.Option("--symmetry/--no-symmetry", help="Use the symmetry of crystals; faster, equal.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the forest and of the identities.")] = 0,
    dtype: Annotated[str, typer.Option("--dtype", help="float64 or float32.")] = "float64",
    device: Annotated[str, typer.Option("--device", help="Torch device.")] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Compare a model with the labels of a dataset, beside what can be said without it.

    Exit code 3: all was evaluated, but the model violates a physical identity.
    """
    from fieldflows.backends.base import load_model
    from fieldflows.cli.output import console, print_json
    from fieldflows.evaluation.run import evaluate as run
    from fieldflows.evaluation.run import open_dataset
    from fieldflows.evaluation.settings import EvaluationSettings

    settings = EvaluationSettings.of(
        splits=tuple(split or ("test",)),
        labels=tuple(label) if label else None,
        identities=identities,
        forest=forest,
        symmetry=symmetry,
        outliers=outliers,
        seed=seed,
    )
    loaded = load_model(model, head=head, dtype=dtype, device=device)
    open_head = None if head else partial(_open_head, model, dtype, device)
    data = open_dataset(dataset)
    with _bar(console(error=True)) as progress:
        document = run(loaded, data, settings, out, figures, progress, open_head).document
    if as_json:
        print_json(document.to_json_dict())
    else:
        _show(document)
    if not document.obeys_identities:
        raise typer.Exit(EXIT_VIOLATED)


def _open_head(name: str, dtype: str, device: str, head: str) -> FieldModel:
    from fieldflows.backends.base import load_model

    return load_model(name, head=head, dtype=dtype, device=device)


@contextmanager
def _bar(console: Any) -> Iterator[Progress]:
    from rich.progress import Progress

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("evaluating", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _show(document: EvaluationDocument) -> None:
    from fieldflows.cli.output import console, table

    output = console()
    columns = ["quantity", "unit", "values", "spread", "MAE", "RMSE", "R²", "MAE of baselines"]
    for subset in (*document.subsets.values(), *document.heads):
        where = f"subset {subset.split}" + (f", head {subset.head}" if subset.head else "")
        title = f"{document.model.name} on {subset.frames} frames ({subset.materials} materials), {where}"
        output.print(table(title, columns, [_row(item) for item in subset.quantities.values()], left=2))
    tried = [check for check in document.identities if check.passed is not None]
    if tried:
        rows = [
            [check.formula, check.unit, _number(check.residual), _number(check.relative), f"{check.tolerance:g}",
             "holds" if check.passed else "VIOLATED"]
            for check in tried
        ]  # fmt: skip
        columns = ["identity", "unit", "largest deviation", "relative", "allowed", "verdict"]
        output.print(table(f"Identities, {max(check.frames for check in tried)} displaced frames", columns, rows, 2))
    for flag in document.flags:
        output.print(f"{flag.code}: {flag.message}", markup=False)
    for problem in document.problems[:MAX_PROBLEMS]:
        output.print(f"not evaluated: {problem.frame}: {problem.reason}", markup=False)
    if len(document.problems) > MAX_PROBLEMS:
        output.print(f"... and {len(document.problems) - MAX_PROBLEMS} more (--json, --out)")
    if document.directory:
        output.print(f"Report: {document.directory}", markup=False)


MAX_PROBLEMS = 10
"""Frames that were left out and are named on the screen."""


def _row(item: QuantityEvaluation) -> list[str]:
    r2 = "–" if item.model.r2 is None else f"{item.model.r2:.3f}"
    baselines = ", ".join(
        f"{name} {values.mae:.3g}" + (f" (×{values.mae / item.model.mae:.2g})" if item.model.mae else "")
        for name, values in item.baselines.items()
    )
    return [
        item.symbol, item.unit, str(item.count), f"{item.label_spread:.3g}", f"{item.model.mae:.4g}",
        f"{item.model.rmse:.4g}", r2, baselines or "–",
    ]  # fmt: skip


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"
