"""A dataset as one file: a compressed tar of frames and manifest, which travels to where it is needed by its digest."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from fieldflows.artifacts import fetch, find, local, replacing
from fieldflows.datasets.dataset import FRAMES_NAME, MANIFEST_NAME, Dataset
from fieldflows.errors import ArtifactError, DataError

ARCHIVE_SUFFIX = ".tar.gz"
MEMBERS = (MANIFEST_NAME, FRAMES_NAME)
MAXIMUM_BYTES = 64 * 1024**3
"""Largest size of an unpacked member: more is taken for an attack or a mistake."""

_PART = 1 << 20


def dataset_label(digest: str) -> str:
    """Return the label under which a packed dataset is found."""
    return f"dataset/{digest}"


def pack(dataset: Dataset, target: str | Path) -> Path:
    """Write a dataset into one file, atomically; the same dataset gives the same bytes.

    The file holds ``manifest.json`` and ``frames.extxyz``, with neither owner nor time.

    Raises:
        ArtifactError: If the file cannot be written.
        DataError: If there is no room for temporary files.
    """
    target = Path(target)
    with TemporaryDirectory(prefix="fieldflows-") as folder:
        directory = dataset.save(Path(folder) / "dataset")
        with (
            replacing(target) as handle,
            gzip.GzipFile("", "wb", 6, handle, mtime=0) as compressed,
            tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for name in MEMBERS:
                member = tarfile.TarInfo(name)
                member.size, member.mode = (directory / name).stat().st_size, 0o644
                with (directory / name).open("rb") as content:
                    tar.addfile(member, content)
    return target


def unpack(source: str | Path, digest: str | None = None) -> Dataset:
    """Return the dataset in a file that :func:`pack` wrote; nothing but its two members is ever written or read.

    Args:
        source: The file.
        digest: Digest that the dataset must have.

    Raises:
        DataError: If the file is damaged, holds anything else, or is another dataset.
    """
    with _unpacked(Path(source)) as directory:
        dataset = Dataset.load(directory)
    if digest is not None and dataset.digest != digest:
        raise DataError(
            f"{source} holds the dataset {dataset.digest[:12]}..., asked for {digest[:12]}....",
            "Pack the dataset again.",
        )
    return dataset


def keep(dataset: Dataset) -> str:
    """Pack a dataset into the artifacts of this machine, where its digest finds it; return the sha256 of the file.

    Raises:
        ArtifactError: If it cannot be written.
    """
    known = find_archive(dataset.digest, local_only=True)
    if known is not None:
        return known
    with TemporaryDirectory(prefix="fieldflows-") as folder:
        packed = pack(dataset, Path(folder) / f"{dataset.digest[:12]}{ARCHIVE_SUFFIX}")
        return local().put(packed, dataset_label(dataset.digest))


def find_archive(digest: str, local_only: bool = False) -> str | None:
    """Return the sha256 of the packed dataset of a digest, or None; of this machine only if it is really there."""
    if not local_only:
        return find(dataset_label(digest))
    here = local()
    sha256 = here.find(dataset_label(digest))
    try:
        return None if sha256 is None else here.get(sha256).name
    except ArtifactError:
        return None


def load_by_digest(digest: str) -> Dataset:
    """Return the dataset of a digest, from this machine or any place that can be reached.

    Raises:
        DataError: If no place knows it, or the file is damaged or another dataset.
        ArtifactError: If it cannot be fetched.
    """
    sha256 = find_archive(digest)
    if sha256 is None:
        raise DataError(
            f"No place knows a dataset with digest {digest[:12]}....",
            "Build it and keep it (`fieldflows dataset build CONFIG --out DIR --keep`), take a JobStore that holds it, "
            "or name the folder or address that has it in FIELDFLOWS_ARTIFACT_SOURCES.",
        )
    path = fetch(sha256)
    # other processes of the run find it without asking again
    if local().find(dataset_label(digest)) != sha256:
        local().label(dataset_label(digest), sha256)
    return unpack(path, digest)


@contextmanager
def _unpacked(source: Path) -> Iterator[Path]:
    """Unpack into a temporary folder."""
    with TemporaryDirectory(prefix="fieldflows-") as folder:
        directory = Path(folder)
        try:
            with tarfile.open(source, mode="r:gz") as tar:
                for name in MEMBERS:
                    _extract(tar, name, directory / name, source)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{source} is no packed dataset, or is damaged: {error}.", "Fetch it again.") from error
        except OSError as error:
            raise DataError(f"{source} cannot be unpacked: {error.strerror or error}.") from error
        yield directory


def _extract(tar: tarfile.TarFile, name: str, target: Path, source: Path) -> None:
    """Write one member by the name that is expected; paths and links that a foreign archive may hold do not count."""
    try:
        member = tar.getmember(name)
    except KeyError:
        raise DataError(f"{source} is no packed dataset: it holds no {name}.") from None
    content: IO[bytes] | None = tar.extractfile(member) if member.isreg() else None
    if content is None or member.size > MAXIMUM_BYTES:
        raise DataError(f"{source} is no packed dataset: its {name} is no plain file of a reasonable size.")
    with target.open("wb") as handle:
        while part := content.read(_PART):
            handle.write(part)
