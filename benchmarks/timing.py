"""Interleaved timing of two functions, and the ratio with its spread."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Timing:
    """Product against reference on one structure.

    Attributes:
        task: What was computed.
        tag: Structure.
        n_atoms: Atoms in the cell.
        reference_ms: Median time of the reference.
        product_ms: Median time of the package.
        ratio: Median over repeats of reference / product; both are run within one repeat.
        ratio_low: Smallest ratio of a repeat.
        ratio_high: Largest ratio of a repeat.
        repeats: Number of repeats.
        difference: Largest relative difference between the results of both, over all observables.
    """

    task: str
    tag: str
    n_atoms: int
    reference_ms: float
    product_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    repeats: int
    difference: float

    def as_dict(self) -> dict[str, object]:
        """Return the fields in JSON types."""
        return asdict(self)


def _milliseconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - start)


def interleave(
    reference: Callable[[], object], product: Callable[[], object], repeats: int
) -> tuple[list[float], list[float]]:
    """Return the times of both in ms; they take turns and swap who goes first, so that drift hits both alike."""
    reference_ms, product_ms = [], []
    gc.collect()
    for repeat in range(repeats):
        pair = [(reference, reference_ms), (product, product_ms)]
        for function, times in pair if repeat % 2 == 0 else reversed(pair):
            times.append(_milliseconds(function))
    return reference_ms, product_ms


def summarize(
    task: str, tag: str, n_atoms: int, reference_ms: list[float], product_ms: list[float], difference: float
) -> Timing:
    """Return medians and ratios of two lists of times, repeat by repeat."""
    ratios = [a / b for a, b in zip(reference_ms, product_ms, strict=True)]
    return Timing(
        task=task,
        tag=tag,
        n_atoms=n_atoms,
        reference_ms=statistics.median(reference_ms),
        product_ms=statistics.median(product_ms),
        ratio=statistics.median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        repeats=len(ratios),
        difference=difference,
    )
