"""Large arrays beside documents: Hessians, trajectories, by the key of the document and a name.

An array is kept in the additional store ``data`` (GridFS in a MongoDB) as its bytes, in chunks, with an entry that says
type, shape and sha256; all of it is verified when it is read, and nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fieldflows.errors import ArtifactError
from fieldflows.schemas.identity import NAMESPACE
from fieldflows.store.blobs import CHUNK_BYTES, Blobs, as_bytes, as_text
from fieldflows.store.collections import sibling
from fieldflows.store.patience import patiently

if TYPE_CHECKING:
    from jobflow import JobStore
    from maggma.core import Store

DATA_COLLECTION = "data"
"""Name of the additional store for large arrays, such as Hessians."""

_KINDS = "biufc"
_T = TypeVar("_T")


class Arrays:
    """Arrays in an additional store.

    Args:
        store: The additional store.
        store_name: Its name in the JobStore, for messages.

    Example:
        >>> from maggma.stores import MemoryStore
        >>> arrays = Arrays(MemoryStore(key="blob_uuid"))
        >>> arrays.put("some-key", "hessian", np.eye(6))
        >>> arrays.get("some-key", "hessian", shape=(6, 6)).sum()
        np.float64(6.0)
    """

    def __init__(self, store: Store, store_name: str = DATA_COLLECTION) -> None:
        patiently(store.connect, store)
        self._blobs = Blobs(store, store_name)

    @classmethod
    def of(cls, job_store: JobStore) -> Arrays:
        """Return the arrays that belong to a JobStore: in its additional store ``data``, or in a collection beside.

        Raises:
            StoreError: If the JobStore keeps its documents in a store that has no further collections.
        """
        return cls(sibling(job_store, DATA_COLLECTION, "blob_uuid"))

    def put(self, key: str, name: str, array: Any) -> None:
        """Store an array under the key of a document and a name; the same one twice is written once, unless damaged.

        Whoever reads meanwhile gets the old one or the new one.

        Args:
            key: Key of the document.
            name: What it is, such as "hessian".
            array: Booleans, integers, real or complex numbers, of any shape; NaN and infinity are kept.

        Raises:
            ArtifactError: If it holds anything else, or the store cannot be written.
        """
        values = np.asarray(array)
        if values.dtype.kind not in _KINDS:
            raise ArtifactError(
                f"The array {name!r} of {key} has the type {values.dtype}.", "Store numbers or truth values."
            )
        data = values.astype(values.dtype.newbyteorder("<"), order="C", copy=False).tobytes()
        identifier, digest = array_uuid(key, name), hashlib.sha256(data).hexdigest()
        chunks = -(-len(data) // CHUNK_BYTES)
        head: dict[str, Any] = {
            "dtype": values.dtype.newbyteorder("<").str,
            "shape": list(values.shape),
            "sha256": digest,
            "chunks": chunks,
            "key": key,
            "name": name,
        }
        known = self._head(identifier, key, name)
        if known == head and self._is_sound(key, name):
            return
        for number in range(chunks):
            part = data[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
            self._do(partial(self._blobs.write, _chunk(identifier, head, number), as_text(part)))
        # the entry last: an array is there once all of it is
        self._do(partial(self._blobs.write, identifier, json.dumps(head)))
        if known is not None and known["sha256"] != digest:
            self._remove_chunks(identifier, known)

    def get(
        self, key: str, name: str, dtype: DTypeLike | None = None, shape: Sequence[int | None] | None = None
    ) -> NDArray[Any]:
        """Return an array, verified.

        Args:
            key: Key of the document.
            name: What it is.
            dtype: The type that it must have; any by default.
            shape: The shape that it must have, None for any length; any shape by default.

        Raises:
            ArtifactError: If it is not there, damaged, or of another type or shape.
        """
        identifier = array_uuid(key, name)
        head = self._head(identifier, key, name)
        if head is None:
            raise ArtifactError(f"There is no array {name!r} of {key} in {self._blobs.name}.", "Compute it again.")
        kind, size = np.dtype(head["dtype"]), tuple(head["shape"])
        if dtype is not None and kind != np.dtype(dtype).newbyteorder("<"):
            raise ArtifactError(f"The array {name!r} of {key} has the type {kind}, expected {np.dtype(dtype)}.")
        if shape is not None and not _fits(size, shape):
            raise ArtifactError(f"The array {name!r} of {key} has the shape {size}, expected {tuple(shape)}.")
        data = bytearray()
        for number in range(head["chunks"]):
            text = self._do(partial(self._blobs.read, _chunk(identifier, head, number)))
            what = f"Part {number + 1} of {head['chunks']} of the array {name!r} of {key} in {self._blobs.name}"
            if text is None:
                raise ArtifactError(f"{what} is missing.", "Compute it again.")
            data += as_bytes(text, what)
        if hashlib.sha256(data).hexdigest() != head["sha256"] or len(data) != math.prod(size) * kind.itemsize:
            raise ArtifactError(f"The array {name!r} of {key} in {self._blobs.name} is damaged.", "Compute it again.")
        return np.frombuffer(data, dtype=kind).reshape(size)

    def has(self, key: str, name: str) -> bool:
        """Return whether there is an array of a document of this name."""
        return self._head(array_uuid(key, name), key, name) is not None

    def remove(self, key: str, name: str) -> bool:
        """Remove an array; return whether there was one."""
        identifier = array_uuid(key, name)
        head = self._head(identifier, key, name)
        if head is None:
            return False
        self._do(partial(self._blobs.remove, [identifier]))
        self._remove_chunks(identifier, head)
        return True

    def _is_sound(self, key: str, name: str) -> bool:
        try:
            self.get(key, name)
        except ArtifactError:
            return False
        return True

    def _remove_chunks(self, identifier: str, head: dict[str, Any]) -> None:
        chunks = [_chunk(identifier, head, number) for number in range(head["chunks"])]
        self._do(partial(self._blobs.remove, chunks))

    def _head(self, identifier: str, key: str, name: str) -> dict[str, Any] | None:
        text = self._do(partial(self._blobs.read, identifier))
        if text is None:
            return None
        try:
            head: dict[str, Any] = json.loads(text)
            is_sound = (
                np.dtype(str(head["dtype"])).kind in _KINDS
                and all(type(length) is int and length >= 0 for length in [*head["shape"], head["chunks"]])
                and len(head["sha256"]) == 64
            )
        except (ValueError, TypeError, KeyError):
            is_sound = False
        if not is_sound:
            raise ArtifactError(
                f"The entry of the array {name!r} of {key} in {self._blobs.name} is damaged.", "Compute it again."
            )
        return head

    def _do(self, action: Callable[[], _T]) -> _T:
        return patiently(action, self._blobs.store)


def array_uuid(key: str, name: str) -> str:
    """Return the deterministic uuid5 of the entry of an array."""
    return str(uuid.uuid5(NAMESPACE, "array|" + json.dumps([key, name])))


def _chunk(identifier: str, head: dict[str, Any], number: int) -> str:
    return f"{identifier}:{head['sha256'][:16]}:{number}"


def _fits(found: tuple[int, ...], wanted: Sequence[int | None]) -> bool:
    return len(found) == len(wanted) and all(b is None or a == b for a, b in zip(found, wanted, strict=True))
