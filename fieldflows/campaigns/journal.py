"""Results on this machine before they are in the store: one append-only file for a chunk.

Every batch is appended, flushed and brought to the disk (fsync) before it goes to the store; once the store has
acknowledged it, the file is emptied.  What is left in it after a crash is what the store may not have.  A line that was
cut off by the crash is the last one and is dropped.

Before a batch is computed its keys are noted.  A note without an end is a worker that died there: crystals of such
batches are tried alone, and after some deaths they are given up, so that one that kills its worker does not stop the
others.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from fieldflows.artifacts import data_folder
from fieldflows.errors import StoreError

FOLDER_VARIABLE = "FIELDFLOWS_JOURNALS"
"""Environment variable that names the folder of journals; on a cluster, a file system that all workers see."""

_LOGGER = logging.getLogger(__name__)


def journal_folder() -> Path:
    """Return the folder of journals: ``$FIELDFLOWS_JOURNALS``, or ``journals`` in the user's data folder."""
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named).expanduser() if named else data_folder() / "journals"


class Journal:
    """The journal of one chunk.

    Attributes:
        path: The file.
        results: Results that the store has not acknowledged, by key.
        failures: Failures that it has not acknowledged, by their key.
        deaths: How often a worker died while it computed a crystal, by key.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, dict[str, Any]] = {}
        self.failures: dict[str, dict[str, Any]] = {}
        self.deaths: dict[str, int] = {}
        self._handle: IO[bytes] | None = None

    @classmethod
    @contextlib.contextmanager
    def opened(cls, campaign: str, chunk: str, folder: Path | None = None) -> Iterator[Journal]:
        """Give the journal of a chunk, for this process alone.

        Where another process has it, a file of its own is taken: whoever computes twice does no harm.

        Args:
            campaign: Name of the campaign.
            chunk: Name of the chunk.
            folder: Folder of journals.

        Raises:
            StoreError: If the file cannot be written.
        """
        place = (journal_folder() if folder is None else folder) / _plain(campaign)
        journal = cls(place / f"{_plain(chunk)}.jsonl")
        try:
            place.mkdir(parents=True, exist_ok=True)
            journal._open()
        except OSError as error:
            raise StoreError(
                f"The journal {journal.path} cannot be written: {error.strerror or error}.",
                f"Name another folder in {FOLDER_VARIABLE}.",
            ) from error
        try:
            yield journal
        except BaseException:
            with contextlib.suppress(StoreError):  # an error or Ctrl-C is no death of the worker
                journal._write([{"end": True}], sync=False)
            raise
        finally:
            journal._close()

    def start(self, keys: Sequence[str]) -> None:
        """Note that these results are being computed."""
        self._write([{"start": list(keys)}], sync=False)

    def append(self, results: Sequence[Mapping[str, Any]], failures: Sequence[Mapping[str, Any]]) -> None:
        """Append what was computed and bring it to the disk.

        Raises:
            StoreError: If the disk is full or gone.
        """
        lines = [{"result": row} for row in results] + [{"failure": row} for row in failures]
        self._write([*lines, {"end": True}], sync=True)
        self.results |= {row["key"]: dict(row) for row in results}
        self.failures |= {row["failure_key"]: dict(row) for row in failures}

    def acknowledged(self) -> None:
        """Empty the file: everything in it is in the store."""
        self.results.clear()
        self.failures.clear()
        handle = self._ready()
        handle.seek(0)
        handle.truncate()
        if self.deaths:
            self._write([{"deaths": self.deaths}], sync=False)

    def forget(self, keys: Sequence[str]) -> None:
        """Forget that workers died at these crystals, as they are done."""
        for key in keys:
            self.deaths.pop(key, None)

    def _open(self) -> None:
        for path in (self.path, self.path.with_suffix(f".{os.getpid()}-{uuid.uuid4().hex[:6]}.jsonl")):
            handle = path.open("a+b")
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                handle.close()
                continue
            # the former owner may have removed the file between opening and locking
            if path.exists() and os.fstat(handle.fileno()).st_ino == path.stat().st_ino:
                self.path, self._handle = path, handle
                break
            handle.close()
        else:
            raise OSError("it is locked by other processes")
        self._read()
        self._adopt()

    def _adopt(self) -> None:
        """Take over what processes that were second left behind."""
        for other in sorted(self.path.parent.glob(f"{self.path.name.split('.')[0]}.*.jsonl")):
            if other == self.path:
                continue
            with other.open("a+b") as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    continue
                found = Journal(other)
                handle.seek(0)
                found._take(handle)
                self.append(list(found.results.values()), list(found.failures.values()))
                self.deaths |= {key: max(number, self.deaths.get(key, 0)) for key, number in found.deaths.items()}
                other.unlink(missing_ok=True)

    def _read(self) -> None:
        """Read what is there, end a line that was cut off, and note that deaths are counted."""
        handle = self._ready()
        handle.seek(0)
        whole = self._take(handle)
        handle.seek(0, os.SEEK_END)
        if not whole:
            handle.write(b"\n")
        if handle.tell():
            self._write([{"deaths": self.deaths}], sync=False)

    def _take(self, handle: IO[bytes]) -> bool:
        """Read lines; return whether the last one was whole."""
        started: list[str] = []
        whole = True
        for line in handle:
            whole = line.endswith(b"\n")
            try:
                entry = json.loads(line)
            except ValueError:
                if line.strip():
                    _LOGGER.warning("A line of the journal %s was cut off by a crash and is dropped.", self.path)
                continue
            if "start" in entry:
                self._count(started)
                started = list(entry["start"])
            elif "end" in entry:
                started = []
            elif "deaths" in entry:  # counted when it was written
                started, self.deaths = [], {key: int(number) for key, number in entry["deaths"].items()}
            elif "result" in entry:
                self.results[entry["result"]["key"]] = entry["result"]
            elif "failure" in entry:
                self.failures[entry["failure"]["failure_key"]] = entry["failure"]
        self._count(started)
        return whole

    def _count(self, started: Sequence[str]) -> None:
        for key in started:
            self.deaths[key] = self.deaths.get(key, 0) + 1

    def _write(self, entries: Sequence[Mapping[str, Any]], sync: bool) -> None:
        from fieldflows.store.encoding import encode

        handle = self._ready()
        try:
            handle.write("".join(encode(dict(entry)) + "\n" for entry in entries).encode())
            handle.flush()
            if sync:
                os.fsync(handle.fileno())
        except OSError as error:
            raise StoreError(f"The journal {self.path} cannot be written: {error.strerror or error}.") from error

    def _close(self) -> None:
        if self._handle is None:
            return
        if not (self.results or self.failures or self.deaths):
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._handle.close()
        self._handle = None

    def _ready(self) -> IO[bytes]:
        assert self._handle is not None
        return self._handle


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)
