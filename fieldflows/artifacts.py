"""Files by their sha256: kept in folders, fetched from elsewhere, verified whenever they are read.

A checkpoint or a packed dataset is an *artifact*: a file that its sha256 names, wherever it lies.  A *label*, such as
``dataset/<digest>`` or ``model/<name>``, says which file something is in.  :func:`fetch` looks into the folder of
this machine, then into the places that :func:`reachable` adds (a job adds its store), then into those that the
environment variable ``FIELDFLOWS_ARTIFACT_SOURCES`` lists.  What comes from elsewhere is verified before it is used,
and kept in the folder of this machine.  Nothing here looks into the files, let alone executes them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from http.client import HTTPException
from pathlib import Path
from tempfile import mkstemp
from typing import IO, Protocol

from fieldflows.errors import ArtifactError, suggestion

FOLDER_VARIABLE = "FIELDFLOWS_ARTIFACTS"
"""Environment variable that names the folder of this machine."""

SOURCES_VARIABLE = "FIELDFLOWS_ARTIFACT_SOURCES"
"""Environment variable with further folders and http(s) or file addresses, separated by spaces."""

TIMEOUT = 30.0
"""Seconds after which a server that does not answer is given up."""

SHORTEST_PREFIX = 8
"""Fewest hexadecimal digits of a sha256 that may stand for all of it."""

_CHUNK = 1 << 20
_DIGITS = re.compile(r"[0-9a-f]+")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]*(/[A-Za-z0-9][A-Za-z0-9._@-]*)*")
_SCHEMES = ("http", "https", "file")


class Place(Protocol):
    """Where artifacts may be found."""

    @property
    def name(self) -> str:
        """What to call the place in messages."""
        ...

    def find(self, label: str) -> str | None:
        """Return the sha256 that a label stands for, or None."""
        ...

    def copy(self, sha256: str, handle: IO[bytes]) -> bool:
        """Write the content of an artifact; return False if it is not there."""
        ...


def data_folder() -> Path:
    """Return the user's data folder for fieldflows; it may not exist yet.

    That is ``$XDG_DATA_HOME/fieldflows`` or ``~/.local/share/fieldflows`` on Linux,
    ``~/Library/Application Support/fieldflows`` on macOS and ``%LOCALAPPDATA%/fieldflows`` on Windows.
    """
    if sys.platform == "darwin":
        base = Path("~/Library/Application Support")
    elif os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local")
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share")
    return base.expanduser() / "fieldflows"


def file_sha256(path: str | Path) -> str:
    """Return the sha256 of a file.

    Raises:
        ArtifactError: If it cannot be read.
    """
    try:
        with Path(path).open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from error


def checked_sha256(text: str, shortest: int = 64) -> str:
    """Return a sha256, or a prefix of one, in lower case and without ``sha256:``.

    Args:
        text: As written by a person.
        shortest: Fewest digits.

    Raises:
        ArtifactError: If it is none.

    Example:
        >>> checked_sha256("sha256:0123ABCDEF", shortest=8)
        '0123abcdef'
    """
    digits = text.strip().removeprefix("sha256:").lower()
    if not _DIGITS.fullmatch(digits) or not shortest <= len(digits) <= 64:
        wanted = "64 hexadecimal digits" if shortest == 64 else f"{shortest} to 64 hexadecimal digits"
        raise ArtifactError(f"{text!r} is no sha256.", f"Give {wanted}.")
    return digits


def checked_label(label: str) -> str:
    """Return a label.

    Raises:
        ArtifactError: If it is empty or holds more than letters, digits and ``. _ @ - /``.
    """
    if not _LABEL.fullmatch(label) or len(label) > 200:
        raise ArtifactError(f"{label!r} is no label of an artifact.", "Use letters, digits, and . _ @ - between /.")
    return label


def disk_error(what: str, error: OSError) -> ArtifactError:
    """Return the error for something that could not be written; a full disk is named as such."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ArtifactError(f"{what} cannot be written: the disk is full.", "Free some space and run the same again.")
    return ArtifactError(f"{what} cannot be written: {error.strerror or error}.", "Check the folder and its rights.")


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[IO[bytes]]:
    """Give a handle whose content takes the place of a file when the block ends, or leaves no trace if it fails.

    Raises:
        ArtifactError: If it cannot be written.
    """
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        number, name = mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        temporary = Path(name)
        with os.fdopen(number, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, target)
        temporary = None
    except (ConnectionError, TimeoutError, urllib.error.URLError):
        raise  # of what is read, not of the disk
    except OSError as error:
        raise disk_error(str(target), error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


class _Hashing:
    """Writes to a file and hashes what it writes."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle, self.digest = handle, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.handle.write(data)


class FileArtifacts:
    """Artifacts in a folder: ``ab/abcd...`` by sha256, and ``labels/<label>`` with the sha256 as text.

    Any static web server can serve such a folder.  Several processes may share it: files appear at once and whole.

    Args:
        folder: The folder; made when something is put into it.

    Example:
        >>> import tempfile
        >>> artifacts = FileArtifacts(tempfile.mkdtemp())
        >>> sha256 = artifacts.put(__file__, label="example/source")
        >>> artifacts.find("example/source") == sha256
        True
        >>> artifacts.get(sha256).read_bytes() == open(__file__, "rb").read()
        True
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser().absolute()

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.folder)

    def path(self, sha256: str) -> Path:
        """Return where an artifact lies if it is there."""
        digits = checked_sha256(sha256)
        return self.folder / digits[:2] / digits

    def put(self, source: str | Path, label: str | None = None) -> str:
        """Copy a file into the folder and return its sha256; nothing is copied that is there already.

        Raises:
            ArtifactError: If the source cannot be read or the folder not be written.
        """
        sha256 = file_sha256(source)
        target = self.path(sha256)
        if not (target.is_file() and target.stat().st_size == Path(source).stat().st_size and self._whole(sha256)):
            with Path(source).open("rb") as handle:
                self.put_stream(iter(lambda: handle.read(_CHUNK), b""), sha256)
        if label is not None:
            self.label(label, sha256)
        return sha256

    def put_stream(self, parts: Iterable[bytes], sha256: str) -> Path:
        """Write an artifact from its parts, if they are what its sha256 says.

        Raises:
            ArtifactError: If they are something else, or cannot be written.
        """
        target = self.path(sha256)
        with replacing(target) as handle:
            hashing = _Hashing(handle)
            for part in parts:
                hashing.write(part)
            found = hashing.digest.hexdigest()
            if found != checked_sha256(sha256):
                raise ArtifactError(
                    f"What should have sha256 {sha256[:12]}... has {found[:12]}...: it was altered or cut off.",
                    "It was not kept; get it again from its source.",
                )
        return target

    def get(self, sha256: str) -> Path:
        """Return the file of an artifact after verifying it.

        Raises:
            ArtifactError: If it is not there, or damaged.
        """
        target = self.path(sha256)
        if not target.is_file():
            raise ArtifactError(f"There is no artifact {sha256[:12]}... in {self.folder}.")
        if not self._whole(sha256):
            raise ArtifactError(
                f"The artifact {target} is damaged: it no longer has the sha256 that names it.",
                "Remove it; it is fetched again from where it came from.",
            )
        return target

    def copy(self, sha256: str, handle: IO[bytes]) -> bool:
        """Write the content of an artifact; return False if it is not there."""
        target = self.path(sha256)
        if not target.is_file():
            return False
        with target.open("rb") as source:
            _pump(source, handle)
        return True

    def label(self, label: str, sha256: str) -> None:
        """Let a label stand for an artifact, from now on."""
        with replacing(self.folder / "labels" / checked_label(label)) as handle:
            handle.write(checked_sha256(sha256).encode() + b"\n")

    def find(self, label: str) -> str | None:
        """Return the sha256 that a label stands for, or None."""
        try:
            text = (self.folder / "labels" / checked_label(label)).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return text if len(text) == 64 and _DIGITS.fullmatch(text) else None

    def starting_with(self, prefix: str) -> list[str]:
        """Return the sha256 of all artifacts that start with some digits."""
        digits = checked_sha256(prefix, SHORTEST_PREFIX)
        folder = self.folder / digits[:2]
        names = [path.name for path in folder.glob(f"{digits}*")] if folder.is_dir() else []
        return sorted(name for name in names if len(name) == 64)

    def remove(self, sha256: str) -> None:
        """Remove an artifact if it is there; labels that stand for it remain."""
        with contextlib.suppress(FileNotFoundError):
            self.path(sha256).unlink()

    def _whole(self, sha256: str) -> bool:
        return file_sha256(self.path(sha256)) == checked_sha256(sha256)


class WebArtifacts:
    """Artifacts of a folder that a web server serves, or that a ``file:`` address names; read only.

    Args:
        address: ``http://``, ``https://`` or ``file://``, of the folder.

    Raises:
        ArtifactError: If the address is of another kind.
    """

    def __init__(self, address: str) -> None:
        self.address = checked_address(address).rstrip("/")

    @property
    def name(self) -> str:
        """The address."""
        return self.address

    def find(self, label: str) -> str | None:
        """Return the sha256 that a label stands for, or None."""
        with contextlib.suppress(FileNotFoundError), opened(f"{self.address}/labels/{checked_label(label)}") as handle:
            text = handle.read(100).decode("ascii", errors="replace").strip()
            return text if len(text) == 64 and _DIGITS.fullmatch(text) else None
        return None

    def copy(self, sha256: str, handle: IO[bytes]) -> bool:
        """Write the content of an artifact; return False if it is not there."""
        digits = checked_sha256(sha256)
        with contextlib.suppress(FileNotFoundError), opened(f"{self.address}/{digits[:2]}/{digits}") as source:
            _pump(source, handle)
            return True
        return False


def checked_address(address: str) -> str:
    """Return an address after checking its scheme.

    Raises:
        ArtifactError: If it is not http, https or file.
    """
    scheme = urllib.parse.urlsplit(address).scheme.lower()
    if scheme not in _SCHEMES:
        hint = f"{suggestion(scheme, _SCHEMES)} Files in a JobStore are fetched with --store."
        raise ArtifactError(f"{address!r} is no address that files are fetched from.", hint)
    return address


@contextlib.contextmanager
def opened(address: str) -> Iterator[IO[bytes]]:
    """Open an address for reading.

    Raises:
        FileNotFoundError: If there is nothing there.
        ArtifactError: If it cannot be reached.
    """
    try:
        # the scheme was checked: nothing but http, https and file is ever opened
        with urllib.request.urlopen(checked_address(address), timeout=TIMEOUT) as handle:
            yield handle
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            raise FileNotFoundError(address) from error
        raise ArtifactError(f"{address} answers {error.code} {error.reason}.", "Check the address.") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, FileNotFoundError) or "No such file" in str(error.reason):
            raise FileNotFoundError(address) from error
        raise ArtifactError(f"{address} cannot be reached: {error.reason}.", "Check address and network.") from error
    except TimeoutError as error:
        raise ArtifactError(f"{address} does not answer within {TIMEOUT:g} s.", "Try again later.") from error
    except (ConnectionError, HTTPException) as error:
        raise ArtifactError(f"The connection to {address} broke off: {error}.", "Try again.") from error


def local() -> FileArtifacts:
    """Return the folder of this machine: ``FIELDFLOWS_ARTIFACTS``, or ``artifacts`` in the user's data folder."""
    return FileArtifacts(os.environ.get(FOLDER_VARIABLE) or data_folder() / "artifacts")


_REACHABLE: ContextVar[tuple[Place, ...]] = ContextVar("reachable", default=())


@contextlib.contextmanager
def reachable(*places: Place) -> Iterator[None]:
    """Let :func:`fetch` and :func:`find` look into further places, inside the block."""
    token = _REACHABLE.set((*places, *_REACHABLE.get()))
    try:
        yield
    finally:
        _REACHABLE.reset(token)


def places() -> tuple[Place, ...]:
    """Return all places besides the folder of this machine, in the order in which they are asked."""
    named = os.environ.get(SOURCES_VARIABLE, "").split()
    return (*_REACHABLE.get(), *(WebArtifacts(word) if "://" in word else FileArtifacts(word) for word in named))


def find(label: str) -> str | None:
    """Return the sha256 that a label stands for on this machine or in any place, or None.

    Raises:
        ArtifactError: If no place knows it, and one of them could not be asked.
    """
    failures: list[ArtifactError] = []
    for place in (local(), *places()):
        try:
            sha256 = place.find(label)
        except ArtifactError as error:
            failures.append(error)
            continue
        if sha256 is not None:
            return sha256
    if failures:
        raise failures[0]
    return None


def fetch(sha256: str) -> Path:
    """Return the file of an artifact on this machine, verified; what lies elsewhere is copied here first.

    A local copy that was damaged is replaced.

    Raises:
        ArtifactError: If it is nowhere, cannot be reached, or is damaged everywhere.
    """
    here, digits = local(), checked_sha256(sha256)
    problems: list[str] = []
    if here.path(digits).is_file():
        try:
            return here.get(digits)
        except ArtifactError as error:
            problems.append(error.message)
    for place in places():
        try:
            found = _take(here, place, digits)
        except ArtifactError as error:
            if "disk is full" in error.message:
                raise
            problems.append(f"{place.name}: {error.message}")
            continue
        if found is not None:
            return found
    asked = ", ".join([here.name, *(place.name for place in places())])
    if problems:
        raise ArtifactError(f"The file with sha256 {digits[:12]}... cannot be had: {' '.join(problems)}")
    raise ArtifactError(
        f"No place knows the file with sha256 {digits[:12]}...; asked: {asked}.",
        f"Name the folder or address that has it in {SOURCES_VARIABLE}.",
    )


def download(address: str, sha256: str) -> Path:
    """Return the file of an address on this machine, verified against the sha256 that it must have.

    Raises:
        ArtifactError: If it cannot be reached, or is another file.
    """
    here, digits = local(), checked_sha256(sha256)
    if here.path(digits).is_file():
        with contextlib.suppress(ArtifactError):
            return here.get(digits)
    try:
        with opened(address) as source:
            return here.put_stream(iter(lambda: source.read(_CHUNK), b""), digits)
    except FileNotFoundError:
        raise ArtifactError(f"There is nothing at {address}.", "Check the address.") from None


def _take(here: FileArtifacts, place: Place, sha256: str) -> Path | None:
    """Copy an artifact from a place into the folder of this machine; None if it is not there."""
    there = False
    try:
        with replacing(here.path(sha256)) as handle:
            hashing = _Hashing(handle)
            there = place.copy(sha256, hashing)  # type: ignore[arg-type]
            if not there:
                raise LookupError
            found = hashing.digest.hexdigest()
            if found != sha256:
                raise ArtifactError(f"what is stored as {sha256[:12]}... has sha256 {found[:12]}...: it is damaged.")
    except LookupError:
        return None
    return here.path(sha256)


def _pump(source: IO[bytes], target: IO[bytes]) -> None:
    while part := source.read(_CHUNK):
        target.write(part)
