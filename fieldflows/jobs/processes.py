"""A training run on several processes of one machine, started and watched from inside a job."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fieldflows.artifacts import replacing
from fieldflows.errors import TrainingError

if TYPE_CHECKING:
    from fieldflows.training.config import TrainingConfig

CONFIG_NAME = "job.yaml"
OUTPUT_NAME = "processes.log"
COMMAND = "from fieldflows.cli.main import run; run()"

_TAIL = 4000


def train_in_processes(config: TrainingConfig, directory: str | Path, processes: int) -> None:
    """Train with torchrun until an end is reached; what the processes say goes to ``processes.log``.

    SIGTERM and Ctrl-C are passed on to the processes, which save the state.

    Args:
        config: The configuration; datasets by digest must be on this machine.
        directory: The run directory.
        processes: Number of processes, one for each GPU of the machine.

    Raises:
        TrainingError: If the run was stopped, or a process failed; with its last words.
        ArtifactError: If the run directory cannot be written.
    """
    from fieldflows.training.signals import stop_signals

    directory = Path(directory)
    with replacing(directory / CONFIG_NAME) as handle:
        handle.write(config.to_yaml().encode())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    worker = ["--no-python", sys.executable, "-c", COMMAND]
    words = [*launcher, *worker, "train", str(directory / CONFIG_NAME), "--out", str(directory)]
    child: subprocess.Popen[bytes] | None = None
    stopped = False

    def stop() -> bool:
        nonlocal stopped
        first, stopped = not stopped, True
        if child is not None:
            child.terminate()
        return first

    with (directory / OUTPUT_NAME).open("w", encoding="utf-8") as output, stop_signals(stop):
        # a session of its own: Ctrl-C in a terminal reaches the processes once, through this one
        child = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            if stopped:
                child.terminate()
            code = child.wait()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    if stopped:
        raise TrainingError(f"The run in {directory} was stopped.", "Run the same job again to go on.")
    if code != 0:
        raise TrainingError(
            f"One of {processes} processes that train in {directory} failed: {last_words(directory / OUTPUT_NAME)}",
            f"See {directory / OUTPUT_NAME}.",
        )


def last_words(path: Path) -> str:
    """Return the error that a process printed, or the last line of all."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace")[-_TAIL:].splitlines()]
    lines = [line for line in lines if line]
    errors = [line for line in lines if line.startswith(("Error: ", "Internal error: "))]
    return (errors or lines or ["it said nothing."])[0 if errors else -1].removeprefix("Error: ")
