"""Interleaved timing of several ways to one result, and their ratios with spread."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

Side = Callable[[], object]
"""What is timed.  A side that returns an :class:`Estimate` reports its own time, because it computed only a part."""


@dataclass(frozen=True)
class Estimate:
    """A time that was worked out from a part of the work, in seconds."""

    seconds: float


@dataclass(frozen=True)
class Timing:
    """The package against the baseline on one subject.

    Attributes:
        task: What was computed.
        tag: Structure or batch.
        formula: Its chemical formula.
        n_atoms: Atoms in the cell or batch.
        variant: How the package computed it.
        baseline_ms: Median time of the baseline.
        product_ms: Median time of the package.
        ratio: Median over repeats of baseline / package, both run within one repeat.
        ratio_low: Smallest ratio of a repeat.
        ratio_high: Largest ratio of a repeat.
        repeats: Number of repeats.
        difference: Largest relative difference between the results of both, over all observables.
        baseline_rows: Rows of the Hessian that the baseline computed, of how many; None if it computed everything.
    """

    task: str
    tag: str
    formula: str
    n_atoms: int
    variant: str
    baseline_ms: float
    product_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    repeats: int
    difference: float
    baseline_rows: tuple[int, int] | None = None

    def as_dict(self) -> dict[str, object]:
        """Return the fields in JSON types."""
        return asdict(self)


def _seconds(side: Side) -> float:
    start = time.perf_counter()
    result = side()
    elapsed = time.perf_counter() - start
    return result.seconds if isinstance(result, Estimate) else elapsed


def interleave(sides: Mapping[str, Side], repeats: int) -> dict[str, list[float]]:
    """Return the times of all sides in ms; they take turns, and each repeat begins with another one.

    Drift of the machine therefore hits all of them alike.
    """
    names = list(sides)
    times: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        gc.collect()
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(1e3 * _seconds(sides[name]))
    return times


def summarize(
    task: str,
    subject: tuple[str, str, int],
    variant: str,
    baseline_ms: list[float],
    product_ms: list[float],
    difference: float,
    baseline_rows: tuple[int, int] | None = None,
) -> Timing:
    """Return medians and ratios of two lists of times, repeat by repeat.

    Args:
        task: What was computed.
        subject: Tag, formula and number of atoms.
        variant: How the package computed it.
        baseline_ms: Times of the baseline.
        product_ms: Times of the package in the same repeats.
        difference: Largest relative difference of the results.
        baseline_rows: Rows of the Hessian that the baseline computed, and all of them, if it extrapolated.
    """
    ratios = [a / b for a, b in zip(baseline_ms, product_ms, strict=True)]
    return Timing(
        task,
        *subject,
        variant=variant,
        baseline_ms=statistics.median(baseline_ms),
        product_ms=statistics.median(product_ms),
        ratio=statistics.median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        repeats=len(ratios),
        difference=difference,
        baseline_rows=baseline_rows,
    )
