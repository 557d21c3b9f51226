"""What a run would do, without doing it: frames, effective batches, shares of the processes, memory."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

from fieldflows.training.config import TrainingConfig
from fieldflows.training.sampler import FrameCost, divide, epoch_batches, micro_batches
from fieldflows.training.setup import Setup
from fieldflows.training.step import effective_limits, memory_limits, step_bytes


@dataclass(frozen=True)
class Plan:
    """What the first epoch looks like.

    Attributes:
        batches: Effective batches, that is steps of the optimizer.
        structures: Mean number of structures in them.
        parts: Mean number of parts that a process computes one after the other in a step.
        largest: Structures, atoms and edges of the part that takes most memory.
        memory: Estimate of what that part takes, in bytes.
        balance: Mean of the load of the busiest process over the mean load; 1 is perfect.
        ranks: Number of processes.
    """

    batches: int
    structures: float
    parts: float
    largest: tuple[int, int, int]
    memory: float
    balance: float
    ranks: int

    def lines(self) -> list[str]:
        """Return it in words."""
        structures, atoms, edges = self.largest
        shared = f", over {self.ranks} processes (the busiest has {self.balance:.2f} of the mean load)"
        return [
            f"{self.batches} effective batches an epoch of {self.structures:.3g} structures on average"
            + (shared if self.ranks > 1 else "")
            + f", each process computes them in {self.parts:.3g} parts",
            f"largest part: {structures} structures, {atoms} atoms, {edges} edges; about {self.memory / 1e9:.2g} GB "
            "beside the weights (estimate)",
        ]


def make_plan(config: TrainingConfig, setup: Setup, ranks: int = 1) -> Plan:
    """Return the plan of a run.

    Args:
        config: The configuration.
        setup: Network and frames.
        ranks: Number of processes.
    """
    run, network = config.run, setup.network.config
    costs = [frame.cost for frame in setup.frames["train"]]
    channels = max(int(part.split("x")[0]) for part in network.hidden_irreps.split("+"))
    item = 4 if run.dtype == "float32" else 8

    def size(part: list[int]) -> float:
        return sum(step_bytes(costs[i], channels, network.num_interactions, item) for i in part)

    batches = epoch_batches(costs, effective_limits(run), run.seed, 0, mixed=run.batching == "mixed")
    parts, counts, balances = [], [], []
    for batch in batches:
        members: list[FrameCost] = [costs[i] for i in batch]
        shares = divide(members, ranks)
        loads = [sum(members[k].estimate for k in share) for share in shares]
        balances.append(max(loads) / mean(loads))
        for share in shares:
            found = micro_batches([batch[k] for k in share], costs, memory_limits(run))
            counts.append(len(found))
            parts += found
    largest = max(parts, key=size)
    extent = (len(largest), sum(costs[i].atoms for i in largest), sum(costs[i].edges for i in largest))
    return Plan(len(batches), mean(map(len, batches)), mean(counts), extent, size(largest), mean(balances), ranks)
