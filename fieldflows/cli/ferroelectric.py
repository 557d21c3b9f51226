"""``fieldflows ferroelectric``: spontaneous polarization with branch, path and energy."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fieldflows.cli import output
from fieldflows.cli.options import JsonOption, ModelOption, StoreOption
from fieldflows.errors import SettingsError

if TYPE_CHECKING:
    from fieldflows.schemas.ferroelectric import FerroelectricScreeningDocument, SpontaneousPolarizationDocument

EXIT_SOME_FAILED, EXIT_ALL_FAILED = 1, 2


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("ferroelectric")(ferroelectric)


def ferroelectric(
    polar: Annotated[
        str | None,
        typer.Argument(help="Polar crystal: a file (file#2 for its third structure), or an id such as mp-5986."),
    ] = None,
    nonpolar: Annotated[
        str | None, typer.Argument(help="Nonpolar crystal; without it the nearest one that symmetry proposes.")
    ] = None,
    screen: Annotated[
        list[Path] | None,
        typer.Option("--screen", metavar="FILE", help="Every polar crystal of a file instead; may be repeated."),
    ] = None,
    published: Annotated[
        Path | None,
        typer.Option("--published", metavar="FILE", help="Published paths instead: compare the model with them."),
    ] = None,
    propose: Annotated[bool, typer.Option("--propose", help="List the references that symmetry proposes.")] = False,
    model: ModelOption = "ferroelectric",
    other: Annotated[
        list[str] | None,
        typer.Option("--other", metavar="NAME", help="Further model for an independent estimate; 'none' for none."),
    ] = None,
    hessian_model: Annotated[
        str | None, typer.Option("--hessian-model", metavar="NAME", help="Model of energies; it also relaxes.")
    ] = None,
    relax: Annotated[bool, typer.Option("--relax", help="Relax both ends first.")] = False,
    frames: Annotated[int, typer.Option("--frames", help="Frames of the path.", min=2)] = 10,
    estimate: Annotated[
        str, typer.Option("--estimate", help="charges, branch or difference: the way to P_s that is given.")
    ] = "charges",
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Integrate Born charges along the path as well.")
    ] = True,
    band_gap: Annotated[float | None, typer.Option("--band-gap", metavar="EV", help="Band gap, if known.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for figures; with --published for the whole report.")
    ] = None,
    store: StoreOption = None,
    recompute: Annotated[bool, typer.Option("--recompute", help="Compute even what is stored.")] = False,
    as_json: JsonOption = False,
    dtype: Annotated[str, typer.Option("--dtype", help="float64 or float32.")] = "float64",
    device: Annotated[str, typer.Option("--device", help="Torch device.")] = "cpu",
) -> None:
    """Compute the spontaneous polarization of a polar crystal, relative to a nonpolar one.

    Exit code 0: done; 1: with --screen or --published, some crystals failed; 2: nothing was done.
    """
    asked = [polar is not None, bool(screen), published is not None]
    if sum(asked) != 1:
        raise SettingsError(
            "Give a polar crystal, or --screen FILE, or --published FILE: one of the three.",
            "fieldflows ferroelectric polar.cif nonpolar.cif",
        )
    others = [name for name in (other if other is not None else ["dielectric"]) if name != "none"]
    if polar is not None and propose:
        _propose(polar, as_json)
        return
    if published is not None:
        _published(published, model, others, out, check, dtype, device, as_json)
        return
    maker = _maker(
        model=model, other_models=others, hessian_model=hessian_model, relax=relax, frames=frames, estimate=estimate,
        check=check, recompute=recompute, dtype=dtype, device=device,
    )  # fmt: skip
    maker.check()
    if screen:
        _screen(maker, screen, out, store, as_json)
    else:
        _one(maker, str(polar), nonpolar, band_gap, out, store, as_json)


def _maker(**options: Any) -> Any:
    from fieldflows.store import require_jobflow

    require_jobflow()
    from pydantic import ValidationError

    from fieldflows.flows.ferroelectric import SpontaneousPolarizationMaker
    from fieldflows.jobs.relax import RelaxSettings
    from fieldflows.properties.spontaneous_polarization import SpontaneousPolarizationSettings

    frames, estimate, check = (options.pop(name) for name in ("frames", "estimate", "check"))
    relax = RelaxSettings() if options.pop("relax") else None
    try:
        settings = SpontaneousPolarizationSettings(n_frames=frames, estimate=estimate, consistency=check)
    except ValidationError as error:
        raise SettingsError(f"--estimate is {estimate!r}.", "Known: branch, charges, difference.") from error
    return SpontaneousPolarizationMaker(settings=settings, relax=relax, **options)


def _run(flow: Any, store: str | None) -> list[Any]:
    from jobflow import run_locally

    from fieldflows.store import get_store

    job_store = get_store(store)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            responses = run_locally(flow, log=False, store=job_store, ensure_success=True, raise_immediately=True)
    finally:
        job_store.close()
    return [response.output for runs in responses.values() for response in runs.values()]


def _one(
    maker: Any, polar: str, nonpolar: str | None, band_gap: float | None, out: Path | None, store: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    from dataclasses import replace

    from fieldflows.jobs.structures import named_structure

    start = named_structure(polar)
    start = replace(start, band_gap=band_gap) if band_gap is not None else start
    end = None if nonpolar is None else named_structure(nonpolar)
    (document,) = _run(maker.make(start, end), store)
    figures = _figures([document], out)
    if as_json:
        output.print_json(document.to_json_dict())
    else:
        _show(document, figures)


def _screen(maker: Any, files: list[Path], out: Path | None, store: str | None, as_json: bool) -> None:
    from fieldflows.errors import InputError
    from fieldflows.inputs import read_structures

    structures, failures = read_structures(files)
    if not structures:
        raise InputError(failures[0].message if failures else "There are no structures to screen.")
    documents: list[FerroelectricScreeningDocument] = _run(maker.screen(structures), store)
    results = [item for document in documents for item in document.results]
    failed = [*failures, *(item for document in documents for item in document.failures)]
    _figures(results, out)
    if as_json:
        output.print_json(
            {
                "results": [item.to_json_dict() for item in results],
                "failures": [item.to_json_dict() for item in failed],
                "n_not_polar": sum(document.n_not_polar for document in documents),
            }
        )
    else:
        not_polar = sum(document.n_not_polar for document in documents)
        typer.echo(f"{len(results)} results; {not_polar} crystals are not polar", err=True)
        if results:
            order = sorted(results, key=lambda item: -(item.ps_norm or 0.0))
            rows = [item.to_json_dict() for item in order]
            output.console().print(output.polarization_table(rows, "Spontaneous polarization (µC/cm²)"))
        if failed:
            output.console().print(output.failure_table([item.to_json_dict() for item in failed]))
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED if results else EXIT_ALL_FAILED)


def _figures(documents: list[SpontaneousPolarizationDocument], out: Path | None) -> list[Path]:
    if out is None or not documents:
        return []
    from fieldflows.plotting import branch_diagram, polarization_fan

    out.mkdir(parents=True, exist_ok=True)
    made = []
    for item in documents:
        name = f"{item.formula_pretty}_{item.material_id or item.key[:8]}.png"
        branch_diagram(item, out / name)
        made.append(out / name)
    if len(documents) > 1:
        polarization_fan(documents, out / "fan.png")
        made.append(out / "fan.png")
    return made


def _show(document: SpontaneousPolarizationDocument, figures: list[Path]) -> None:
    def say(text: str) -> None:
        screen.print(text, markup=False, soft_wrap=True)

    screen = output.console()
    item = document
    ends = f"{item.nonpolar_spacegroup_symbol} ({item.nonpolar_origin}) to {item.spacegroup_symbol}"
    say(
        f"{item.formula_pretty}: {ends}, "
        f"largest displacement {item.largest_displacement:.3f} Å, strain {100 * item.largest_strain:.1f} %"
    )
    if item.ps is not None and item.ps_norm is not None:
        spread = "" if item.uncertainty is None else f" ± {item.uncertainty:.1f} (models)"
        vector = ", ".join(f"{value:.2f}" for value in item.ps)
        say(f"P_s = {item.ps_norm:.2f}{spread} µC/cm², ({vector}), by {item.ps_estimate}; status {item.status}")
    else:
        say("P_s is not defined: a metal has no polarization.")
    rows = [
        ("Z* of the ends", f"{item.ps_charges_norm:.2f}"),
        ("difference of P on their branch", f"{item.ps_branch_norm:.2f}"),
        ("difference of P as it is", f"{item.ps_difference_norm:.2f}"),
        *((f"Z* of the ends, {other.model.name}", f"{other.ps_norm:.2f}") for other in item.independent),
    ]
    if item.integral_error is not None:
        rows.append(("∫ Z*·du less the difference of P (an identity)", f"{item.integral_error:.2g}"))
    rows.append(("quanta along a, b, c", " ".join(f"{sum(x * x for x in row) ** 0.5:.1f}" for row in item.quanta)))
    screen.print(output.table("|P_s| in µC/cm²", ["", "value"], rows))
    if item.energy_difference is not None and item.barrier is not None:
        say(
            f"energy of the polar end {1000 * item.energy_difference:+.1f} meV per formula unit, barrier along the "
            f"path {1000 * item.barrier:.1f} meV"
        )
    else:
        say("energy: not available; give a model of energies (--hessian-model)")
    for flag in item.flags:
        say(f"Flag {flag.code}: {flag.message}")
    for path in figures:
        say(f"figure in {path}")


def _propose(polar: str, as_json: bool) -> None:
    from fieldflows.jobs.structures import named_structure
    from fieldflows.physics.references import propose_references

    found = propose_references(named_structure(polar).structure)
    facts = [
        {
            "spacegroup_symbol": item.group.symbol,
            "spacegroup_number": item.group.number,
            "point_group": item.group.point_group,
            "largest_displacement_angstrom": item.distortion.largest,
            "largest_strain": item.distortion.largest_strain,
            "cost_angstrom": item.cost,
            "route": item.route,
            "structure": item.structure.as_dict(),
        }
        for item in found
    ]
    if as_json:
        output.print_json(facts)
        return
    rows = [
        (
            item.group.symbol, str(item.group.number), item.route, f"{item.distortion.largest:.3f}",
            f"{100 * item.distortion.largest_strain:.2f}", f"{item.cost:.3f}",
        )
        for item in found
    ]  # fmt: skip
    columns = ["space group", "number", "found by", "displacement / Å", "strain / %", "size / Å"]
    output.console().print(output.table("Nonpolar references proposed by symmetry", columns, rows, left=3))


def _published(
    file: Path, model: str, others: list[str], out: Path | None, check: bool, dtype: str, device: str, as_json: bool
) -> None:
    from fieldflows.backends.base import load_model
    from fieldflows.evaluation.published_paths import compare_published
    from fieldflows.evaluation.published_report import error_table, well_known_table, write_published_report
    from fieldflows.properties.spontaneous_polarization import SpontaneousPolarizationSettings

    main = load_model(model, dtype=dtype, device=device)
    opened = [load_model(name, dtype=dtype, device=device) for name in others]
    opened = [item for item in opened if item.info.sha256 != main.info.sha256]
    settings = SpontaneousPolarizationSettings(consistency=check, energy=False)

    def progress(done: int, total: int) -> None:
        if done % 20 == 0 or done == total:
            typer.echo(f"{done} of {total} paths", err=True)

    document = compare_published(file, main, opened, settings, progress)
    if out is not None:
        write_published_report(document, out)
    if as_json:
        output.print_json(document.to_json_dict())
    else:
        typer.echo(error_table(document))
        typer.echo("")
        typer.echo(well_known_table(document.paths))
        if out is not None:
            typer.echo(f"\nreport in {out}")
    if document.failures:
        raise typer.Exit(EXIT_SOME_FAILED)
