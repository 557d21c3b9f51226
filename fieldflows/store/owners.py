"""Which process owns something, and whether it is still alive."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
_STATE, _START = 0, 19
"""Places of the state and the start time in /proc/PID/stat, counted from behind the name of the program."""


@dataclass(frozen=True)
class Owner:
    """A process, told from others of the same number and from itself at another time.

    Attributes:
        host: Name of the machine.
        pid: Number of the process.
        started: When the process was started, in clock ticks after the start of the machine, where Linux says so.
        machine: Start of the machine and space of process numbers (a container has its own), where Linux says so.
        token: Random text, for several owners in one process.
    """

    host: str
    pid: int
    started: int | None
    machine: str | None
    token: str

    @classmethod
    def here(cls) -> Owner:
        """Return this process as an owner, a new one with each call."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, start_of(pid), _machine(), secrets.token_hex(16))

    @classmethod
    def from_json_dict(cls, data: Mapping[str, Any]) -> Owner:
        """Return the owner of JSON types."""
        return cls(data["host"], data["pid"], data["started"], data["machine"], data["token"])

    def to_json_dict(self) -> dict[str, Any]:
        """Return the owner in JSON types."""
        return asdict(self)

    def is_gone(self) -> bool:
        """Return whether the process is known to have ended; False where that cannot be seen from here.

        That can be seen on the same machine, not restarted since, and in the same space of process numbers.
        """
        if self.host != socket.gethostname() or self.machine != _machine() or os.name == "nt":
            return False
        try:
            os.kill(self.pid, 0)  # signal 0 only asks; on Windows it would not
        except ProcessLookupError:
            return True
        except OSError:  # a process of somebody else
            pass
        if self.started is None:
            return False
        # another process may have got the number; None: it has ended and only waits for its parent to notice
        return start_of(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def start_of(pid: int) -> int | None:
    """Return when a process was started, in clock ticks after the start of the machine.

    None if it has ended, or where there is no /proc.
    """
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        # the name of the program stands in parentheses and may hold anything
        fields = text.rpartition(")")[2].split()
        return None if fields[_STATE] in ("Z", "X", "x") else int(fields[_START])
    except (OSError, ValueError, IndexError):
        return None


def _machine() -> str | None:
    try:
        boot = (_PROC / "sys" / "kernel" / "random" / "boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink(_PROC / 'self' / 'ns' / 'pid')}"
    except (OSError, ValueError):
        return None
