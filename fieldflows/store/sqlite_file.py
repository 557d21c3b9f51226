"""One SQLite file that several processes read and write: opening, journal mode, transactions, clear errors."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from fieldflows.errors import StoreError

APPLICATION_ID = 0x46464C57
"""Stamp in the header of the file that tells our stores from other SQLite files (the letters FFLW)."""

LAYOUT_VERSION = 1
"""Version of the tables; a newer one than the code knows is refused."""

CACHE_KIBIBYTES = 32768
"""Memory for pages of the file, for each connection."""

_NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs3", "nfs4", "lustre", "gpfs", "cifs", "smb3", "smbfs", "beegfs", "ceph", "afs", "panfs", "9p"}
    | {"fuse.sshfs", "fuse.glusterfs"}
)
_LOGGER = logging.getLogger(__name__)

_INHERITED: list[sqlite3.Connection] = []
"""Connections of a parent process: SQLite forbids a forked child to use or even close them."""


class SQLiteFile:
    """A connection to one file that reopens itself after a fork and explains what goes wrong.

    The file is never opened other than by SQLite: closing a file takes away all locks that the process holds on it,
    those of SQLite included, and another process could then damage it.

    Args:
        path: The file; created on first use, its folder must exist.
        journal_mode: ``"auto"``, ``"wal"`` or ``"delete"``.  Auto takes the write-ahead log, except on network
            file systems, where that log is unsafe and only one host should write.
        synchronous: ``"normal"`` survives the death of the process, ``"full"`` also a power cut.
        timeout: Seconds to wait for another process that is writing.
    """

    def __init__(self, path: Path, journal_mode: str, synchronous: str, timeout: float) -> None:
        self.path = path
        self.journal_mode = journal_mode
        self.synchronous = synchronous
        self.timeout = timeout
        self.lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._process = 0

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give the connection, one thread at a time.

        Raises:
            StoreError: If the file cannot be opened or read.
        """
        with self.lock, self._explained("read"):
            yield self._open()

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Give the connection inside a transaction: all of it is stored, or nothing.

        Raises:
            StoreError: If the file cannot be opened or written, is full, or stays locked.
        """
        with self.lock, self._explained("write"):
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        with self.lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            elif self._connection is not None:
                _INHERITED.append(self._connection)
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and self._process == os.getpid():
            return self._connection
        if self._connection is not None:
            _INHERITED.append(self._connection)
        self._check_path()
        connection = sqlite3.connect(self.path, timeout=self.timeout, isolation_level=None, check_same_thread=False)
        try:
            self._check_owner(connection)
            self._set_journal(connection)
            connection.execute(f"PRAGMA cache_size=-{CACHE_KIBIBYTES}")
            connection.execute(f"PRAGMA synchronous={'FULL' if self.synchronous == 'full' else 'NORMAL'}")
        except BaseException:
            connection.close()
            raise
        self._connection, self._process = connection, os.getpid()
        return connection

    def _check_path(self) -> None:
        if self.path.is_dir():
            raise StoreError(f"The store {self.path} is a folder.", "Name a file in it, for example results.db.")
        if not self.path.parent.is_dir():
            raise StoreError(f"The folder {self.path.parent} of the store does not exist.", "Create it first.")

    def _check_owner(self, connection: sqlite3.Connection) -> None:
        def read(pragma: str) -> int:
            return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])

        if read("application_id") != APPLICATION_ID:
            # Looked at again under the write lock: another process may be making the same new file just now.
            connection.execute("BEGIN IMMEDIATE")
            try:
                if read("application_id") != APPLICATION_ID:
                    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                        raise StoreError(
                            f"{self.path} is the SQLite database of another program.",
                            "Name another file; this one was left as it is.",
                        )
                    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
                    connection.execute(f"PRAGMA user_version={LAYOUT_VERSION}")
            finally:
                connection.execute("COMMIT")
        version = read("user_version")
        if version > LAYOUT_VERSION:
            raise StoreError(
                f"{self.path} was written by a newer fieldflows (layout {version}; this one knows {LAYOUT_VERSION}).",
                "Upgrade fieldflows, or name another file.",
            )

    def _set_journal(self, connection: sqlite3.Connection) -> None:
        wanted = self.journal_mode
        if wanted == "auto":
            wanted = "delete" if file_system(self.path) in _NETWORK_FILE_SYSTEMS else "wal"
        deadline = time.monotonic() + min(self.timeout, 2.0)
        while connection.execute("PRAGMA journal_mode").fetchone()[0] != wanted:
            try:
                got = connection.execute(f"PRAGMA journal_mode={wanted}").fetchone()[0]
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    got = "unavailable"
                elif time.monotonic() < deadline:
                    # Processes that open a new file at once get in each other's way, and SQLite does not wait here.
                    time.sleep(0.02)
                    continue
                else:
                    # The file is in use with the other journal, which is as good for everyone who shares it.
                    return
            if got != wanted:
                _LOGGER.warning("Journal mode %s is not available for %s; using a rollback journal.", wanted, self.path)
                connection.execute("PRAGMA journal_mode=delete")
                return

    @contextlib.contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise self._explain(error, action) from error

    def _explain(self, error: sqlite3.DatabaseError, action: str) -> StoreError:
        text = str(error)
        start = f"Cannot {action} the store {self.path}: "
        if "is full" in text:
            return StoreError(f"{start}the disk is full.", "Free some space and run again; what was stored is safe.")
        if "locked" in text or "busy" in text:
            return StoreError(
                f"{start}another process held it for more than {self.timeout:g} s.",
                "Wait for it or stop it, then run again.",
            )
        if "unable to open" in text or "readonly" in text:
            return StoreError(f"{start}no permission ({text}).", "Name a file in a folder where you may write.")
        if "not a database" in text:
            return StoreError(
                f"{self.path} is not a store of fieldflows, nor any SQLite database.",
                "Name another file; this one was left as it is.",
            )
        if "malformed" in text or "corrupt" in text:
            return StoreError(
                f"{start}the file is damaged ({text}).",
                "Move it away and start a new one, or recover it with `sqlite3 FILE .recover`.",
            )
        if "disk I/O" in text:
            return StoreError(
                f"{start}{text} (disk full, quota or file size limit reached, or a network disk gone).",
                "Free some space and run again; what was stored is safe.",
            )
        return StoreError(f"{start}{text}.")


def file_system(path: Path) -> str:
    """Return the type of the file system that holds a path, as Linux names it; empty where that is not known."""
    mounts = Path("/proc/self/mounts")
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    target = path.resolve()
    best, kind = -1, ""
    for line in lines:
        fields = line.split()
        if len(fields) < 3:
            continue
        point = Path(fields[1].replace("\\040", " "))
        if (target == point or point in target.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind
