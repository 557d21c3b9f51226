"""Which crystals are evaluated together: packing by cost, memory, and halving when it runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from fieldflows.errors import EvaluationError

logger = logging.getLogger(__name__)

T = TypeVar("T")

SIMILAR = 1.25
"""Crystals go together if the numbers of products that they need differ by at most this factor."""


@dataclass(frozen=True)
class Cost:
    """What a crystal costs.

    Attributes:
        size: Bytes at the peak of its evaluation (:func:`peak_bytes`); the time of one product is proportional to it.
        products: Vector-Jacobian products that it needs.
    """

    size: float
    products: int


PER_EDGE, PER_ATOM = 60.0, 3000.0
"""Numbers per channel that an evaluation holds for each neighbor pair and each atom, in two layers, with second
derivatives.  Measured as peak resident memory of the fast engine (crystals of 36 and 80 atoms, and 32 of 5 atoms at
once; correlation 3, vectors as hidden features), rounded up."""
WITHOUT_SECOND = 0.35
"""The part of it that an evaluation without second derivatives holds."""
REFERENCE = 5.0
"""The multiple of it that the reference path holds."""


def peak_bytes(
    edges: int, atoms: int, channels: int, layers: int, item_size: int, second: bool, reference: bool = False
) -> float:
    """Return about how much memory an evaluation takes at its peak, in bytes.

    Args:
        edges: Neighbor pairs.
        atoms: Atoms.
        channels: Channels of the hidden features.
        layers: Interaction layers.
        item_size: Bytes of one number.
        second: Whether second derivatives are taken.
        reference: Whether the network itself is evaluated, not the fast engine.
    """
    numbers = (PER_EDGE * edges + PER_ATOM * atoms) * channels * layers / 2
    return numbers * item_size * (1.0 if second else WITHOUT_SECOND) * (REFERENCE if reference else 1.0)


def pack(costs: Sequence[Cost], budget: float) -> list[list[int]]:
    """Return groups of indices with sizes of at most ``budget`` in all; a crystal that has more stands alone.

    A batch takes as many products as its most demanding member, so that crystals are sorted by products first and a
    batch ends where they differ by more than :data:`SIMILAR`.
    """
    order = sorted(range(len(costs)), key=lambda i: (costs[i].products, costs[i].size, i))
    groups: list[list[int]] = []
    filled, least = 0.0, 0
    for index in order:
        cost = costs[index]
        similar = cost.products <= max(SIMILAR * least, least + 1)
        if groups and filled + cost.size <= budget and similar:
            groups[-1].append(index)
            filled += cost.size
        else:
            groups.append([index])
            filled, least = cost.size, cost.products
    return groups


def run_in_batches(
    costs: Sequence[Cost],
    budget: float,
    evaluate: Callable[[list[int]], Sequence[T | Exception]],
) -> tuple[list[T | Exception], float]:
    """Evaluate everything in packed batches, and whatever happens give one outcome for each item.

    When memory runs out, the budget is halved for all that remains and the work goes on.  A batch that fails for
    another reason is halved until those that fail stand alone.

    Args:
        costs: Cost of each item.
        budget: Bytes of a batch.
        evaluate: Takes indices, returns outcomes in their order.

    Returns:
        Outcomes, and the budget at the end.
    """
    outcomes: dict[int, T | Exception] = {}
    pending = pack(costs, budget)
    while pending:
        group = pending.pop(0)
        try:
            outcomes.update(zip(group, evaluate(group), strict=True))
            continue
        except Exception as error:
            problem = error
        if len(group) == 1:
            outcomes[group[0]] = _explained(problem, costs[group[0]])
        elif out_of_memory(problem):
            _free_memory()
            budget = sum(costs[i].size for i in group) / 2
            logger.warning("memory ran out with %d crystals in a batch; batches are halved", len(group))
            rest = [*group, *(i for others in pending for i in others)]
            pending = [[rest[k] for k in part] for part in pack([costs[i] for i in rest], budget)]
            if pending[0] == group:  # one crystal more expensive than the rest together: it must go alone
                pending = [[i] for i in group] + pending[1:]
        else:
            middle = len(group) // 2
            pending = [group[:middle], group[middle:], *pending]
    return [outcomes[i] for i in range(len(costs))], budget


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("allocate memory" in text or "out of memory" in text)


def _explained(error: Exception, cost: Cost) -> Exception:
    if not out_of_memory(error):
        return error
    _free_memory()
    explained = EvaluationError(
        f"Memory ran out for one crystal alone, of an estimated need of {cost.size / 1e9:.2g} GB: "
        f"{(str(error).strip() or type(error).__name__).splitlines()[0]}",
        "Use its primitive cell, float32, fewer channels, or a machine with more memory.",
    )
    # the cause says that it may pass elsewhere; its traceback would hold the tensors
    explained.__cause__ = error.with_traceback(None)
    return explained


def _free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def available_bytes(device: torch.device) -> int | None:
    """Return the memory that can still be used on a device in bytes, or None where nobody says.

    On a GPU that is what the driver calls free plus what torch holds unused; on a CPU what the kernel calls
    available, or what a container leaves of its limit if that is less; cached files that nobody reads do not count.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    candidates = []
    meminfo = _read("/proc/meminfo")
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            candidates.append(1024 * int(line.split()[1]))
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and used.isdigit():
        fields = dict(line.split() for line in _read("/sys/fs/cgroup/memory.stat").splitlines())
        candidates.append(max(int(limit) - int(used) + int(fields.get("inactive_file", 0)), 0))
    return min(candidates, default=None)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""
