"""Who trains and who judges: splits by material, never by frame; contiguous blocks for one trajectory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SPLITS: tuple[str, str, str] = ("train", "valid", "test")
"""Names of the subsets."""


class SplitConfig(BaseModel):
    """How frames are divided."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: Literal["formula", "blocks"] = Field(
        default="formula",
        description="'formula': all frames of a reduced formula together, by hash. 'blocks': contiguous blocks of one "
        "trajectory, for a source with a single material.",
    )
    train: float = Field(default=0.8, ge=0, le=1, description="Fraction for training.", json_schema_extra={"unit": "1"})
    valid: float = Field(
        default=0.1, ge=0, le=1, description="Fraction for validation.", json_schema_extra={"unit": "1"}
    )
    test: float = Field(default=0.1, ge=0, le=1, description="Fraction for testing.", json_schema_extra={"unit": "1"})
    salt: str = Field(default="fieldflows", description="Text hashed with the formula; another salt, another split.")
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


def split_of_formula(formula: str, config: SplitConfig) -> str:
    """Return the subset of a reduced formula: a hash decides, so that additions move nobody.

    u = first 8 bytes of SHA-256(salt:formula), as a fraction of 2^64; train if u < train, valid if
    u < train + valid, else test.

    Example:
        >>> split_of_formula("BaTiO3", SplitConfig()) == split_of_formula("BaTiO3", SplitConfig())
        True
    """
    digest = hashlib.sha256(f"{config.salt}:{formula}".encode()).digest()
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
