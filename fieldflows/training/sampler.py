"""The order of the frames: a permutation per epoch that depends on seed and epoch alone, cut into batches.

Because nothing is drawn from a running generator, the position inside an epoch is all that a resumed run needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FrameCost:
    """What a frame costs: its atoms, its edges, and what it asks for.

    Frames with the same labels and the same number of field directions go together.
    """

    atoms: int
    edges: int
    labels: tuple[str, ...] = ()
    directions: int = 3

    @property
    def kind(self) -> tuple[tuple[str, ...], int]:
        """What frames of one batch have in common."""
        return self.labels, self.directions


@dataclass(frozen=True)
class BatchLimits:
    """Upper limits of a batch; a frame that exceeds one alone goes alone."""

    structures: int
    atoms: int | None = None
    edges: int | None = None

    def admits(self, structures: int, atoms: int, edges: int) -> bool:
        """Return whether a batch of that size is within the limits."""
        return (
            structures <= self.structures
            and (self.atoms is None or atoms <= self.atoms)
            and (self.edges is None or edges <= self.edges)
        )


def epoch_batches(costs: Sequence[FrameCost], limits: BatchLimits, seed: int, epoch: int) -> list[list[int]]:
    """Return the batches of an epoch as lists of frame indices; every frame occurs once.

    Frames are permuted with a generator seeded by (seed, epoch), then filled into batches in that order, frames
    with the same labels and number of field directions together so that no batch needs derivatives that few of its
    frames ask for.  The order of the batches is permuted again.

    Args:
        costs: Cost of each frame.
        limits: Limits of a batch.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
    """
    generator = np.random.default_rng([seed, epoch])
    groups: dict[tuple[tuple[str, ...], int], list[int]] = {}
    for index in generator.permutation(len(costs)).tolist():
        groups.setdefault(costs[index].kind, []).append(index)
    batches = [batch for kind in sorted(groups) for batch in _fill(groups[kind], costs, limits)]
    return [batches[k] for k in generator.permutation(len(batches)).tolist()]


def ordered_batches(costs: Sequence[FrameCost], limits: BatchLimits) -> list[list[int]]:
    """Return batches for evaluation: sorted by kind and size, so that large frames meet large ones."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i].kind, costs[i].edges, i))
    batches: list[list[int]] = []
    for kind in sorted({cost.kind for cost in costs}):
        batches += _fill([i for i in order if costs[i].kind == kind], costs, limits)
    return batches


def _fill(indices: Sequence[int], costs: Sequence[FrameCost], limits: BatchLimits) -> list[list[int]]:
    batches: list[list[int]] = []
    atoms = edges = 0
    for index in indices:
        cost = costs[index]
        if batches and limits.admits(len(batches[-1]) + 1, atoms + cost.atoms, edges + cost.edges):
            batches[-1].append(index)
            atoms += cost.atoms
            edges += cost.edges
        else:
            batches.append([index])
            atoms, edges = cost.atoms, cost.edges
    return batches
