"""The command line: ``fieldflows COMMAND``.

Only the command that is called is imported, so that help comes at once.  Exit codes: 0 done; 1 done, but some
structures failed; 2 nothing done because of an error, which is one line; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer

from fieldflows import __version__
from fieldflows.errors import FieldflowsError

COMMANDS: dict[str, tuple[str, str]] = {
    "screen": ("fieldflows.cli.screen", "Compute the dielectric response of crystals and store it."),
    "campaign": ("fieldflows.cli.campaign", "Screen many crystals: plan, submit, watch, resume, cancel, export."),
    "query": ("fieldflows.cli.query", "Find stored results: fieldflows query 'n > 2 and e_total > 15'."),
    "publish": ("fieldflows.cli.publish", "Copy results and failures from one store to another."),
    "store": ("fieldflows.cli.store", "Bring the documents of a store up to date."),
    "model": ("fieldflows.cli.model", "List, describe and import models."),
    "dataset": ("fieldflows.cli.dataset", "Build a dataset from labeled crystals."),
    "path": ("fieldflows.cli.path", "Build the path from a nonpolar to a polar crystal."),
    "ferroelectric": ("fieldflows.cli.ferroelectric", "Compute the spontaneous polarization of polar crystals."),
    "train": ("fieldflows.cli.train", "Train a model."),
    "evaluate": ("fieldflows.cli.evaluate", "Compare a model with the labels of a dataset."),
    "matbench": ("fieldflows.cli.matbench", "Judge refractive indices by the Matbench task, fold by fold."),
    "demo": ("fieldflows.cli.demo", "Screen well-known crystals and compare with published values."),
    "dev-db": ("fieldflows.cli.dev_db", "Serve a MongoDB from memory, for trials: all data are lost when it stops."),
}
"""Module and one line of help of every command."""

TRACEBACK_VARIABLE = "FIELDFLOWS_TRACEBACK"
"""Environment variable that shows the whole traceback of an error."""

EXIT_ERROR, EXIT_BUG, EXIT_INTERRUPTED = 2, 70, 130


def build_app(command: str | None = None) -> typer.Typer:
    """Return the application, with the real options of one command and only the help line of the others."""
    app = typer.Typer(
        name="fieldflows",
        help="Dielectric, ferroelectric and optical screening of crystals with field-aware potentials.",
        add_completion=False,
        no_args_is_help=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for name, (module, line) in COMMANDS.items():
        if name == command:
            _load(name, module).register(app)
        else:
            app.command(name, help=line)(_elsewhere)
    return app


def run(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Args:
        arguments: Words after ``fieldflows``; those of the process by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    command = next((word for word in words if not word.startswith("-")), None)
    try:
        code = build_app(command)(args=words, prog_name="fieldflows", standalone_mode=False)
    except KeyboardInterrupt:
        code = _say("Interrupted.", EXIT_INTERRUPTED)
    except FieldflowsError as error:
        _show_traceback()
        code = _say(f"Error: {error}", EXIT_ERROR)
    except BrokenPipeError:
        # The reader of our output has gone; there is nobody to tell.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        code = _foreign(error)
    sys.exit(code if isinstance(code, int) else 0)


def _foreign(error: Exception) -> int:
    """Say what went wrong outside our own code: wrong usage, as the command line library reports it, or a bug."""
    name = type(error).__name__
    if name == "Abort":
        return _say("Interrupted.", EXIT_INTERRUPTED)
    if hasattr(error, "format_message"):
        context: Any = getattr(error, "ctx", None)
        hint = f" See `{context.command_path} --help`." if context is not None else ""
        return _say(f"Error: {error.format_message().rstrip('.')}.{hint}", EXIT_ERROR)
    _show_traceback()
    return _say(
        f"Internal error: {name}: {error}. Set {TRACEBACK_VARIABLE}=1 for the traceback, and please report it.",
        EXIT_BUG,
    )


def _show_traceback() -> None:
    if os.environ.get(TRACEBACK_VARIABLE):
        import traceback

        traceback.print_exc()


def _say(message: str, code: int) -> int:
    typer.echo(" ".join(message.split()), err=True)
    return code


def _load(name: str, module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise FieldflowsError(f"The command {name!r} is not part of this installation.") from None
        raise


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fieldflows {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Dielectric, ferroelectric and optical screening of crystals with field-aware potentials."""


def _elsewhere() -> None:
    """Stand in for a command that is not the one called; only its help line is ever shown."""
