"""``fieldflows model``: list, describe, register, fetch and import models."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fieldflows.cli import output
from fieldflows.cli.options import JsonOption

if TYPE_CHECKING:
    from fieldflows.schemas.model import RegisteredModel

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="Bundled or registered name, name@version, path of a checkpoint, or sha256:HASH."
    ),
]
SHOWN_ERRORS = 3
"""Quantities whose errors are listed for a model."""


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(help="List, describe, register, fetch and import models.", no_args_is_help=True)
    group.command("list")(list_models)
    group.command("show")(info)
    group.command("info", hidden=True)(info)
    group.command("register")(register_model)
    group.command("fetch")(fetch)
    group.command("remove")(remove)
    group.command("import")(import_model)
    app.add_typer(group, name="model")


def list_models(as_json: JsonOption = False) -> None:
    """List the models that come with the package, and those that are registered on this machine."""
    from fieldflows.artifacts import file_sha256
    from fieldflows.backends.base import load_model
    from fieldflows.models import bundled_models
    from fieldflows.models.find import registry
    from fieldflows.models.registry import describe

    rows = []
    for name, path in bundled_models().items():
        entry = describe(path, name, 1, str(path), file_sha256(path))
        rows.append(_row(entry) | {"origin": "bundled", "version": None})
    own = registry()
    rows.extend(_row(entry) | {"origin": "registered"} for entry in own.entries())
    toy = load_model("toy").info
    rows.append(
        {"name": "toy", "version": None, "elements": len(toy.elements), "trained_labels": list(toy.trained_labels)}
        | {"heads": list(toy.heads), "sha256": toy.sha256, "license": toy.license, "size_mb": 0.0, "errors": {}}
        | {"dataset_digest": None, "registered_at": None, "origin": "built in"}
    )
    if as_json:
        output.print_json(rows)
        return
    cells = [
        (
            r["name"] + (f"@{r['version']}" if r["version"] else ""),
            str(r["elements"]),
            ", ".join(r["trained_labels"]),
            ", ".join(f"{key} {value}" for key, value in r["errors"].items()),
            f"{r['size_mb']:.1f}",
            r["sha256"][:12],
            r["license"],
        )
        for r in rows
    ]
    columns = ["name", "elements", "trained on", "mean absolute errors", "MB", "sha256", "license"]
    console = output.console()
    console.print(output.table("Models", columns, cells, left=1))
    console.print("The toy model is for tests: its numbers mean nothing.")
    if own.entries():
        console.print(f"Registered models are in {own.folder}.")


def info(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show what a model says about itself, and where it is."""
    from fieldflows.backends.base import load_model
    from fieldflows.models.find import locate, registry

    card = load_model(name).info
    titles = [entry.title for entry in registry().with_sha256(card.sha256)]
    file = None if name == "toy" else locate(name)
    facts = asdict(card) | {
        "has_energy_surface": card.has_energy_surface,
        "registered": titles,
        "file": None if file is None else str(file),
    }
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
        ("registered as", ", ".join(titles) or "not registered"),
        ("file", "none" if file is None else str(file)),
        *_flatten(card.provenance),
    ]
    output.console().print(output.table(f"Model {card.name}", ["", ""], rows, left=2))


def register_model(
    source: Annotated[
        str, typer.Argument(metavar="MODEL", help="A checkpoint, or what else names a model, such as sha256:HASH.")
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name to register it under.")],
    new_version: Annotated[
        bool, typer.Option("--new-version", help="Let a name that is taken stand for this model from now on.")
    ] = False,
) -> None:
    """Copy a checkpoint into the registry of this machine, where its name finds it."""
    _register(source, name, new_version)


def fetch(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="sha256:HASH, a name in the store, or an http(s):// or file:// address of a checkpoint.",
        ),
    ],
    store: Annotated[
        str | None,
        typer.Option("--store", metavar="SPEC", help="JobStore that holds the model.", show_default=False),
    ] = None,
    sha256: Annotated[
        str | None,
        typer.Option("--sha256", metavar="HASH", help="Hash that the file of an address has.", show_default=False),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Register it under this name; a name in the store stays its name.")
    ] = None,
) -> None:
    """Get a model from a store or an address, verify it, and keep it on this machine."""
    from contextlib import nullcontext

    from fieldflows import artifacts
    from fieldflows.backends.base import load_model
    from fieldflows.errors import SettingsError, StoreError
    from fieldflows.models.find import locate

    place: Any = nullcontext()
    if store is not None:
        from fieldflows.store import get_store
        from fieldflows.store.artifacts import StoreArtifacts

        kept = StoreArtifacts.of(get_store(store, must_exist=True))
        if kept is None:
            raise StoreError(f"The store {store} has no additional store for files.", "Name another store.")
        place = artifacts.reachable(kept)
    if sha256 is not None and "://" not in what:
        raise SettingsError("--sha256 is for an address.", "Write sha256:HASH as what to fetch.")
    text = f"{what}#sha256={sha256}" if sha256 is not None else what
    with place:
        path = locate(text) if "://" in text or text.startswith("sha256:") else _from_store(text)
        if path is None:
            raise SettingsError(f"There is no model {what!r} to fetch.", "Name its store with --store.")
        card = load_model(path).info
    plain = name or (None if "://" in what or what.startswith("sha256:") else what.partition("@")[0])
    if plain is not None:
        _register(str(path), plain, new_version=True)
    else:
        typer.echo(f"{card.name} is on this machine as sha256:{card.sha256}")


def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Registered name, or name@version for one version.")],
) -> None:
    """Remove a model from the registry of this machine, with its file."""
    from fieldflows.errors import SettingsError
    from fieldflows.models.find import registry

    own = registry()
    if name in own.reserved:
        raise SettingsError(f"{name} is not registered: {own.reserved[name]}.", "It cannot be removed.")
    for entry in own.remove(name):
        typer.echo(f"Removed {entry.title} (sha256 {entry.sha256})")


def _register(source: str, name: str, new_version: bool) -> None:
    from fieldflows.backends.base import load_model
    from fieldflows.errors import SettingsError
    from fieldflows.models.find import locate, registry

    load_model(source)
    path = locate(source)
    if path is None:
        raise SettingsError(f"The model {source!r} is no file, so it cannot be registered.")
    entry = registry().register(path, name, new_version)
    typer.echo(f"Registered {entry.title}\nsha256 {entry.sha256}")


def _from_store(name: str) -> Path | None:
    """Return the file of a model that a place other than this machine knows by name."""
    from fieldflows import artifacts
    from fieldflows.models.find import model_label

    for place in artifacts.places():
        sha256 = place.find(model_label(name))
        if sha256 is not None:
            return artifacts.fetch(sha256)
    return None


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


def _row(entry: RegisteredModel) -> dict[str, Any]:
    """Return what is listed of a model."""
    errors = {}
    split = next((name for name in ("test", "valid", "train") if entry.metrics.get(name)), None)
    for key, row in list(entry.metrics[split].items() if split else ())[:SHOWN_ERRORS]:
        unit = "" if row.get("unit") in (None, "1") else f" {row['unit']}"
        errors[key] = f"{row['mae']:.3g}{unit} ({split})"
    return {
        "name": entry.name,
        "version": entry.version,
        "elements": len(entry.elements),
        "trained_labels": list(entry.trained_labels),
        "heads": list(entry.heads),
        "errors": errors,
        "sha256": entry.sha256,
        "license": entry.license,
        "size_mb": round(entry.size / 1e6, 2),
        "dataset_digest": entry.dataset_digest,
        "registered_at": entry.registered_at.isoformat(timespec="seconds"),
    }


def _flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [row for key, item in value.items() for row in _flatten(item, f"{prefix}.{key}" if prefix else str(key))]
    text = str(value)
    return [(prefix, text if len(text) <= 300 else f"{text[:297]}...")]
