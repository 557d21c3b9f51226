"""Options that several commands share, written once."""

from __future__ import annotations

from typing import Annotated

import typer

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="SPEC",
        help="Where results are: a file, a mongodb:// address, or a YAML file that describes a JobStore. "
        "By default FIELDFLOWS_STORE, then jobflow's own configuration, then the embedded store.",
        show_default=False,
    ),
]
ModelOption = Annotated[
    str, typer.Option("--model", metavar="NAME", help="Model of the field response: name, path or sha256:HASH.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to standard output instead of a table.")]
