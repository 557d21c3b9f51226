"""``fieldflows demo``: well-known crystals with the bundled model, next to published values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fieldflows.cli.options import ModelOption, StoreOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from fieldflows.backends.base import ModelInfo
    from fieldflows.demo.comparison import Comparison

WIDTH = 118
"""Width of the table with published values beside those of the model, and of output that goes to no terminal."""

OUT = Path("demo-output")

STORE_NAME = "store.db"
FIGURE_NAME = "parity.png"


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("demo")(demo)


def demo(
    model: ModelOption = "dielectric",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the store and the figure.")] = Path(
        "demo-output"
    ),
    store: StoreOption = None,
) -> None:
    """Screen well-known crystals and show the results next to published ones.

    Documents go to a store in the output folder, unless --store names another.  What is stored already is not
    computed again.
    """
    from rich.console import Console

    from fieldflows.backends.base import load_model
    from fieldflows.demo.comparison import charge_pairs, compare, index_pairs, score
    from fieldflows.demo.crystals import load_crystals, load_sources
    from fieldflows.demo.figure import draw
    from fieldflows.demo.run import screen_crystals
    from fieldflows.store import describe_store, get_store

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    with console.status("loading the model"):
        info = load_model(model).info
        place = str(out / STORE_NAME) if store is None else store
        if store is None:
            _make_folder(out)
        job_store = get_store(place)
    crystals = load_crystals()
    with _progress(console) as bar:
        task = bar.add_task(f"{len(crystals)} crystals", total=len(crystals))
        documents, failures = screen_crystals(crystals, model, job_store, lambda _: bar.advance(task))
    comparisons = compare(crystals, documents)

    citations: dict[str, int] = {}
    console.print(_table(comparisons, info, citations, wide=console.width >= WIDTH))
    for key, number in citations.items():
        console.print(f"\\[{number}] {load_sources()[key]}", highlight=False, style="dim")
    console.print()
    if any(mark(item, info) for item in comparisons):
        console.print("* crystals of this formula were among the model's training or selection data", highlight=False)
    for failure in failures:
        console.print(f"[red]{failure.material_id}[/red] {failure.stage}: {failure.message}", highlight=False)
    for name, pairs, unit in (("n", index_pairs(comparisons), ""), ("Z*", charge_pairs(comparisons), " e")):
        result = score(pairs, unit)
        console.print(
            f"{name}: mean absolute difference {result.mae:.3f}{unit}, mean difference {result.bias:+.3f}{unit} "
            f"({result.count} values)",
            highlight=False,
        )
    without = [item.crystal.label for item in comparisons if item.refractive_indices is None]
    if without:
        console.print(f"no n for {', '.join(without)}: the model gives an ε∞ below 1 there", highlight=False)
    console.print(_why_electronic(info), highlight=False)
    if comparisons:
        figure = draw(comparisons, out / FIGURE_NAME, info.name)
        console.print(f"figure: {figure}", highlight=False)
    console.print(f"store:  {describe_store(place)}", highlight=False)
    console.print(f'try:    fieldflows query "n > 2" --store {place}', highlight=False)
    if failures:
        raise typer.Exit(1)


def _make_folder(path: Path) -> None:
    from fieldflows.errors import StoreError

    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"The folder {path} cannot be made: {error.strerror}.", "Name another one with --out."
        ) from error


def _progress(console: Console) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


def _table(comparisons: Sequence[Comparison], info: ModelInfo, citations: dict[str, int], wide: bool) -> Table:
    """Return the table; where the terminal is narrow, published values stand below those of the model."""
    from rich import box
    from rich.table import Table

    title = f"Electronic response: model {info.name!r} {'next to' if wide else 'above'} published values"
    table = Table(title=title, box=box.SIMPLE_HEAD, header_style="bold", collapse_padding=True, pad_edge=False)
    headers = ("n", "ε∞ principal", "Z* diagonal (e)")
    table.add_column("crystal", no_wrap=True)
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
        if wide:
            table.add_column("publ.", justify="right", no_wrap=True, style="dim")
    table.add_column("flags", min_width=10)
    table.add_column("source", no_wrap=True)
    for item in comparisons:
        pairs = _cells(item)
        cells = [cell for pair in pairs for cell in pair] if wide else [f"{a}\n[dim]{b}[/dim]" for a, b in pairs]
        keys = dict.fromkeys([item.crystal.optics.source, *(charge.source for charge in item.crystal.charges)])
        numbers = ", ".join(str(citations.setdefault(key, len(citations) + 1)) for key in keys)
        flags = ", ".join(flag.code.replace("_", " ") for flag in item.document.flags) or "–"
        table.add_row(item.crystal.label + mark(item, info), *cells, flags, f"\\[{numbers}]")
    return table


def mark(item: Comparison, info: ModelInfo) -> str:
    """Return a star if the model has seen crystals of that formula in training or selection."""
    seen = info.provenance.get("formulas", {})
    return "*" if any(item.document.formula_pretty in formulas for formulas in seen.values()) else ""


def _cells(item: Comparison) -> list[tuple[str, str]]:
    """Return (model, published) of n, of the principal permittivities and of the range of Z*."""
    import numpy as np

    document, optics = item.document, item.crystal.optics
    diagonal = np.diagonal(np.array(document.born_effective_charges), axis1=1, axis2=2)
    published = item.published_range
    return [
        ("–" if document.n is None else f"{document.n:.2f}", f"{optics.refractive_index:.2f}"),
        (_principal(document.epsilon_electronic_principal), _principal(optics.principal)),
        (_range(diagonal.min(), diagonal.max()), "–" if published is None else _range(*published)),
    ]


def _principal(values: tuple[float, float, float]) -> str:
    """Return the principal values, or one if they agree to the digits shown."""
    texts = [f"{value:.2f}" for value in values]
    return texts[0] if len(set(texts)) == 1 else " ".join(texts)


def _range(low: float, high: float) -> str:
    low, high = (0.0 if abs(value) < 0.005 else value for value in (low, high))
    return f"{low:.2f} to {high:.2f}" if low != high else f"{low:.2f}"


def _why_electronic(info: ModelInfo) -> str:
    if info.has_energy_surface:
        return (
            "Electronic quantities only: the demonstration asks for nothing else; `fieldflows screen` gives ε_ion too."
        )
    labels = ", ".join(info.trained_labels).replace("_", " ")
    return (
        f"Electronic quantities only: {info.name!r} was trained on {labels}, not on energies and forces. "
        "Phonons and ε_ion need a second model that was (`fieldflows screen --hessian-model`)."
    )
