"""Who trains and who judges: splits by material, never by frame; contiguous blocks for one trajectory."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fieldflows.datasets.frame import LabeledFrame
from fieldflows.errors import SettingsError

SPLITS: tuple[str, str, str] = ("train", "valid", "test")
"""Names of the subsets."""


class SplitConfig(BaseModel):
    """How frames are divided."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: Literal["formula", "chemical_system", "blocks"] = Field(
        default="formula",
        description="'formula': all frames of a reduced formula together, by hash. 'chemical_system': all compounds "
        "of the same elements together, by hash. 'blocks': contiguous blocks of one trajectory, for a source with a "
        "single material.",
    )
    train: float = Field(default=0.8, ge=0, le=1, description="Fraction for training.", json_schema_extra={"unit": "1"})
    valid: float = Field(
        default=0.1, ge=0, le=1, description="Fraction for validation.", json_schema_extra={"unit": "1"}
    )
    test: float = Field(default=0.1, ge=0, le=1, description="Fraction for testing.", json_schema_extra={"unit": "1"})
    salt: str = Field(
        default="fieldflows", description="Text hashed with the formula or system; another salt, another split."
    )
    gap: int = Field(
        default=0, ge=0, description="Frames left out between two blocks.", json_schema_extra={"unit": "frames"}
    )
    segments: int = Field(
        default=1,
        ge=1,
        description="Blocks: cut the trajectory into so many stretches of equal length first, each with blocks of its "
        "own, so that a trajectory through several states is judged in all of them.",
    )

    @model_validator(mode="after")
    def _fractions_sum_to_one(self) -> SplitConfig:
        total = self.train + self.valid + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + valid + test must be 1, found {total:g}")
        if self.segments > 1 and self.strategy != "blocks":
            raise ValueError("segments belongs to strategy: blocks")
        return self


@lru_cache(maxsize=65536)
def chemical_system(formula: str) -> str:
    """Return the elements of a formula, sorted and joined.

    Example:
        >>> chemical_system("Ba(NO3)2")
        'Ba-N-O'
    """
    return "-".join(sorted(set(re.findall("[A-Z][a-z]?", formula))))


def split_group(formula: str, config: SplitConfig) -> str:
    """Return what is kept together: the chemical system of a reduced formula if that is the strategy, else itself."""
    return chemical_system(formula) if config.strategy == "chemical_system" else formula


def split_of_formula(formula: str, config: SplitConfig) -> str:
    """Return the subset of a reduced formula: a hash decides, so that additions move nobody.

    u = first 8 bytes of SHA-256(salt:group), as a fraction of 2^64; train if u < train, valid if
    u < train + valid, else test.  The group is the formula, or its chemical system (:func:`split_group`).

    Example:
        >>> split_of_formula("BaTiO3", SplitConfig()) == split_of_formula("BaTiO3", SplitConfig())
        True
        >>> by_system = SplitConfig(strategy="chemical_system")
        >>> split_of_formula("BaTiO3", by_system) == split_of_formula("Ba2TiO4", by_system)
        True
    """
    digest = hashlib.sha256(f"{config.salt}:{split_group(formula, config)}".encode()).digest()
    u = int.from_bytes(digest[:8], "big") / 2**64
    if u < config.train:
        return "train"
    return "valid" if u < config.train + config.valid else "test"


def split_blocks(indices: Sequence[int], config: SplitConfig) -> list[str | None]:
    """Return the subset of each frame of one trajectory: contiguous blocks, None for frames in a gap.

    Args:
        indices: Frame numbers along the trajectory, in any order.
        config: Fractions, gap and segments; the gap is taken from both sides of a boundary, half each.
    """
    order = sorted(range(len(indices)), key=lambda k: indices[k])
    total = len(order)
    result: list[str | None] = [None] * total
    before, after = config.gap // 2, config.gap - config.gap // 2
    ends = [round(total * k / config.segments) for k in range(config.segments + 1)]
    for begin, end in pairwise(ends):
        n = end - begin
        bounds = [begin, begin + round(config.train * n), begin + round((config.train + config.valid) * n), end]
        for name, start, stop in zip(SPLITS, bounds, bounds[1:], strict=False):
            first = start + (after if start > 0 else 0)
            last = stop - (before if stop < total else 0)
            for k in range(first, last):
                result[order[k]] = name
    return result


def assign_splits(frames: Sequence[LabeledFrame], ways: Mapping[str, SplitConfig]) -> list[LabeledFrame]:
    """Return the frames with their subsets; those in a gap between blocks are left out.

    Args:
        frames: Cleaned frames.
        ways: How each source is divided, by its name.

    Raises:
        SettingsError: If a material is divided in two ways, which would leak, or blocks cut several materials.
    """
    _refuse_leaks(frames, ways)
    groups: dict[str, list[int]] = defaultdict(list)
    result: list[str | None] = [None] * len(frames)
    for i, frame in enumerate(frames):
        way = ways[frame.source]
        if way.strategy == "blocks":
            groups[frame.source].append(i)
        else:
            result[i] = split_of_formula(frame.material, way)
    for name, members in groups.items():
        materials = {frames[i].material for i in members}
        if len(materials) > 1:
            raise SettingsError(
                f"Source {name!r} holds {len(materials)} materials; split by blocks is for one.",
                "Use strategy: formula.",
            )
        for i, split in zip(members, split_blocks([frames[i].source_index for i in members], ways[name]), strict=True):
            result[i] = split
    return [frame.with_(split=split) for frame, split in zip(frames, result, strict=True) if split is not None]


def _refuse_leaks(frames: Sequence[LabeledFrame], ways: Mapping[str, SplitConfig]) -> None:
    """Raise if two sources share a material, or a chemical system that one keeps together, and divide it differently.

    Raises:
        SettingsError: Names the material and the sources.
    """
    by_system = any(way.strategy == "chemical_system" for way in ways.values())
    seen: dict[tuple[str, str], str] = {}
    for frame in frames:
        keys = [frame.material, chemical_system(frame.material)] if by_system else [frame.material]
        for kind, key in zip(("material", "system"), keys, strict=False):
            origin = seen.setdefault((kind, key), frame.source)
            one, two = ways[origin], ways[frame.source]
            together = kind == "material" or "chemical_system" in (one.strategy, two.strategy)
            if origin != frame.source and together and (one != two or "blocks" in (one.strategy, two.strategy)):
                raise SettingsError(
                    f"{key} occurs in the sources {origin!r} and {frame.source!r}, which are split differently: "
                    "it could be trained on and tested on.",
                    "Give both sources the same split by formula or by chemical system, or build two datasets.",
                )
