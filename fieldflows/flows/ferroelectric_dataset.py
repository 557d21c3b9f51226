"""Building a dataset of polarization paths as a job, from MPContribs or from published files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobflow import Job, Maker

from fieldflows.datasets.sources.ferroelectric_paths import FerroelectricPaths
from fieldflows.datasets.sources.mpcontribs_ferroelectrics import MPContribsFerroelectrics
from fieldflows.errors import SettingsError
from fieldflows.flows.dataset import DatasetMaker

_KINDS = {".extxyz": "ferroelectric_paths", ".xyz": "ferroelectric_paths", ".json": "mpcontribs_ferroelectrics"}
_MODELS = (FerroelectricPaths, MPContribsFerroelectrics)
_COMPRESSED = (".xz", ".gz", ".bz2")


@dataclass
class FerroelectricDatasetMaker(Maker):
    """Make the job that builds a dataset of polarization paths; its output is a
    :class:`~fieldflows.schemas.dataset.DatasetDocument`, as that of :class:`~fieldflows.flows.dataset.DatasetMaker`.

    The service is asked on the worker, which needs the network and the key (``MPCONTRIBS_API_KEY`` or ``MP_API_KEY``
    in its environment; no job holds it).

    Attributes:
        name: Name of the job.
        dataset: Name of the dataset.
        project: Project of MPContribs: "ferroelectrics" or "ferroelectrics_ext".
        options: More settings of the sources, such as ``{"stresses": False, "flag_small": 0.5}``; each goes to the
            sources that have it.
        config: More settings of the dataset: cleaning, split, duplicates.
        directory: Folder to write the dataset to as well, on the worker; None for no folder.
        resources: Passed to the workflow manager as ``manager_config``.

    Example:
        >>> job = FerroelectricDatasetMaker().make(filter={"formula": "BaTiO3"})
        >>> job.metadata["dataset"]
        'ferroelectric'
    """

    name: str = "ferroelectric dataset"
    dataset: str = "ferroelectric"
    project: str = "ferroelectrics"
    options: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    directory: str | None = None
    resources: dict[str, Any] = field(default_factory=dict)

    def make(
        self,
        files: str | Path | Sequence[str | Path] = (),
        *,
        ids: str | Sequence[str] = (),
        filter: Mapping[str, Any] | None = None,
        whole_project: bool = False,
    ) -> Job:
        """Return the job; files and contributions may be combined.

        Args:
            files: Published paths (``.extxyz``) or saved answers of MPContribs (``.json``), compressed or not.
            ids: Contributions to fetch: their ids, or identifiers such as ``wfid_1562345097.33024928``.
            filter: Parameters of ``/contributions/`` that select what is fetched, such as ``{"formula": "BaTiO3"}``.
            whole_project: Fetch every contribution of the project.

        Raises:
            SettingsError: If there is nothing to build from, or an option is wrong.
        """
        sources = [self._file(path) for path in ([files] if isinstance(files, str | Path) else files)]
        if ids or filter or whole_project:
            asked = {
                "ids": [ids] if isinstance(ids, str) else list(ids),
                "filter": dict(filter or {}),
                "whole_project": whole_project,
            }
            kind = {"type": "mpcontribs_ferroelectrics", "project": self.project}
            sources.append({**kind, **asked})
        if not sources:
            raise SettingsError(
                "A dataset of polarization paths needs something to build from.",
                "Give files, ids, a filter, or whole_project=True.",
            )
        maker = DatasetMaker(name=self.name, directory=self.directory, resources=self.resources)
        return maker.make({"name": self.dataset, "sources": self._with_options(sources), **self.config})

    def _with_options(self, sources: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Give each source the options that it has; an option that none has goes to all, and is refused there."""
        fields = {model.model_fields["type"].default: set(model.model_fields) for model in _MODELS}
        known = set().union(*(fields[source["type"]] for source in sources))
        return [
            {**source, **{k: v for k, v in self.options.items() if k in fields[source["type"]] or k not in known}}
            for source in sources
        ]

    def _file(self, path: str | Path) -> dict[str, Any]:
        """Return the source that reads a file, by its name."""
        place = Path(path)
        stem = place.stem if place.suffix.lower() in _COMPRESSED else place.name
        kind = _KINDS.get(Path(stem).suffix.lower())
        if kind is None:
            raise SettingsError(
                f"{place} has no known ending; published paths end in .extxyz, saved answers in .json (.xz, .gz, .bz2 "
                "may follow)."
            )
        more = {"project": self.project} if kind == "mpcontribs_ferroelectrics" else {}
        return {"type": kind, "path": str(path), **more}
