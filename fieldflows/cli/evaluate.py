"""``fieldflows evaluate``: a model against the labels of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fieldflows.cli.options import JsonOption

if TYPE_CHECKING:
    from fieldflows.datasets.dataset import Dataset
    from fieldflows.training.assess import Assessment


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("evaluate")(evaluate)


def evaluate(
    model: Annotated[str, typer.Argument(help="Model: bundled name or path of a checkpoint.")],
    dataset: Annotated[Path, typer.Argument(help="Directory of a built dataset, or its YAML file.")],
    split: Annotated[str, typer.Option("--split", help="Subset: train, valid, test or all.")] = "test",
    label: Annotated[
        list[str] | None, typer.Option("--label", help="Observable to compare; those trained on by default.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for metrics.json and parity plots.")] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float64 or float32.")] = "float64",
    device: Annotated[str, typer.Option("--device", help="Torch device.")] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Compare a model with the labels of a dataset, beside medians of its training frames."""
    from fieldflows.backends.base import load_model
    from fieldflows.cli.output import console, print_json
    from fieldflows.errors import InputError
    from fieldflows.observables import check_observables
    from fieldflows.training.assess import assess

    loaded = load_model(model, dtype=dtype, device=device)
    data = _load(dataset)
    frames = data.frames if split == "all" else data.subset(split)
    if not frames:
        raise InputError(f"The subset {split!r} of {dataset} is empty.", "Choose another --split.")
    with _bar(console(error=True), len(frames)) as advance:
        found = assess(
            loaded, frames, data.subset("train"), check_observables(label) if label else None, progress=advance
        )
    document = {
        "model": loaded.info.name,
        "model_sha256": loaded.info.sha256,
        "dataset_digest": data.digest,
        "split": split,
        "frames": len(found.frames),
        "materials": len({frame.material for frame in found.frames}),
        "failures": [{"frame": name, "reason": reason} for name, reason in found.failures],
        "metrics": found.metrics,
        "trivial_predictor": found.trivial,
    }
    if out is not None:
        _write(out, document, found)
    if as_json:
        print_json(document)
    else:
        _show(document)


def _load(path: Path) -> Dataset:
    from fieldflows.datasets.config import DatasetConfig
    from fieldflows.datasets.dataset import Dataset, build_dataset

    return build_dataset(DatasetConfig.from_yaml(path)) if path.is_file() else Dataset.load(path)


def _bar(console: Any, total: int) -> Any:
    from contextlib import contextmanager

    from rich.progress import Progress

    @contextmanager
    def bar():  # type: ignore[no-untyped-def]
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("evaluating", total=total)
            yield lambda done, total: progress.update(task, completed=done, total=total)

    return bar()


def _write(out: Path, document: dict[str, Any], found: Assessment) -> None:
    from fieldflows.errors import InputError
    from fieldflows.training.figures import parity
    from fieldflows.training.metrics import collect
    from fieldflows.training.report import write_json

    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "metrics.json", document)
        for quantity, reference, predicted in collect(found.frames, found.predictions).values():
            series = {document["split"]: (reference, predicted)}
            parity(series, quantity.symbol, quantity.unit, out / f"parity_{quantity.name}.png")
    except OSError as error:
        raise InputError(f"Cannot write to {out}: {error.strerror}.", "Choose another --out.") from error


def _show(document: dict[str, Any]) -> None:
    from fieldflows.cli.output import console, table
    from fieldflows.training.metrics import QUANTITIES

    rows = []
    for quantity in QUANTITIES:
        if quantity.name not in document["metrics"]:
            continue
        own = document["metrics"][quantity.name]
        trivial = document["trivial_predictor"].get(quantity.name)
        rows.append(
            [
                quantity.symbol,
                quantity.unit,
                f"{own['mae']:.4g}",
                f"{own['rmse']:.4g}",
                "–" if own["r2"] is None else f"{own['r2']:.3f}",
                "–" if trivial is None else f"{trivial['mae']:.4g}",
            ]
        )
    title = (
        f"{document['model']} on {document['frames']} frames ({document['materials']} materials), subset "
        f"{document['split']}"
    )
    output = console()
    output.print(table(title, ["quantity", "unit", "MAE", "RMSE", "R²", "MAE of medians"], rows, left=2))
    for failure in document["failures"]:
        output.print(f"not evaluated: {failure['frame']}: {failure['reason']}", markup=False)
