"""The dataset job: labeled crystals in, a packed dataset out that any later job finds by its digest."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobflow import JobConfig, job

from fieldflows.jobs.artifacts import keep_file
from fieldflows.schemas.dataset import DatasetDocument

if TYPE_CHECKING:
    from fieldflows.datasets.dataset import Dataset


@job(output_schema=DatasetDocument, config=JobConfig(expose_store=True))
def make_dataset(
    config: Mapping[str, Any] | None = None,
    base: str | None = None,
    source: str | None = None,
    directory: str | None = None,
) -> DatasetDocument:
    """Build a dataset, or take a built one, and keep it where later jobs find it.

    Args:
        config: A :class:`~fieldflows.datasets.config.DatasetConfig` in JSON types.
        base: Folder that relative paths of the configuration refer to.
        source: Directory of a dataset that is built already, in place of a configuration.
        directory: Folder to write the dataset to as well.

    Raises:
        DataError: If a file cannot be read, or no frame is left.
        SettingsError: If a path or an option is wrong.
        ArtifactError: If the packed dataset cannot be kept.
    """
    from fieldflows.datasets.config import DatasetConfig
    from fieldflows.datasets.dataset import Dataset, build_dataset

    start = time.monotonic()
    if source is not None:
        dataset, place = Dataset.load(source), source
    else:
        origin = "the configuration of the dataset job"
        settings = DatasetConfig.from_dict(dict(config or {}), None if base is None else Path(base), origin)
        dataset, place = build_dataset(settings), None
    if directory is not None:
        place = str(dataset.save(directory, overwrite=True))
    return dataset_document(dataset, place, start)


def dataset_document(dataset: Dataset, directory: str | None, start: float) -> DatasetDocument:
    """Keep a dataset and return its document.

    Args:
        dataset: The dataset.
        directory: Where it lies unpacked.
        start: Monotonic time at the beginning, in s.
    """
    from fieldflows import artifacts
    from fieldflows.datasets.archive import ARCHIVE_SUFFIX, dataset_label, keep

    manifest = dataset.manifest
    packed = artifacts.local().get(keep(dataset))
    return DatasetDocument(
        name=manifest.name,
        digest=dataset.digest,
        archive=keep_file(packed, (dataset_label(dataset.digest),), f"{dataset.digest[:12]}{ARCHIVE_SUFFIX}"),
        directory=directory,
        n_frames=manifest.n_frames,
        n_materials=manifest.n_materials,
        n_rejects=len(manifest.rejects),
        elements=tuple(manifest.elements),
        counts=manifest.counts,
        licenses={source.name: source.license for source in manifest.sources},
        overlap={
            other.name: {
                "formulas": len(other.shared_formulas),
                "structures": len({(match.source, match.source_index) for match in other.matches}),
            }
            for other in manifest.overlap
        },
        configuration=manifest.config,
        wall_time=time.monotonic() - start,
        code_version=manifest.code_version,
    )
