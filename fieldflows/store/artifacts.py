"""Artifacts in a JobStore: files by their sha256, in GridFS or whatever its additional store is.

A file is kept in chunks, each a blob as jobflow itself would write it (``blob_uuid``, ``data``, ``job_uuid``,
``job_index``), under identifiers that follow from the sha256.  A document may therefore refer to the chunks in
jobflow's own way, and every workflow engine moves them along.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fieldflows.artifacts import FileArtifacts, checked_label, checked_sha256, file_sha256
from fieldflows.errors import ArtifactError, StoreError

if TYPE_CHECKING:
    from jobflow import JobStore
    from maggma.core import Store

__all__ = ["ADDITIONAL_STORES", "CHUNK_BYTES", "FileArtifacts", "StoreArtifacts", "joined"]

ADDITIONAL_STORES = ("artifacts", "data")
"""Additional stores of a JobStore that may hold artifacts; the first that exists is taken."""

CHUNK_BYTES = 6 * 1024**2
"""Bytes of a chunk: 8 MB in base64, which fits into one MongoDB document."""

_HEAD = "artifact"


class StoreArtifacts:
    """Artifacts in an additional store.

    Args:
        store: The additional store.
        store_name: Its name in the JobStore.
        job: uuid and index of the job that writes, for the blobs.

    Example:
        >>> from maggma.stores import MemoryStore
        >>> artifacts = StoreArtifacts(MemoryStore(key="blob_uuid"), "data")
        >>> sha256 = artifacts.put(__file__, label="example/source")
        >>> artifacts.find("example/source") == sha256
        True
    """

    def __init__(self, store: Store, store_name: str, job: tuple[str, int] = ("", 1)) -> None:
        self.store, self.store_name, self.job = store, store_name, job
        store.connect()

    @classmethod
    def of(cls, job_store: JobStore | None, job: tuple[str, int] = ("", 1)) -> StoreArtifacts | None:
        """Return the artifacts of a JobStore; None if it has no additional store for them."""
        stores = {} if job_store is None else job_store.additional_stores
        found = next((name for name in ADDITIONAL_STORES if name in stores), None)
        return None if found is None else cls(stores[found], found, job)

    @property
    def name(self) -> str:
        """What to call the place in messages."""
        from fieldflows.store.patience import hide_password

        return f"the store {self.store_name!r} in {hide_password(str(self.store.name))}"

    def put(self, source: str | Path, label: str | None = None) -> str:
        """Store a file and return its sha256; chunks that are there already are not written again.

        Raises:
            ArtifactError: If the file cannot be read, or the store not be written.
        """
        sha256 = file_sha256(source)
        size = Path(source).stat().st_size
        if self._head(sha256) is None:
            number = 0
            with Path(source).open("rb") as handle:
                while part := handle.read(CHUNK_BYTES):
                    self._write(chunk_id(sha256, number), base64.b64encode(part).decode("ascii"))
                    number += 1
            # last: an artifact is there once all of it is
            head = {"sha256": sha256, "size": size, "chunks": number, "name": Path(source).name}
            self._write(f"{_HEAD}:{sha256}", json.dumps(head))
        if label is not None:
            self.label(label, sha256)
        return sha256

    def blobs(self, sha256: str, size: int) -> tuple[dict[str, Any], ...]:
        """Return jobflow's references to the chunks of an artifact that was put."""
        count = -(-size // CHUNK_BYTES)
        return tuple(
            {"@class": "", "@module": "", "blob_uuid": chunk_id(sha256, number), "store": self.store_name}
            for number in range(count)
        )

    def label(self, label: str, sha256: str) -> None:
        """Let a label stand for an artifact, from now on."""
        self._write(f"{_HEAD}-label:{checked_label(label)}", checked_sha256(sha256))

    def find(self, label: str) -> str | None:
        """Return the sha256 that a label stands for, or None."""
        return self._read(f"{_HEAD}-label:{checked_label(label)}")

    def copy(self, sha256: str, handle: IO[bytes]) -> bool:
        """Write the content of an artifact; return False if it is not there.

        Raises:
            ArtifactError: If a part of it is missing or damaged.
        """
        head = self._head(sha256)
        if head is None:
            return False
        for number in range(head["chunks"]):
            text = self._read(chunk_id(sha256, number))
            if text is None:
                raise ArtifactError(
                    f"Part {number + 1} of {head['chunks']} of the file {sha256[:12]}... is missing in {self.name}."
                )
            handle.write(_decoded(text, f"Part {number + 1} of the file {sha256[:12]}... in {self.name}"))
        return True

    def get(self, sha256: str) -> Path:
        """Return the file of an artifact on this machine, verified.

        Raises:
            ArtifactError: If it is not there or damaged.
        """
        from fieldflows.artifacts import fetch, reachable

        with reachable(self):
            return fetch(sha256)

    def _head(self, sha256: str) -> dict[str, Any] | None:
        text = self._read(f"{_HEAD}:{checked_sha256(sha256)}")
        try:
            head = None if text is None else json.loads(text)
            return None if head is None else {"chunks": int(head["chunks"]), "size": int(head["size"])}
        except (ValueError, TypeError, KeyError) as error:
            raise ArtifactError(
                f"The entry of the file {sha256[:12]}... in {self.name} is damaged.", "Put it there again."
            ) from error

    def _write(self, identifier: str, data: str) -> None:
        uuid, index = self.job
        blob = {"blob_uuid": identifier, "data": data, "job_uuid": uuid, "job_index": index}
        try:
            self.store.update([blob], key="blob_uuid")
        except StoreError as error:
            raise ArtifactError(f"{self.name} cannot be written: {error}") from error
        except Exception as error:  # whatever pymongo, boto and others raise
            raise ArtifactError(f"{self.name} cannot be written: {type(error).__name__} {error}.") from error

    def _read(self, identifier: str) -> str | None:
        try:
            found = self.store.query_one({"blob_uuid": identifier}, ["blob_uuid", "data"])
        except NotImplementedError:
            # a worker of jobflow-remote without database has a file that is only written
            return None
        except Exception as error:  # whatever pymongo, boto and others raise
            raise ArtifactError(f"{self.name} cannot be read: {type(error).__name__} {error}.") from error
        return None if found is None else str(found["data"])


def chunk_id(sha256: str, number: int) -> str:
    """Return the identifier of a chunk."""
    return f"{_HEAD}:{checked_sha256(sha256)}:{number}"


def joined(chunks: tuple[str | dict[str, Any], ...]) -> Iterator[bytes] | None:
    """Return the content that came with a document; None if it was not loaded."""
    if not chunks or not all(isinstance(chunk, str) for chunk in chunks):
        return None
    return (_decoded(str(chunk), f"Part {number + 1} of the file") for number, chunk in enumerate(chunks))


def _decoded(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ArtifactError(f"{what} is damaged: it is no base64.", "Put the file there again.") from error
