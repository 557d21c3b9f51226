"""Building a dataset of dielectric tensors from the Materials Project as a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobflow import Job, Maker

from fieldflows.flows.dataset import DatasetMaker


@dataclass
class MPDielectricDatasetMaker(Maker):
    """Make the job that builds a dataset of dielectric tensors of the Materials Project.

    Its output is a :class:`~fieldflows.schemas.dataset.DatasetDocument`, as that of
    :class:`~fieldflows.flows.dataset.DatasetMaker`.  The service is asked on the worker, which needs the network and
    the key (``MP_API_KEY`` in its environment, or pymatgen's settings; no job holds it).

    Attributes:
        name: Name of the job.
        dataset: Name of the dataset.
        options: More settings of the source (:class:`~fieldflows.datasets.sources.mp_dielectric.MPDielectric`), such as
            ``{"born_charges": ["tasks", "phonon"], "deprecated": True}``.
        config: More settings of the dataset: cleaning, split, duplicates.
        directory: Folder to write the dataset to as well, on the worker; None for no folder.
        resources: Passed to the workflow manager as ``manager_config``.

    Example:
        >>> job = MPDielectricDatasetMaker().make(["mp-2133", "mp-804"])
        >>> job.metadata["dataset"]
        'mp_dielectric'
    """

    name: str = "dielectric dataset"
    dataset: str = "mp_dielectric"
    options: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    directory: str | None = None
    resources: dict[str, Any] = field(default_factory=dict)

    def make(
        self,
        material_ids: str | Sequence[str] = (),
        *,
        filter: Mapping[str, Any] | None = None,
        answers: str | Path | None = None,
    ) -> Job:
        """Return the job; one of ids, filter and saved answers is needed.

        Args:
            material_ids: Ids of the Materials Project, old or new spelling.
            filter: Which materials, by the keys of
                :class:`~fieldflows.datasets.sources.mp_dielectric.MPFilter`, such as ``{"chemsys": "Ba-O-Ti"}``.
            answers: File with saved answers.

        Raises:
            SettingsError: If none or several are given, or an option is wrong.
        """
        ids = [material_ids] if isinstance(material_ids, str) else list(material_ids)
        source: dict[str, Any] = {"type": "mp_dielectric", "material_ids": ids, **self.options}
        if filter is not None:
            source["filter"] = dict(filter)
        if answers is not None:
            source["path"] = str(answers)
        maker = DatasetMaker(name=self.name, directory=self.directory, resources=self.resources)
        return maker.make({"name": self.dataset, "sources": [source], **self.config})
