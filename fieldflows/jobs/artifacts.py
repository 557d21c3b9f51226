"""Files that jobs hand on: put where any worker finds them, and had back from there."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobflow import CURRENT_JOB

from fieldflows import artifacts
from fieldflows.errors import ArtifactError, DataError, SettingsError, StoreError
from fieldflows.schemas.artifact import ArtifactReference
from fieldflows.store.artifacts import StoreArtifacts, joined

if TYPE_CHECKING:
    from fieldflows.datasets.dataset import Dataset

_LOGGER = logging.getLogger(__name__)


def store_of_job() -> StoreArtifacts | None:
    """Return the artifacts in the store of the running job; None outside jobs, or if the store has no place for them.

    The job must have been made with ``JobConfig(expose_store=True)``.
    """
    job = CURRENT_JOB.job
    try:
        return StoreArtifacts.of(CURRENT_JOB.store, ("", 1) if job is None else (job.uuid, job.index))
    except StoreError as error:
        _LOGGER.warning("Files stay on this machine: %s", error)
        return None


@contextlib.contextmanager
def job_artifacts() -> Iterator[None]:
    """Let models and datasets be found in the store of the running job, inside the block."""
    kept = store_of_job()
    if kept is None:
        yield
    else:
        with artifacts.reachable(kept):
            yield


def keep_file(path: str | Path, labels: tuple[str, ...] = (), name: str | None = None) -> ArtifactReference:
    """Keep a file on this machine and in the store of the job, and return how it can be had from there.

    Args:
        path: The file.
        labels: Labels under which it shall be found.
        name: Name of the file, if not that of the path.

    Raises:
        ArtifactError: If it cannot be read, or not be written.
    """
    path = Path(path)
    here, kept = artifacts.local(), store_of_job()
    sha256 = here.put(path)
    size = path.stat().st_size
    if kept is not None:
        kept.put(path)
    for label in labels:
        here.label(label, sha256)
        if kept is not None:
            kept.label(label, sha256)
    return ArtifactReference(
        sha256=sha256,
        size=size,
        name=name or path.name,
        labels=labels,
        uri=here.path(sha256).as_uri(),
        store=None if kept is None else kept.store_name,
        chunks=() if kept is None else kept.blobs(sha256, size),
    )


def obtain(reference: ArtifactReference | Mapping[str, Any]) -> Path:
    """Return the file of a reference on this machine, verified.

    It is taken from this machine, from what came with the document, from the store of the job, from the places in
    ``FIELDFLOWS_ARTIFACT_SOURCES``, or from where the machine that made it has it.

    Raises:
        ArtifactError: If it can be had nowhere, or is damaged.
    """
    if not isinstance(reference, ArtifactReference):
        reference = ArtifactReference.from_json_dict(reference)
    here = artifacts.local()
    if here.path(reference.sha256).is_file():
        with contextlib.suppress(ArtifactError):
            return here.get(reference.sha256)
    content = joined(reference.chunks)
    if content is not None:
        return here.put_stream(content, reference.sha256)
    try:
        with job_artifacts():
            return artifacts.fetch(reference.sha256)
    except ArtifactError:
        if reference.uri is None:
            raise
        try:
            return artifacts.download(reference.uri, reference.sha256)
        except ArtifactError as error:
            _LOGGER.info("Not at %s either: %s", reference.uri, error)
        raise


def open_dataset(value: Any) -> Dataset:
    """Return the dataset that a job was given.

    Args:
        value: The document of the job that built it, or its dictionary; the directory of a built dataset; a YAML
            file that describes one; or a digest.

    Raises:
        DataError: If there is none, or it is damaged or another one.
        ArtifactError: If it cannot be fetched.
    """
    from fieldflows.datasets.archive import dataset_label, load_by_digest, unpack
    from fieldflows.datasets.config import DatasetConfig
    from fieldflows.datasets.dataset import Dataset, build_dataset

    if isinstance(value, str | Path):
        if is_digest(value):
            with job_artifacts():
                return load_by_digest(str(value))
        path = Path(value)
        return build_dataset(DatasetConfig.from_yaml(path)) if path.is_file() else Dataset.load(path)
    digest, archive, directory = (_get(value, key) for key in ("digest", "archive", "directory"))
    if digest is None or (archive is None and directory is None):
        raise SettingsError(
            "A dataset is a directory, a YAML file, a digest or the document of a dataset, "
            f"found {type(value).__name__}."
        )
    if archive is not None:
        path = obtain(archive)
        artifacts.local().label(dataset_label(digest), _get(archive, "sha256"))
        return unpack(path, digest)
    dataset = Dataset.load(directory)
    if dataset.digest != digest:
        raise DataError(f"{directory} holds the dataset {dataset.digest[:12]}..., expected {digest[:12]}....")
    return dataset


def is_digest(value: object) -> bool:
    """Return whether a value is written like the digest of a dataset: 64 hexadecimal digits."""
    text = str(value)
    return len(text) == hashlib.sha256().digest_size * 2 and set(text) <= set("0123456789abcdef")


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
