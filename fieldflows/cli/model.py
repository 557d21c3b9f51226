"""``fieldflows model``: list, describe and import models."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fieldflows.cli import output
from fieldflows.cli.options import JsonOption


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(help="List, describe and import models.", no_args_is_help=True)
    group.command("list")(list_models)
    group.command("info")(info)
    group.command("import")(import_model)
    app.add_typer(group, name="model")


def list_models(as_json: JsonOption = False) -> None:
    """List the models that come with the package."""
    from fieldflows.backends.base import load_model
    from fieldflows.models import bundled_models

    rows = []
    for name, path in bundled_models().items():
        card = load_model(name).info
        rows.append(_summary(name, card) | {"size_mb": round(path.stat().st_size / 1e6, 2)})
    rows.append(_summary("toy", load_model("toy").info) | {"size_mb": 0.0})
    if as_json:
        output.print_json(rows)
        return
    cells = [
        (
            r["name"],
            str(r["elements"]),
            ", ".join(r["trained_labels"]),
            f"{r['size_mb']:.1f}",
            r["sha256"][:12],
            r["license"],
        )
        for r in rows
    ]
    console = output.console()
    console.print(output.table("Models", ["name", "elements", "trained on", "MB", "sha256", "license"], cells, left=1))
    console.print("The toy model is for tests: its numbers mean nothing.")


def info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Bundled name, path of a checkpoint, or sha256:HASH.")],
    as_json: JsonOption = False,
) -> None:
    """Show what a model says about itself."""
    from fieldflows.backends.base import load_model

    card = load_model(name).info
    facts = asdict(card) | {"has_energy_surface": card.has_energy_surface}
    if as_json:
        output.print_json(facts)
        return
    rows = [
        ("name", card.name),
        ("backend", card.backend),
        ("sha256", card.sha256),
        ("license", card.license or "not stated"),
        ("trained on", ", ".join(card.trained_labels) or "not stated"),
        ("energy surface", "yes" if card.has_energy_surface else "no: no forces, modes, ε_ion or relaxation"),
        ("cut-off", f"{card.cutoff:g} Å"),
        ("heads", ", ".join(card.heads)),
        ("elements", f"{len(card.elements)}: {' '.join(card.elements)}"),
        *_flatten(card.provenance),
    ]
    output.console().print(output.table(f"Model {card.name}", ["", ""], rows, left=2))


def import_model(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A pickled model of MACE or MACE-Field, or the name of a MACE foundation model to download.",
        ),
    ],
    trust_pickle: Annotated[
        bool,
        typer.Option(
            "--trust-pickle", help="Say that the file comes from a trusted origin: loading it can run any code."
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write; next to the file by default.", show_default=False)
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="A,B,...",
            help="Observables that it was trained on; energy,forces,stress for a plain MACE.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the model; that of the file by default.", show_default=False)
    ] = None,
    field_blocks: Annotated[
        str | None,
        typer.Option(
            "--field-blocks",
            metavar="random|zero",
            help="Add untrained field blocks to a plain MACE, to train them later; energies stay as they are.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Convert a pickled model into a checkpoint that is safe to load."""
    from fieldflows.errors import SettingsError

    if field_blocks not in (None, "random", "zero"):
        raise SettingsError(f"--field-blocks must be random or zero, found {field_blocks!r}.")
    from fieldflows.backends.mace_field.pickles import import_pickle

    names = [word.strip() for word in labels.split(",")] if labels else None
    target, sha256 = import_pickle(
        source,
        out,
        trust=trust_pickle,
        labels=names,
        name=name,
        field_blocks=field_blocks,  # type: ignore[arg-type]
    )
    typer.echo(f"Wrote {target}\nsha256 {sha256}")


def _summary(name: str, card: Any) -> dict[str, Any]:
    return {
        "name": name,
        "elements": len(card.elements),
        "trained_labels": list(card.trained_labels),
        "sha256": card.sha256,
        "license": card.license,
    }


def _flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [row for key, item in value.items() for row in _flatten(item, f"{prefix}.{key}" if prefix else str(key))]
    text = str(value)
    return [(prefix, text if len(text) <= 300 else f"{text[:297]}...")]
