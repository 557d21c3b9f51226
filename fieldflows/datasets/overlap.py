"""What a dataset shares with others: materials and crystals, subset by subset, so that no benchmark is trained on."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from fieldflows.datasets.duplicates import fingerprint
from fieldflows.datasets.extxyz import file_sha256
from fieldflows.datasets.frame import LabeledFrame, reduced_formula
from fieldflows.datasets.matbench import OFFICIAL_SHA256, read_matbench
from fieldflows.datasets.matching import CrystalMatcher, Tolerances
from fieldflows.datasets.source import Progress, expand_path
from fieldflows.errors import DataError
from fieldflows.schemas.dataset import Overlap, StructureMatch, SubsetOverlap

if TYPE_CHECKING:
    from ase import Atoms

    from fieldflows.datasets.dataset import Dataset

_DIGEST = re.compile(r"[0-9a-f]{64}")


class OverlapTarget(Tolerances):
    """Something to compare a dataset with; the tolerances are pymatgen's own, wide enough for other functionals.

    Example:
        >>> OverlapTarget.model_validate("runs/dielectric").kind
        'dataset'
    """

    dataset: str = Field(default="", description="Folder of a built dataset, or its digest.")
    matbench: str = Field(default="", description="The file matbench_dielectric.json.gz.")
    sha256: str = Field(
        default=OFFICIAL_SHA256,
        pattern="^([0-9a-fA-F]{64})?$",
        description="What the file of Matbench must have; empty for another file of the same form.",
    )
    index: str = Field(default="", description="For another file of Matbench: CSV with the columns row and mbid.")
    name: str = Field(default="", description="Name in the manifest; that of the other by default.")

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, data: object) -> object:
        return {"dataset": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _one(self) -> OverlapTarget:
        if bool(self.dataset) == bool(self.matbench):
            raise ValueError("name one thing to compare with: dataset or matbench")
        return self

    @property
    def kind(self) -> Literal["dataset", "matbench"]:
        """What it is."""
        return "dataset" if self.dataset else "matbench"

    @property
    def place(self) -> str:
        """Folder, digest or file as the configuration names it."""
        return self.dataset or self.matbench

    def locate(self, base: Path | None) -> Path | str:
        """Return the folder, file or digest, seen to be there before long work begins.

        Raises:
            DataError: If it is not there.
            SettingsError: If the path names a variable that is not set.
        """
        if self.dataset and _DIGEST.fullmatch(self.dataset):
            return self.dataset
        path = expand_path(self.place, base)
        if not path.exists():
            raise DataError(f"There is no {path}, which the dataset is to be compared with.", "Check `overlap:`.")
        if self.dataset:
            from fieldflows.datasets.manifest import read_manifest

            read_manifest(path)
        return path


@dataclass(frozen=True)
class Reference:
    """A crystal of the other side.

    Attributes:
        atoms: The crystal.
        formula: Reduced formula.
        name: Identifier, or source and frame number.
        split: Subset or fold there.
    """

    atoms: Atoms
    formula: str
    name: str
    split: str


@dataclass
class _Kind:
    """References that are the same crystal: the first one, and the first name in each subset."""

    atoms: Atoms
    names: dict[str, str] = field(default_factory=dict)


def find_overlap(
    frames: Sequence[LabeledFrame],
    target: OverlapTarget,
    place: Path | str,
    report: Progress,
    base: Path | None = None,
) -> Overlap:
    """Return what frames share with a dataset or benchmark.

    Args:
        frames: With their subsets.
        target: What to compare with.
        place: Where it is (:meth:`OverlapTarget.locate`).
        report: Called with ("overlap", done, all) formulas.
        base: Folder that relative paths refer to.

    Raises:
        DataError: If the other cannot be read.
    """
    if target.kind == "matbench":
        name, sha256, references = _matbench(Path(place), target, base)
    else:
        other = open_dataset(place)
        name, sha256, references = other.manifest.name, other.digest, dataset_references(other)
    return compare(frames, references, target, target.name or name, sha256, report)


def open_dataset(place: Path | str) -> Dataset:
    """Return the dataset of a folder or a digest.

    Raises:
        DataError: If there is none.
    """
    if isinstance(place, str) and _DIGEST.fullmatch(place):
        from fieldflows.datasets.archive import load_by_digest

        return load_by_digest(place)
    from fieldflows.datasets.dataset import Dataset

    return Dataset.load(place)


def dataset_references(dataset: Dataset) -> list[Reference]:
    """Return the frames of a dataset as references."""
    return [
        Reference(frame.atoms, frame.material, f"{frame.source}:{frame.source_index}", frame.split or "")
        for frame in dataset.frames
    ]


def _matbench(path: Path, target: OverlapTarget, base: Path | None) -> tuple[str, str, list[Reference]]:
    index = expand_path(target.index, base) if target.index else None
    references = [
        Reference(
            entry.atoms,
            reduced_formula(entry.raw.numbers),
            entry.mbid or f"row {entry.row}",
            "" if entry.fold is None else f"fold_{entry.fold}",
        )
        for entry in read_matbench(path, target.sha256, index)
    ]
    return "matbench_dielectric", file_sha256(path), references


def compare(
    frames: Sequence[LabeledFrame],
    references: Sequence[Reference],
    target: OverlapTarget,
    name: str,
    sha256: str,
    report: Progress,
) -> Overlap:
    """Return what frames and references share: formulas, and crystals that match (of the same formula).

    References that are the same crystal are compared as one; of those, the first of each subset is named.

    Args:
        frames: With their subsets.
        references: The other side.
        target: Tolerances, and where it was read.
        name: What it is called.
        sha256: Digest or hash of it.
        report: Called with ("overlap", done, all) formulas.
    """
    there: dict[str, list[Reference]] = defaultdict(list)
    for reference in references:
        there[reference.formula].append(reference)
    here: dict[str, list[LabeledFrame]] = defaultdict(list)
    for frame in frames:
        if frame.material in there:
            here[frame.material].append(frame)
    shared = sorted(here)
    matches: list[StructureMatch] = []
    for done, formula in enumerate(shared):
        report("overlap", done, len(shared))
        matches.extend(_matches(here[formula], there[formula], target))
    report("overlap", len(shared), len(shared))
    return Overlap(
        name=name,
        kind=target.kind,
        place=target.place,
        sha256=sha256,
        n_frames=len(references),
        n_materials=len(there),
        shared_formulas=shared,
        matches=matches,
        subsets=_subsets(here, there, matches),
        method=f"pymatgen StructureMatcher(ltol={target.length:g}, stol={target.site:g}, angle_tol={target.angle:g}, "
        f"scale={target.scale}) on primitive cells of the same reduced formula",
    )


def _matches(
    frames: Sequence[LabeledFrame], references: Sequence[Reference], target: OverlapTarget
) -> list[StructureMatch]:
    matcher = CrystalMatcher(target)
    kinds: list[_Kind] = []
    exact: dict[str, _Kind] = {}
    for reference in references:
        kind = _kind_of(reference.atoms, kinds, exact, matcher)
        if kind is None:
            kind = _Kind(reference.atoms)
            kinds.append(kind)
        exact[fingerprint(reference.atoms)] = kind
        kind.names.setdefault(reference.split, reference.name)
    found = []
    for frame in frames:
        kind = _kind_of(frame.atoms, kinds, exact, matcher)
        for split, name in kind.names.items() if kind else ():
            found.append(
                StructureMatch(
                    formula=frame.material,
                    source=frame.source,
                    source_index=frame.source_index,
                    split=frame.split or "",
                    other=name,
                    other_split=split,
                )
            )
    return found


def _kind_of(atoms: Atoms, kinds: Sequence[_Kind], exact: dict[str, _Kind], matcher: CrystalMatcher) -> _Kind | None:
    known = exact.get(fingerprint(atoms))
    return known or next((kind for kind in kinds if matcher.same(atoms, kind.atoms)), None)


def _subsets(
    here: dict[str, list[LabeledFrame]], there: dict[str, list[Reference]], matches: Sequence[StructureMatch]
) -> list[SubsetOverlap]:
    formulas: dict[tuple[str, str], set[str]] = defaultdict(set)
    frames: dict[tuple[str, str], int] = defaultdict(int)
    structures: dict[tuple[str, str], int] = defaultdict(int)
    for formula, members in here.items():
        others = {reference.split for reference in there[formula]}
        for frame in members:
            for other in others:
                formulas[frame.split or "", other].add(formula)
                frames[frame.split or "", other] += 1
    for match in matches:
        structures[match.split, match.other_split] += 1
    return [
        SubsetOverlap(
            split=split,
            other_split=other,
            n_formulas=len(formulas[split, other]),
            n_frames=frames[split, other],
            n_structures=structures[split, other],
        )
        for split, other in sorted(formulas)
    ]
