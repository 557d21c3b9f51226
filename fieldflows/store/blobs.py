"""Texts under identifiers in an additional store, as jobflow itself would write them."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

from fieldflows.errors import ArtifactError, StoreError
from fieldflows.store.addresses import hide_password

if TYPE_CHECKING:
    from maggma.core import Store

CHUNK_BYTES = 6 * 1024**2
"""Bytes of a chunk: 8 MB in base64, which fits into one MongoDB document."""


class Blobs:
    """The blobs of an additional store.

    Args:
        store: The additional store.
        store_name: Its name in the JobStore.
        job: uuid and index of the job that writes.
    """

    def __init__(self, store: Store, store_name: str, job: tuple[str, int] = ("", 1)) -> None:
        self.store, self.store_name, self.job = store, store_name, job
        store.connect()

    @property
    def name(self) -> str:
        """What to call the place in messages."""
        return f"the store {self.store_name!r} in {hide_password(str(self.store.name))}"

    def write(self, identifier: str, data: str) -> None:
        """Store a text under an identifier, in place of what is there.

        Raises:
            ArtifactError: If the store cannot be written.
        """
        uuid, index = self.job
        blob = {"blob_uuid": identifier, "data": data, "job_uuid": uuid, "job_index": index}
        try:
            self.store.update([blob], key="blob_uuid")
        except StoreError as error:
            raise ArtifactError(f"{self.name} cannot be written: {error}") from error
        except Exception as error:  # whatever pymongo, boto and others raise
            raise ArtifactError(f"{self.name} cannot be written: {type(error).__name__} {error}.") from error

    def read(self, identifier: str) -> str | None:
        """Return the text under an identifier, or None.

        Raises:
            ArtifactError: If the store cannot be read.
        """
        try:
            found = self.store.query_one({"blob_uuid": identifier}, ["blob_uuid", "data"])
        except NotImplementedError:
            # a worker of jobflow-remote without database has a file that is only written
            return None
        except Exception as error:  # whatever pymongo, boto and others raise
            raise ArtifactError(f"{self.name} cannot be read: {type(error).__name__} {error}.") from error
        return None if found is None else str(found["data"])

    def remove(self, identifiers: list[str]) -> None:
        """Remove what is under identifiers.

        Raises:
            ArtifactError: If the store cannot be written.
        """
        try:
            self.store.remove_docs({"blob_uuid": {"$in": identifiers}})
        except Exception as error:  # whatever pymongo, boto and others raise
            raise ArtifactError(f"{self.name} cannot be written: {type(error).__name__} {error}.") from error


def as_text(data: bytes) -> str:
    """Return bytes as the text of a blob."""
    return base64.b64encode(data).decode("ascii")


def as_bytes(text: str, what: str) -> bytes:
    """Return the bytes of the text of a blob.

    Args:
        text: The text.
        what: What it is of, for messages.

    Raises:
        ArtifactError: If it is damaged.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ArtifactError(f"{what} is damaged: it is no base64.", "Put the file there again.") from error
