"""The same crystal twice: exact copies by a fingerprint, near copies by pymatgen's StructureMatcher."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from fieldflows.datasets.frame import LabeledFrame


class DuplicatesConfig(BaseModel):
    """What counts as the same crystal; the first one in the order of the sources is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    exact: bool = Field(default=True, description="Drop frames with the same atoms, cell and coordinates.")
    decimals: int = Field(default=5, ge=0, le=12, description="Decimals (Å; fractions) that exact copies share.")
    near: bool = Field(
        default=True, description="Drop frames of the same reduced formula that match; never within a trajectory."
    )
    volume: float = Field(
        default=0.02, gt=0, description="Largest relative difference of volume per atom.",
        json_schema_extra={"unit": "1"},
    )  # fmt: skip
    length: float = Field(
        default=0.02, gt=0, description="Fractional tolerance of lattice lengths.", json_schema_extra={"unit": "1"}
    )
    site: float = Field(
        default=0.02, gt=0, description="Tolerance of sites as a fraction of (V/n)^(1/3).",
        json_schema_extra={"unit": "1"},
    )  # fmt: skip
    angle: float = Field(default=1.0, gt=0, description="Tolerance of angles.", json_schema_extra={"unit": "degree"})


def fingerprint(frame: LabeledFrame, decimals: int = 5) -> str:
    """Return a hash of species, cell and wrapped fractional coordinates, in any order of the atoms."""
    cell = np.round(np.array(frame.atoms.cell[:]), decimals) + 0.0
    fractional = frame.atoms.get_scaled_positions(wrap=False)
    fractional = np.round(fractional - np.floor(fractional), decimals) % 1.0
    rows = np.column_stack([frame.atoms.numbers, fractional])
    rows = rows[np.lexsort(rows.T[::-1])]
    return hashlib.sha256(cell.tobytes() + rows.tobytes()).hexdigest()


def find_duplicates(
    frames: Sequence[LabeledFrame],
    config: DuplicatesConfig,
    trajectories: frozenset[str] = frozenset(),
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, tuple[int, str]]:
    """Return {position of a copy: (position of what it copies, "exact" or "near")}.

    A frame is no copy of one that lacks a label of it, nor of one of another polarization path: the label of a shared
    end point belongs to its own path.

    Args:
        frames: In order of preference.
        config: Tolerances.
        trajectories: Names of sources whose neighboring frames are alike on purpose: only exact copies count there.
        progress: Called with (done, all) formulas.
    """
    copies: dict[int, tuple[int, str]] = {}
    if config.exact:
        seen: dict[str, list[int]] = defaultdict(list)
        for i, frame in enumerate(frames):
            known = seen[fingerprint(frame, config.decimals)]
            first = next((j for j in known if _replaces(frames[j], frame)), None)
            if first is None:
                known.append(i)
            else:
                copies[i] = (first, "exact")
    if not config.near:
        return copies
    groups: dict[str, list[int]] = defaultdict(list)
    for i, frame in enumerate(frames):
        if i not in copies and frame.source not in trajectories:
            groups[frame.material].append(i)
    several = [group for group in groups.values() if len(group) > 1]
    for done, group in enumerate(several):
        _match(frames, group, config, copies)
        if progress is not None:
            progress(done + 1, len(several))
    return copies


def _replaces(kept: LabeledFrame, copy: LabeledFrame) -> bool:
    same_path = kept.extra.get("wfid") == copy.extra.get("wfid")
    return same_path and copy.labels.keys() <= kept.labels.keys()


def _match(
    frames: Sequence[LabeledFrame], group: list[int], config: DuplicatesConfig, copies: dict[int, tuple[int, str]]
) -> None:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    from fieldflows.structures import as_structure

    matcher = StructureMatcher(config.length, config.site, config.angle, primitive_cell=False, scale=False)
    reduced = {}
    kept: list[int] = []
    volumes = {i: frames[i].atoms.get_volume() / len(frames[i]) for i in group}
    for i in group:
        for j in kept:
            if abs(volumes[i] / volumes[j] - 1) > config.volume or not _replaces(frames[j], frames[i]):
                continue
            for k in (i, j):
                if k not in reduced:
                    reduced[k] = as_structure(frames[k].atoms).get_primitive_structure().get_reduced_structure()
            if len(reduced[i]) == len(reduced[j]) and matcher.fit(
                reduced[i], reduced[j], skip_structure_reduction=True
            ):
                copies[i] = (j, "near")
                break
        else:
            kept.append(i)
