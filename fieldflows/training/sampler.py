"""The order of the frames: a permutation per epoch that depends on seed and epoch alone, cut into effective batches.

Because nothing is drawn from a running generator, the position inside an epoch is all that a resumed run needs.

An effective batch is what a step of the optimizer sees.  It is formed without regard to processes and memory, then
divided over the processes by cost, and each share is cut into micro-batches that fit into memory and ask for the same
derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fieldflows.backends.mace_field.batches import PER_ATOM, PER_EDGE

SECOND = frozenset({"born_effective_charges", "polarizability"})
"""Labels that cost one second derivative per field direction."""


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

    @property
    def estimate(self) -> float:
        """Relative time of a step: the numbers that an evaluation holds, times its derivatives.

        Energy and first derivatives count as two; each field direction of second derivatives as one more.
        """
        directions = self.directions if SECOND & set(self.labels) else 0
        return (PER_EDGE * self.edges + PER_ATOM * self.atoms) * (2 + directions)


@dataclass(frozen=True)
class BatchLimits:
    """Upper limits of a batch, None for no limit; a frame that exceeds one alone goes alone."""

    structures: int | None = None
    atoms: int | None = None
    edges: int | None = None

    def admits(self, structures: int, atoms: int, edges: int) -> bool:
        """Return whether a batch of that size is within the limits."""
        return (
            (self.structures is None or structures <= self.structures)
            and (self.atoms is None or atoms <= self.atoms)
            and (self.edges is None or edges <= self.edges)
        )

    def tightened(self, other: BatchLimits) -> BatchLimits:
        """Return the smaller of each limit."""
        pairs = ((self.structures, other.structures), (self.atoms, other.atoms), (self.edges, other.edges))
        return BatchLimits(*(min((v for v in pair if v is not None), default=None) for pair in pairs))


def epoch_batches(
    costs: Sequence[FrameCost], limits: BatchLimits, seed: int, epoch: int, mixed: bool = False
) -> list[list[int]]:
    """Return the effective batches of an epoch as lists of frame indices; every frame occurs once.

    Frames are permuted with a generator seeded by (seed, epoch), then filled into batches in that order, frames
    with the same labels and number of field directions together so that no batch needs derivatives that few of its
    frames ask for.  The order of the batches is permuted again.

    Mixed batches hold frames of any kind.  The n frames of a kind are put at (k + u)/n of the epoch with k from 0 and
    one random u between 0 and 1, so that every batch gets its part of each label, rare ones included.

    Args:
        costs: Cost of each frame.
        limits: Limits of a batch.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        mixed: Whether a batch may hold frames of several kinds.
    """
    generator = np.random.default_rng([seed, epoch])
    groups: dict[tuple[tuple[str, ...], int], list[int]] = {}
    for index in generator.permutation(len(costs)).tolist():
        groups.setdefault(costs[index].kind, []).append(index)
    if mixed:
        places = []
        for kind in sorted(groups):
            offset, count = generator.random(), len(groups[kind])
            places += [((k + offset) / count, index) for k, index in enumerate(groups[kind])]
        batches = _fill([index for _, index in sorted(places)], costs, limits)
    else:
        batches = [batch for kind in sorted(groups) for batch in _fill(groups[kind], costs, limits)]
    return [batches[k] for k in generator.permutation(len(batches)).tolist()]


def divide(costs: Sequence[FrameCost], ranks: int) -> list[list[int]]:
    """Return which frames each process computes, by longest processing time first (Graham, 1969).

    The most expensive frame that is left goes to the process with the least to do, so that the largest load exceeds
    the best possible one by a third at most.  Frames keep their order within a share; a share may be empty.

    Args:
        costs: Cost of each frame.
        ranks: Number of processes.
    """
    loads, shares = [0.0] * ranks, [[] for _ in range(ranks)]  # type: tuple[list[float], list[list[int]]]
    for k in sorted(range(len(costs)), key=lambda k: (-costs[k].estimate, k)):
        rank = min(range(ranks), key=lambda r: (loads[r], r))
        shares[rank].append(k)
        loads[rank] += costs[k].estimate
    return [sorted(share) for share in shares]


def micro_batches(indices: Sequence[int], costs: Sequence[FrameCost], limits: BatchLimits) -> list[list[int]]:
    """Return frames cut into parts of one kind within limits, in their order."""
    kinds = sorted({costs[i].kind for i in indices})
    return [part for kind in kinds for part in _fill([i for i in indices if costs[i].kind == kind], costs, limits)]


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
