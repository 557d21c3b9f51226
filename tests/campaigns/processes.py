"""The command line in processes of its own, for tests that kill them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMAND = [sys.executable, "-c", "from fieldflows.cli.main import run; run()"]
ROOT = Path(__file__).parents[2]


def start(*words: str, folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Start a command in a folder; what it says goes to output.log there."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    with (folder / "output.log").open("ab") as log:
        return subprocess.Popen([*COMMAND, *words], cwd=folder, env=variables, stdout=log, stderr=log)


def run(*words: str, folder: Path, timeout: float = 600.0, **environment: str) -> int:
    """Run a command to its end, and return its exit status."""
    return start(*words, folder=folder, **environment).wait(timeout)


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that are alive."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]


def kill(pid: int) -> bool:
    """Kill a process without giving it a chance; return whether it was there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition, seconds: float = 120.0, pause: float = 0.05) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(pause)
