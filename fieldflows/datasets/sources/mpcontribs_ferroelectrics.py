"""Polarization paths in MPContribs: contributions with the workflow that computed them, from the service or saved."""

from __future__ import annotations

import json
import lzma
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fieldflows.datasets.consistency import require_consistent
from fieldflows.datasets.extxyz import RawFrame, open_text
from fieldflows.datasets.mpcontribs import RESERVED, Contribs, service_address
from fieldflows.datasets.path_frames import PathSettings, add_path, describe_polarization
from fieldflows.datasets.path_work import require_work
from fieldflows.datasets.paths import N_FRAMES, read_paths
from fieldflows.datasets.source import Progress, SourceData
from fieldflows.datasets.web import AnswerCache, WebSource
from fieldflows.datasets.workflow_paths import UNCONFIRMED, contribution_frames
from fieldflows.errors import DataError
from fieldflows.schemas.dataset import Finding, FrameFindings

REFERENCES = {
    "ferroelectrics": "Smidt et al., Sci. Data 7, 72 (2020)",
    "ferroelectrics_ext": "Ricci et al., npj Comput. Mater. 10, 15 (2024), doi 10.1038/s41524-023-01193-3",
}
"""Whom to cite, by project."""

_CONTRIBUTIONS = ("contributions", "GET /contributions/")


class MPContribsFerroelectrics(PathSettings, WebSource):
    """Contributions of the MPContribs projects ``ferroelectrics`` and ``ferroelectrics_ext`` with ten frames each.

    P_label = Σ_i (f_i − f_i(nonpolar)) a_i/Ω with f_i = p_i/quantum_i, Cartesian, in each frame's own cell.  A
    contribution without a whole path is a reject with its reason.  Of the service, ``ids``, ``filter`` or
    ``whole_project`` say what is asked; nothing is fetched unasked.
    """

    trajectory: ClassVar[bool] = True

    type: Literal["mpcontribs_ferroelectrics"] = "mpcontribs_ferroelectrics"
    project: Literal["ferroelectrics", "ferroelectrics_ext"] = Field(
        default="ferroelectrics", description="Project of MPContribs."
    )
    ids: tuple[str, ...] = Field(
        default=(), description="Contribution ids (24 hexadecimal digits) or identifiers (wfid_...)."
    )
    filter: dict[str, str | bool | int | float | list[str]] = Field(
        default={}, description="Parameters of /contributions/, such as formula: BaTiO3."
    )
    whole_project: bool = Field(default=False, description="Fetch every contribution of the project.")
    license: str = "paper CC-BY-4.0; terms of the MPContribs project"
    reference: str = Field(default="", description="Whom to cite; the paper of the project if empty.")
    energies: bool = Field(default=True, description="Keep the energies.")
    forces: bool = Field(default=True, description="Keep forces where there are some (unconfirmed convention).")
    stresses: bool = Field(default=True, description="Keep stresses where there are some (unconfirmed convention).")

    @property
    def service(self) -> str:
        """Address of the service and project."""
        return f"{service_address()}/contributions/?project={self.project}"

    @model_validator(mode="before")
    @classmethod
    def _cite_the_project(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("reference"):
            return {**data, "reference": REFERENCES.get(str(data.get("project", "ferroelectrics")), "")}
        return data

    @model_validator(mode="after")
    def _says_what_is_asked(self) -> MPContribsFerroelectrics:
        chosen = bool(self.ids or self.filter)
        reserved = sorted(name for name in self.filter if name in RESERVED or name.startswith("_"))
        if reserved:
            raise ValueError(f"a filter may not set {', '.join(reserved)}: use project, ids and limit")
        if self.whole_project and chosen:
            raise ValueError("whole_project takes everything: leave ids and filter out")
        if self.path and self.filter:
            raise ValueError("a filter asks the service, but path names saved answers: choose with ids")
        if not (self.path or chosen or self.whole_project):
            raise ValueError("say what to fetch: ids, a filter, or whole_project: true; or name saved answers in path")
        return self

    def fetch(self, cache: AnswerCache, report: Progress) -> Path:
        """Ask the service; return the file with all answers.

        Raises:
            ServiceError: If the service cannot be used, or its answers have another schema.
        """
        return Contribs(self.project, cache, report).fetch(sorted(set(self.ids)), self.filter, self._most)

    @property
    def _most(self) -> int | None:
        """Largest number of contributions: ``limit`` counts frames."""
        return None if self.limit is None else max(1, self.limit // N_FRAMES)

    def read(self, path: Path, base: Path | None = None) -> SourceData:
        """Return the labeled frames of all contributions that hold a whole path.

        Raises:
            DataError: If the file cannot be read, or no contribution holds a path.
            ConventionError: If energies, forces and stresses contradict each other.
        """
        answers = _load(path)
        contributions = self._chosen(_contributions(answers, path))
        attachments = _attachments(answers)
        data = SourceData([], 0)
        refused: list[Finding] = []
        for number, contribution in enumerate(contributions):
            problem = self._add(number, contribution, attachments, data)
            if problem is not None:
                refused.append(problem)
                data.rejects.append(self._reject(number, contribution, problem))
        self._add_unknown(contributions, answers, data)
        n_paths = len(contributions) - len(refused)
        if not n_paths:
            reason = refused[0].message if refused else "there is no contribution"
            raise DataError(f"Source {self.label!r}: {path} holds no polarization path; of the first one: {reason}.")
        self._describe(data, len(contributions), n_paths, refused)
        data.notes.extend(require_consistent(self.label, data.frames))
        notes, flags = require_work(self.label, data.frames)
        data.notes.extend(notes)
        for frame in data.frames:
            if frame.extra["wfid"] in flags:
                data.flags.setdefault(frame.source_index, []).append(flags[frame.extra["wfid"]])
        return data

    def _add(
        self, number: int, contribution: Mapping[str, Any], attachments: Mapping[str, Any], data: SourceData
    ) -> Finding | None:
        """Add the frames of a contribution, or the rejects of a path that bends; return why it is no path at all."""
        optional = [name for name, wanted in (("energy", self.energies), ("forces", self.forces),
                                              ("stress", self.stresses)) if wanted]  # fmt: skip
        frames = contribution_frames(contribution, attachments, number, optional)
        if isinstance(frames, Finding):
            return frames
        paths, broken = read_paths(frames)
        if broken:
            finding = broken[0][1]
            return finding.model_copy(update={"message": f"{contribution['identifier']}: {finding.message}"})
        data.n_frames += len(frames)
        add_path(self, paths[0], self.limits, data, _labels, contribution=str(contribution.get("id", "")))
        return None

    def _chosen(self, contributions: list[Any]) -> list[dict[str, Any]]:
        """Return the contributions that ``ids`` name, or all, as dictionaries."""
        documents = [item if isinstance(item, dict) else {"id": repr(item)[:40]} for item in contributions]
        if self.ids:
            wanted = set(self.ids)
            documents = [item for item in documents if _names(item) & wanted]
        return documents[: self._most]

    def _reject(self, number: int, contribution: Mapping[str, Any], finding: Finding) -> FrameFindings:
        return FrameFindings(
            source=self.label,
            source_index=N_FRAMES * number,
            formula=str(contribution.get("formula", "")),
            findings=[finding],
        )

    def _add_unknown(self, contributions: list[dict[str, Any]], answers: Mapping[str, Any], data: SourceData) -> None:
        """Add a reject for each id that was asked for and is not there."""
        known = {name for item in contributions for name in _names(item)}
        missing = [text for text in self.ids if text not in known] if self._most is None else []
        for offset, text in enumerate(missing):
            message = f"{text}: the project {self.project} has no contribution of this id"
            finding = Finding(code="unknown_id", value=None, threshold=None, unit="", message=message)
            data.rejects.append(self._reject(len(contributions) + offset, {}, finding))

    def _describe(self, data: SourceData, count: int, n_paths: int, refused: list[Finding]) -> None:
        """Write down what was converted, what is unconfirmed, and how many contributions are no path."""
        data.conversions = [describe_polarization("same_branch_polarization", "polarization_quanta")]
        if self.energies:
            data.conversions.append("energies_per_atom: eV per atom → energy in eV per cell")
        present = {name for frame in data.frames for name in frame.labels}
        for label, text in (("forces", "eV/Å"), ("stress", "kbar, VASP sign → eV/Å³, tensile positive")):
            if label in present:
                data.conversions.append(f"{UNCONFIRMED[label][0]}: {text} → {label}")
                data.notes.append(f"the convention of {label} follows the schema; no recorded answer confirms it")
        if self.project != "ferroelectrics":
            data.notes.append(f"the schema of {self.project} is unconfirmed: no recorded answer was at hand")
        codes = ", ".join(f"{code} {n}" for code, n in sorted(Counter(item.code for item in refused).items()))
        data.notes.append(f"{count} contributions: {n_paths} paths, {len(refused)} without one" +
                          (f" ({codes})" if codes else ""))  # fmt: skip


def _labels(raw: RawFrame) -> dict[str, NDArray[np.float64]]:
    """Return the labels of a frame besides the polarization, in internal units."""
    labels = {}
    if "energy_per_atom_eV" in raw.info:
        labels["energy"] = np.array(raw.info["energy_per_atom_eV"] * len(raw))
    for name in UNCONFIRMED:
        if f"label_{name}" in raw.info:
            labels[name] = np.asarray(raw.info[f"label_{name}"])
    return labels


def _names(contribution: Mapping[str, Any]) -> set[str]:
    """Return what a contribution can be asked for by."""
    return {str(contribution.get(key)) for key in ("id", "identifier")}


def _load(path: Path) -> Mapping[str, Any]:
    try:
        with open_text(path) as handle:
            answers = json.load(handle)
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.", "Check the path and the environment variables in it.") from None
    except (OSError, EOFError, lzma.LZMAError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}.", "It may be cut off: fetch it again.") from error
    if not isinstance(answers, dict):
        raise DataError(f"{path} holds no answers of MPContribs, expected the keys contributions and attachments.")
    return answers


def _contributions(answers: Mapping[str, Any], path: Path) -> list[Any]:
    for key in _CONTRIBUTIONS:
        answer = answers.get(key)
        items = answer.get("data") if isinstance(answer, dict) else answer
        if isinstance(items, list):
            return items
    raise DataError(f"{path} holds no contributions; it has {', '.join(map(str, answers)) or 'nothing'}.")


def _attachments(answers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the attachments by id; recorded answers describe in the key how the content is packed."""
    for key, value in answers.items():
        if str(key).startswith("attachments") and isinstance(value, dict):
            return value
    return {}
