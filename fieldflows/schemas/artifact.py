"""Where a file is that a document speaks of: its sha256, and the ways to get at it."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from fieldflows.schemas.common import Document, quantity


class ArtifactReference(Document):
    """A file by its sha256.

    Any of the ways may be absent; what is fetched is verified.  ``chunks`` are the content itself: as jobflow's
    references to blobs in an additional store, or, where jobflow has loaded these, as base64 text.  So the file travels
    with the document to workers that see no database.
    """

    sha256: str = Field(description="Hash of the file.")
    size: int = quantity("byte", "Size of the file.")
    name: str = Field(description="Name of the file.")
    labels: tuple[str, ...] = Field((), description="Labels under which it is found, such as 'dataset/<digest>'.")
    uri: str | None = Field(None, description="Address of the file on the machine that made it.")
    store: str | None = Field(None, description="Additional store of the JobStore that holds it.")
    chunks: tuple[str | dict[str, Any], ...] = Field((), description="The content, in the order of the file.")

    def without_content(self) -> ArtifactReference:
        """Return the same without content that was loaded."""
        return self if not self.chunks else self.model_copy(update={"chunks": ()})
