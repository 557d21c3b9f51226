"""The same crystal twice: exact copies by a fingerprint, near copies by pymatgen's StructureMatcher."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from fieldflows.datasets.frame import LabeledFrame
from fieldflows.datasets.matching import CrystalMatcher, Tolerances
from fieldflows.errors import SettingsError

if TYPE_CHECKING:
    from ase import Atoms


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
    most_pairs: int = Field(
        default=500_000, ge=0, description="Pairs of frames of one formula and volume that may be compared; more stop "
        "the build.", json_schema_extra={"unit": "1"},
    )  # fmt: skip


def fingerprint(crystal: LabeledFrame | Atoms, decimals: int = 5) -> str:
    """Return a hash of species, cell and wrapped fractional coordinates, in any order of the atoms.

    Numbers are rounded a quarter of the last decimal off the grid: published ones often have one decimal more, so that
    every tenth ends in 5 and another digit of noise would decide how it is rounded.
    """
    atoms = crystal.atoms if isinstance(crystal, LabeledFrame) else crystal
    shift = 0.25 * 10.0**-decimals
    cell = np.round(np.array(atoms.cell[:]) + shift, decimals) + 0.0
    fractional = atoms.get_scaled_positions(wrap=False)
    fractional = np.round(fractional - np.floor(fractional) + shift, decimals) % 1.0
    rows = np.column_stack([atoms.numbers, fractional])
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

    Raises:
        SettingsError: If near copies would be sought among too many pairs.
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
    _refuse_crowds(frames, several, config)
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
    matcher = CrystalMatcher(Tolerances(length=config.length, site=config.site, angle=config.angle, scale=False))
    kept: list[int] = []
    volumes = {i: frames[i].atoms.get_volume() / len(frames[i]) for i in group}
    for i in group:
        for j in kept:
            if abs(volumes[i] / volumes[j] - 1) > config.volume or not _replaces(frames[j], frames[i]):
                continue
            if matcher.same(frames[i].atoms, frames[j].atoms):
                copies[i] = (j, "near")
                break
        else:
            kept.append(i)


def _refuse_crowds(frames: Sequence[LabeledFrame], groups: Sequence[list[int]], config: DuplicatesConfig) -> None:
    """Raise if near copies would be sought among too many pairs: frames of a trajectory that nobody declared.

    Raises:
        SettingsError: Names the largest crowd.
    """
    pairs, worst, size = 0, "", 0
    for group in groups:
        volumes = np.sort([frames[i].atoms.get_volume() / len(frames[i]) for i in group])
        near = np.searchsorted(volumes, volumes * (1 + config.volume), side="right") - np.arange(len(group)) - 1
        crowd = int(near.sum())
        pairs += crowd
        if crowd > size:
            worst, size = f"{len(group)} frames of {frames[group[0]].material} ({frames[group[0]].source})", crowd
    if pairs > config.most_pairs:
        raise SettingsError(
            f"Near copies would be sought among {pairs} pairs of frames, {size} of them among {worst}; at most "
            f"{config.most_pairs} are allowed.",
            "If these are frames of a trajectory, declare is_trajectory: true for their source; else set "
            "duplicates: {near: false} or a larger most_pairs (a thousand pairs take seconds to minutes).",
        )
