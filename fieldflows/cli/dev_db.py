"""``fieldflows dev-db``: a MongoDB in memory, to try FireWorks and jobflow-remote without installing one."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Annotated

import typer

from fieldflows.errors import SettingsError

PORT = 27117
"""Not MongoDB's own port, so that nothing that is meant for a real MongoDB ends up here by default."""

DATABASE = "fieldflows_dev"
TITLE = "fieldflows dev-db: a MongoDB imitation in memory, for trials and tests only."
LOST = "All data are lost when it stops."
PATIENCE_S = 10.0
"""Time that a command has to end when the server is told to stop."""


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("dev-db")(dev_db)


def dev_db(
    port: Annotated[
        int, typer.Option("--port", "-p", min=0, max=65535, help="Port to listen on; 0 takes any free one.")
    ] = PORT,
    host: Annotated[
        str, typer.Option("--host", help="Loopback address to listen on; others are refused.")
    ] = "127.0.0.1",
    command: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="COMMAND",
            help="Run a command with FIELDFLOWS_STORE and FIELDFLOWS_DEV_DB set to the server, then stop with its exit "
            "status.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Serve a MongoDB from memory, on this machine only, until Ctrl-C: for trials, all data are lost at the end.

    It has no password: whoever has an account on this machine can read and write it.  FireWorks, jobflow and
    jobflow-remote can use it as if it were a MongoDB; what to write into their files is printed.
    """
    from fieldflows.testing.mongodb import memory_mongodb

    words = _words(command)
    with _stopped_by_signals() as stop:
        with memory_mongodb(host, port) as uri:
            if words is None:
                typer.echo(announcement(uri))
                while not stop.wait(0.5):
                    pass
                code = 0
            else:
                typer.echo(f"{TITLE} {LOST}\nAddress: {uri}/{DATABASE}", err=True)
                code = _run(words, uri, stop)
        typer.echo("fieldflows dev-db has stopped; its data are lost.", err=words is not None)
    raise typer.Exit(code)


def announcement(uri: str) -> str:
    """Return what the user is told at the start: the address, and what goes into the files of other programs.

    Args:
        uri: Address of the server, without database.
    """
    address = f"{uri}/{DATABASE}"
    return f"""{TITLE}
{LOST} It has no password: every user of this machine can read and write it.

Address: {address}

fieldflows, in the shell:
    export FIELDFLOWS_STORE={address}

FireWorks, launchpad.yaml (lpad -l launchpad.yaml reset, rlaunch -l launchpad.yaml rapidfire):
{_indented(launchpad_yaml(uri))}

jobflow, the file that JOBFLOW_CONFIG_FILE names:
{_indented(jobflow_yaml(uri))}

jobflow-remote, in the file of the project (then: jf admin reset):
{_indented(remote_yaml(uri))}

Ctrl-C stops it."""


def launchpad_yaml(uri: str) -> str:
    """Return a ``launchpad.yaml`` for FireWorks."""
    return f"host: {uri}/{DATABASE}\nuri_mode: true\nname: {DATABASE}"


def jobflow_yaml(uri: str) -> str:
    """Return a configuration of jobflow."""
    return "JOB_STORE:\n" + _indented(_stores(uri), 2)


def remote_yaml(uri: str) -> str:
    """Return the part of a jobflow-remote project that says where its queue and outputs are."""
    place = f"uri: {uri}/{DATABASE}\ndatabase: {DATABASE}"
    queue = f"type: MongoURIStore\n{place}\ncollection_name: jobs"
    return f"queue:\n  store:\n{_indented(queue)}\njobstore:\n{_indented(_stores(uri), 2)}"


def _stores(uri: str) -> str:
    place = f"uri: {uri}/{DATABASE}\ndatabase: {DATABASE}"
    outputs = f"type: MongoURIStore\n{place}\ncollection_name: outputs"
    data = f"type: GridFSURIStore\n{place}\ncollection_name: data\nkey: blob_uuid"
    return f"docs_store:\n{_indented(outputs, 2)}\nadditional_stores:\n  data:\n{_indented(data)}"


def _indented(text: str, by: int = 4) -> str:
    return "\n".join(" " * by + line for line in text.splitlines())


def _words(command: str | None) -> list[str] | None:
    if command is None:
        return None
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise SettingsError(f"--run {command!r} cannot be read: {error}.", "Close the quotation marks.") from None
    if not words:
        raise SettingsError("--run names no command.", "Write for example --run 'fieldflows query'.")
    return words


class _Stop(threading.Event):
    """An event that remembers which signal it was."""

    signal = 0

    def by(self, number: int, _frame: object) -> None:
        self.signal = number
        self.set()


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[_Stop]:
    """Turn Ctrl-C and SIGTERM into an event, for the length of the block."""
    stop = _Stop()
    wanted = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, stop.by) for number in wanted}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(words: list[str], uri: str, stop: _Stop) -> int:
    """Run a command beside the server and return its exit status; 128 and the number of a signal that ended it."""
    environment = {**os.environ, "FIELDFLOWS_STORE": f"{uri}/{DATABASE}", "FIELDFLOWS_DEV_DB": uri}
    try:
        process = subprocess.Popen(words, env=environment)
    except OSError as error:
        raise SettingsError(
            f"The command {words[0]!r} cannot be run: {error.strerror or error}.",
            "For pipes and the like, write --run \"bash -c '...'\".",
        ) from error
    while process.poll() is None and not stop.is_set():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    _end(process, stop)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _end(process: subprocess.Popen[bytes], stop: _Stop) -> None:
    """Wait for the end of a command; where it is to stop and does not, make it."""
    # a terminal sends Ctrl-C to the command too, which may clean up by itself
    if process.poll() is None and stop.signal != signal.SIGINT:
        process.terminate()
    for harder in (process.terminate, process.kill):
        try:
            process.wait(PATIENCE_S)
            return
        except subprocess.TimeoutExpired:
            harder()
    process.wait()
