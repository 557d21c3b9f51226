"""``fieldflows matbench``: refractive indices judged by the Matbench task, fold by fold."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fieldflows.cli.options import JsonOption, StoreOption

if TYPE_CHECKING:
    from fieldflows.schemas.matbench import MatbenchReport, MatbenchScore


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("matbench")(matbench)


def matbench(
    file: Annotated[
        Path | None,
        typer.Option("--file", help="matbench_dielectric.json.gz; that in your data folder by default."),
    ] = None,
    index: Annotated[
        Path | None, typer.Option("--index", help="For another file than the official one: CSV with row and mbid.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the official file into your data folder if it is not there.")
    ] = False,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The fixed model: name, path or sha256:HASH.")
    ] = "dielectric",
    mode: Annotated[
        list[str] | None,
        typer.Option(
            "--mode",
            help="fixed: a model as it is; retrained: one trained per fold without its materials; corrected: a head on "
            "top, fitted to the other folds; all. May be repeated.",
            show_default="fixed",
        ),
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option("--train", help="Training file for the models of the folds, as of `fieldflows train`."),
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option("--max-minutes", help="Wall time per fold in minutes, in place of run.max_minutes.")
    ] = None,
    cubic_rows: Annotated[
        bool,
        typer.Option("--cubic-rows", help="Train on the cubic rows of the other folds, too: their n is all of ε∞."),
    ] = False,
    training_data: Annotated[
        str | None,
        typer.Option(
            "--training-data",
            help="What the fixed model was trained on (folder, YAML file or digest): "
            "structures are compared with it, too.",
        ),
    ] = None,
    published: Annotated[
        Path | None, typer.Option("--published", help="File of published predictions, to be scored on the same rows.")
    ] = None,
    fold: Annotated[
        list[int] | None, typer.Option("--fold", help="Fold to judge, 0 to 4; may be repeated.", show_default="all")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of folds, models and report.")] = Path("matbench"),
    store: StoreOption = None,
    figures: Annotated[bool, typer.Option("--figures/--no-figures", help="Draw parity plots.")] = True,
    symmetry: Annotated[
        bool, typer.Option("--symmetry/--no-symmetry", help="Use the symmetry of crystals; faster, equal.")
    ] = True,
    worst: Annotated[int, typer.Option("--worst", help="Rows with the largest errors to list.")] = 20,
    dtype: Annotated[str, typer.Option("--dtype", help="float64 or float32.")] = "float64",
    device: Annotated[str, typer.Option("--device", help="Torch device of the evaluations.")] = "cpu",
    head: Annotated[
        str | None, typer.Option("--head", help="Head of a fixed model with several; the first by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Judge refractive indices by the Matbench task matbench_dielectric, fold by fold.

    A fixed model is labeled clean, leaky or unknown by what it was trained on.  A command that was stopped goes on
    when it is run again with the same --out.
    """
    from jobflow import run_locally

    from fieldflows.cli.output import print_json
    from fieldflows.evaluation.matbench.files import official_file
    from fieldflows.store import describe_store, get_store, require_jobflow

    require_jobflow()
    from fieldflows.flows.matbench import MatbenchDielectricMaker

    place = official_file(download) if file is None else file
    maker = MatbenchDielectricMaker(
        model=model,
        modes=tuple(mode or ("fixed",)),
        training=None if train is None else _training(train, max_minutes),
        training_data=training_data,
        published=None if published is None else str(published),
        work_directory=str(out),
        settings={"cubic_rows": cubic_rows, "symmetry": symmetry, "worst": worst, "figures": figures},
        dtype=dtype,
        device=device,
        head=head,
        **({"folds": tuple(fold)} if fold else {}),  # type: ignore[arg-type]
    )
    flow = maker.make(place, index)
    job_store = get_store(store)
    typer.echo(f"Folds, models and report: {out}; run the same again if it is stopped.", err=True)
    try:
        with warnings.catch_warnings(), _told():
            warnings.simplefilter("ignore")
            responses = run_locally(flow, log=False, store=job_store, ensure_success=True, raise_immediately=True)
    finally:
        job_store.close()
    report: MatbenchReport = responses[flow.jobs[-1].uuid][1].output
    if as_json:
        print_json(report.to_json_dict())
        return
    _show(report)
    typer.echo(f"Stored in {describe_store(store)}.", err=True)


@contextmanager
def _told() -> Iterator[None]:
    """Show on standard error what the folds are at."""
    logger = logging.getLogger("fieldflows.evaluation.matbench")
    handler, before = logging.StreamHandler(), logger.level
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _training(path: Path, max_minutes: float | None) -> Any:
    """Return the training configuration, with another limit of time if one is given.

    Raises:
        SettingsError: If it is wrong.
    """
    from fieldflows.errors import SettingsError
    from fieldflows.training.config import TrainingConfig

    config = TrainingConfig.from_yaml(path)
    if max_minutes is None:
        return config
    if max_minutes <= 0:
        raise SettingsError(f"--max-minutes must be positive, found {max_minutes:g}.")
    return config.model_copy(update={"run": config.run.model_copy(update={"max_minutes": max_minutes})})


def _show(report: MatbenchReport) -> None:
    from fieldflows.cli.output import console, table

    output = console()
    title = f"matbench_dielectric, {report.rows} rows; mean ± standard deviation over the folds"
    columns = ["predictor", "verdict", "MAE", "RMSE", "MAPE", "max error", "median", "MAE, n ≤ 10", "not seen: rows",
               "MAE"]  # fmt: skip
    rows = []
    for item in report.methods:
        clean = item.clean_rows
        rows.append([item.name, item.verdict, *_cells(item.all_rows), _mae(item.moderate),
                     "–" if clean is None else str(clean.rows), _mae(clean)])  # fmt: skip
    rows.append(["dummy", "clean", *_cells(report.dummy), "–", "–", "–"])
    output.print(table(title, columns, rows, left=2))
    rows = [
        [item.name, f"{item.mae:.4g}", _mae(item.same_rows), item.note if item.fold_honest else f"leaky: {item.note}"]
        for item in report.leaderboard
    ]
    columns = ["published", "MAE, 4764 rows", f"MAE on these {report.rows} rows", "remark"]
    output.print(table("Leaderboard", columns, rows))
    for flag in report.flags:
        output.print(f"{flag.code}: {flag.message}", markup=False)
    output.print(f"Report: {report.directory}", markup=False)


def _cells(found: MatbenchScore) -> list[str]:
    values = found.over_folds
    texts = [f"{values[name].mean:.3f} ± {values[name].std:.3f}" for name in ("mae", "rmse", "mape", "max_error")]
    return [*texts, f"{found.median_error:.3f}"]


def _mae(found: MatbenchScore | None) -> str:
    if found is None:
        return "–"
    values = found.over_folds["mae"]
    return f"{values.mean:.3f} ± {values.std:.3f}"
