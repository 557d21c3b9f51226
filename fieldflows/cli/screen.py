"""``fieldflows screen``: crystals in, dielectric documents out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fieldflows.cli import output
from fieldflows.cli.options import JsonOption, ModelOption, StoreOption
from fieldflows.errors import InputError, SettingsError

if TYPE_CHECKING:
    from fieldflows.backends.base import ModelInfo
    from fieldflows.store import require_jobflow

    require_jobflow()
    from fieldflows.flows.screening import DielectricMaker
    from fieldflows.inputs import InputStructure
    from fieldflows.schemas.failure import FailureDocument

MANY_FILES = 50
"""From how many files on a progress bar is shown while they are read."""

EXIT_SOME_FAILED, EXIT_ALL_FAILED, EXIT_INTERRUPTED = 1, 2, 130


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("screen")(screen)


def screen(
    files: Annotated[
        list[str], typer.Argument(metavar="FILES...", help="CIF, POSCAR, extended XYZ, JSON or XSF files.")
    ],
    model: ModelOption = "dielectric",
    hessian_model: Annotated[
        str | None,
        typer.Option("--hessian-model", metavar="NAME", help="Separate model of forces and Hessian; it also relaxes."),
    ] = None,
    ionic: Annotated[
        bool | None,
        typer.Option(
            "--ionic/--no-ionic", help="Compute modes and ε_ion; by default if a model can.", show_default=False
        ),
    ] = None,
    relax: Annotated[bool, typer.Option("--relax", help="Relax atoms and cell first.")] = False,
    symmetry: Annotated[
        bool,
        typer.Option(
            "--symmetry/--no-symmetry",
            help="Use the symmetry of each crystal and its primitive cell, or compute every cell as given and in full.",
        ),
    ] = True,
    store: StoreOption = None,
    band_gap: Annotated[
        float | None,
        typer.Option(
            "--band-gap", metavar="EV", help="Band gap of the crystals in eV, if known; a model cannot know it."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    as_json: JsonOption = False,
    recompute: Annotated[bool, typer.Option("--recompute", help="Compute even what is stored.")] = False,
    dtype: Annotated[str, typer.Option("--dtype", help="float64 or float32.")] = "float64",
    device: Annotated[str, typer.Option("--device", help="Torch device.")] = "cpu",
    head: Annotated[
        str | None,
        typer.Option("--head", help="Head of a model with several; the first by default.", show_default=False),
    ] = None,
    hessian_head: Annotated[
        str | None, typer.Option("--hessian-head", help="The same of the separate model.", show_default=False)
    ] = None,
) -> None:
    """Compute the dielectric response of crystals and store it.

    Results that are stored already are not computed again.  Exit code 0: all done; 1: some structures failed, the
    others are done; 2: nothing was done; 130: interrupted, what was finished is stored.
    """
    from fieldflows.store import require_jobflow

    require_jobflow()
    from fieldflows.flows.screening import DielectricMaker
    from fieldflows.inputs import read_structures
    from fieldflows.jobs.relax import RelaxSettings
    from fieldflows.properties.dielectric import DielectricSettings

    if band_gap is not None and not 0.0 <= band_gap < 100.0:
        raise SettingsError(f"--band-gap is {band_gap} eV.", "Give the gap in eV, 0 for a metal.")
    maker = DielectricMaker(
        model=model,
        hessian_model=hessian_model,
        settings=DielectricSettings(ionic="auto" if ionic is None else ionic, use_symmetry=symmetry),
        relax=RelaxSettings() if relax else None,
        dtype=dtype,
        device=device,
        recompute=recompute,
        head=head,
        hessian_head=hessian_head,
    )
    card = maker.check()
    with _progress("reading", len(files), shown=len(files) >= MANY_FILES) as advance:
        structures, failures = read_structures(files, advance)
    if band_gap is not None:
        structures = [replace(item, band_gap=band_gap) for item in structures]
    if dry_run:
        _announce(maker, card, structures, failures, store, as_json)
    elif structures:
        _run(maker, structures, failures, store, as_json)
    elif len(failures) == 1:
        raise InputError(failures[0].message)
    else:
        _show([], failures, as_json)
    if failures:
        raise typer.Exit(EXIT_SOME_FAILED if structures else EXIT_ALL_FAILED)


def _run(
    maker: DielectricMaker,
    structures: Sequence[InputStructure],
    failures: list[FailureDocument],
    store: str | None,
    as_json: bool,
) -> None:
    from jobflow import run_locally

    from fieldflows.jobs.evaluate import reporting
    from fieldflows.schemas.failure import FailureDocument
    from fieldflows.store import describe_store, get_store

    job_store = get_store(store)
    place = describe_store(store)
    flow = maker.make(structures)
    finished: list[Any] = []
    done = 0
    try:
        with _progress("screening", len(structures)) as advance, warnings.catch_warnings():
            warnings.simplefilter("ignore")

            def report(item: Any) -> None:
                nonlocal done
                done += 1
                (failures if isinstance(item, FailureDocument) else finished).append(item)
                advance(done)

            with reporting(report):
                responses = run_locally(flow, log=False, store=job_store, ensure_success=True, raise_immediately=True)
            advance(len(structures))
    except KeyboardInterrupt:
        typer.echo(
            f"Interrupted: {len(finished)} of {len(structures)} structures are finished and stored in {place}. "
            "Run the same command again to go on.",
            err=True,
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        job_store.close()
    chunks = [responses[made.uuid][made.index].output for made in flow.jobs]
    documents = [item.to_json_dict() for chunk in chunks for item in chunk.results]
    if not as_json:
        reused, duplicates = (sum(getattr(chunk, name) for chunk in chunks) for name in ("n_reused", "n_duplicates"))
        remarks = [f"{reused} of them were there already"] if reused else []
        remarks += [f"{duplicates} structures were duplicates"] if duplicates else []
        note = f" ({'; '.join(remarks)})" if remarks else ""
        typer.echo(f"{len(documents)} results in {place}{note}", err=True)
    _show(documents, failures, as_json)
    if not documents:
        raise typer.Exit(EXIT_ALL_FAILED)


def _show(documents: list[dict[str, Any]], failures: Sequence[FailureDocument], as_json: bool) -> None:
    records = [item.to_json_dict() for item in failures]
    if as_json:
        output.print_json({"results": documents, "failures": records})
        return
    console = output.console()
    if documents:
        title = "Dielectric response"
        if len(documents) > output.MAX_ROWS:
            title += f" (the first {output.MAX_ROWS} of {len(documents)}; `fieldflows query` finds the others)"
        console.print(output.result_table(documents[: output.MAX_ROWS], title))
    if records:
        console.print(output.failure_table(records))


def _announce(
    maker: DielectricMaker,
    card: ModelInfo,
    structures: Sequence[InputStructure],
    failures: Sequence[FailureDocument],
    store: str | None,
    as_json: bool,
) -> None:
    from fieldflows.store import describe_store

    flow = maker.make(structures) if structures else None
    stored = _already_stored(maker.keys(structures), store)
    foreign = [sorted({site.specie.symbol for site in item.structure} - set(card.elements)) for item in structures]
    facts = {
        "structures": len(structures),
        "atoms": sum(len(item.structure) for item in structures),
        "stored": sum(stored),
        "jobs": 0 if flow is None else len(flow.jobs),
        "model": f"{card.name} ({card.sha256[:12]})",
        "unreadable": len(failures),
        "unknown_elements": sum(map(bool, foreign)),
        "store": describe_store(store),
    }
    if as_json:
        output.print_json(facts | {"failures": [item.to_json_dict() for item in failures]})
        return
    console = output.console()
    console.print("Dry run: nothing is computed or stored.")
    for name, value in facts.items():
        console.print(f"{name.replace('_', ' '):>16}  {value}", markup=False)
    rows = []
    for item, known, missing in zip(structures, stored, foreign, strict=True):
        formula, remark = item.structure.composition.reduced_formula, "stored already" if known else ""
        remark = f"the model does not know {', '.join(missing)}" if missing else remark
        rows.append((item.label, formula, str(len(item.structure)), item.material_id or "–", remark))
    if rows:
        console.print(output.table("Structures", ["file", "formula", "atoms", "id", ""], rows, left=2))
    if failures:
        console.print(output.failure_table([item.to_json_dict() for item in failures]))


def _already_stored(keys: Sequence[str], store: str | None) -> list[bool]:
    from fieldflows.store import ResultsCollection, get_store, is_new

    if is_new(store):
        return [False] * len(keys)
    job_store = get_store(store)
    try:
        existing = ResultsCollection.of(job_store).existing(keys)
    finally:
        job_store.close()
    return [key in existing for key in keys]


@contextmanager
def _progress(word: str, total: int, shown: bool = True) -> Iterator[Any]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(word),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=output.console(error=True), disable=not shown) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)
