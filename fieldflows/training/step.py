"""The gradient of an effective batch, in parts that fit into memory and over several processes.

With the normalizations W_o of the whole effective batch, known from its labels before the first prediction, the loss is
a sum over parts p of it, whatever they are::

    L = Σ_p Σ_o N_o(p)/W_o,        ∂L/∂θ = Σ_p ∂/∂θ Σ_o N_o(p)/W_o

(numerators N_o as in :mod:`fieldflows.training.losses`).  Hence gradients are added, never averaged, and a part without
any label of some observable counts as it should.  Random directions and displacements are drawn for the effective
batch and then divided, so that they do not depend on the parts either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from fieldflows.backends.mace_field.batches import out_of_memory, peak_bytes
from fieldflows.backends.mace_field.derivatives import Enthalpy
from fieldflows.errors import TrainingError
from fieldflows.training.config import RunSection, TrainingConfig
from fieldflows.training.data import make_batch
from fieldflows.training.distributed import Ranks, flat_sum
from fieldflows.training.losses import displaced, random_directions, standard_normal
from fieldflows.training.response import directional_response, full_response
from fieldflows.training.sampler import SECOND, BatchLimits, FrameCost, divide, micro_batches
from fieldflows.training.setup import Setup

Gradients = list[torch.Tensor | None]
"""One tensor per trained parameter; None where nothing depends on it."""


@dataclass(frozen=True)
class EffectiveBatch:
    """What a step of the optimizer sees, and the share of this process.

    Attributes:
        indices: Frames.
        step: Number of the step, from 0.
        share: Positions in ``indices`` that this process computes.
        whole: Observable to W_o of all of it; those that are zero are left out.
        directions: (g, 3) random field directions; None for whole tensors.
        noise: Random vectors of the atoms of each frame; None without displacements.
    """

    indices: Sequence[int]
    step: int
    share: Sequence[int]
    whole: dict[str, float]
    directions: torch.Tensor | None
    noise: Sequence[torch.Tensor] | None


@dataclass(frozen=True)
class StepResult:
    """Loss of an effective batch, its parts by observable, the gradients and their 2-norm, over all processes."""

    loss: float
    parts: dict[str, float]
    gradients: Gradients
    norm: torch.Tensor


class Diverged(Exception):
    """Loss or gradient is not finite.

    Args:
        what: Which of the two.
        frames: Names of the frames whose own loss or gradient is not finite; empty if each is finite.
        members: Names of all frames of the effective batch.
    """

    def __init__(self, what: str, frames: list[str], members: list[str]) -> None:
        super().__init__(what)
        self.what, self.frames, self.members = what, frames, members


def memory_limits(run: RunSection) -> BatchLimits:
    """Return what a process computes at once."""
    return BatchLimits(run.micro_structures, run.micro_atoms, run.micro_edges)


def effective_limits(run: RunSection) -> BatchLimits:
    """Return the limits of an effective batch."""
    return BatchLimits(run.batch_structures, run.batch_atoms, run.batch_edges)


class Stepper:
    """Computes losses and gradients of effective batches.

    Args:
        config: The configuration.
        setup: Network, frames and loss.
        evaluator: The network, or the fast engine on its weights.
        ranks: The processes.
        tell: Told when memory ran out.
    """

    def __init__(
        self, config: TrainingConfig, setup: Setup, evaluator: Enthalpy, ranks: Ranks, tell: Callable[[str], None]
    ) -> None:
        self.config, self.setup, self.evaluator, self.ranks, self.tell = config, setup, evaluator, ranks, tell
        self.frames = setup.frames["train"]
        self.costs = [frame.cost for frame in self.frames]
        self.parameters = list(setup.parameters.values())
        self.limits = memory_limits(config.run)

    def begin(self, indices: Sequence[int], step: int) -> EffectiveBatch:
        """Return an effective batch: normalizations and random numbers of all of it, and the share of this process."""
        frames, run = [self.frames[i] for i in indices], self.config.run
        share = divide([self.costs[i] for i in indices], self.ranks.size)[self.ranks.rank]
        found = self.setup.loss.normalizations(frames)
        whole = {key: float(found[key]) for key in self.setup.labels if key in found and float(found[key]) != 0}
        directions = noise = None
        if self.config.loss.directions == "random":
            like = frames[0].graph["positions"].cpu()
            directions = random_directions(len(frames), run.seed, step, like)
        if run.position_noise > 0:
            sizes = [len(frame.graph["positions"]) for frame in frames]
            vectors = standard_normal(sum(sizes), run.seed, step)
            noise = [vectors[end - size : end] for end, size in zip(accumulate(sizes), sizes, strict=True)]
        return EffectiveBatch(indices, step, share, whole, directions, noise)

    def compute(self, batch: EffectiveBatch) -> StepResult:
        """Return loss and gradients of an effective batch.

        Raises:
            Diverged: If one of them is not finite; on all processes alike.
            TrainingError: If memory runs out for one frame alone.
        """
        numerators, own = self._share(batch)
        labels = self.setup.labels
        found = self.ranks.exchange([numerators.get(key, 0.0) for key in labels]).sum(axis=0)
        gradients = flat_sum(self.ranks, own, self.parameters)
        parts = {
            key: float(value) / batch.whole[key] for key, value in zip(labels, found, strict=True) if key in batch.whole
        }
        total = sum(parts.values())
        if not math.isfinite(total):
            raise self._diverged(batch, "loss")
        norm = total_norm(gradients)
        if not torch.isfinite(norm):
            raise self._diverged(batch, "gradient")
        return StepResult(total, parts, gradients, norm)

    def _share(self, batch: EffectiveBatch) -> tuple[dict[str, float], Gradients]:
        """Return numerators and gradients of the share of this process, part by part."""
        sums: dict[str, float] = {}
        total: Gradients = [None] * len(self.parameters)
        pending = self._parts(batch, batch.share)
        while pending:
            positions = pending.pop(0)
            outcome = self._attempt(batch, positions)
            if outcome is None:
                pending = self._parts(batch, [*positions, *(k for part in pending for k in part)])
                continue
            numerators, gradients = outcome
            for key, value in numerators.items():
                sums[key] = sums.get(key, 0.0) + value
            for k, gradient in enumerate(gradients):
                held = total[k]
                total[k] = gradient if held is None or gradient is None else held.add_(gradient)
                if gradient is None:
                    total[k] = held
        return sums, total

    def _parts(self, batch: EffectiveBatch, positions: Sequence[int]) -> list[list[int]]:
        costs = [self.costs[i] for i in batch.indices]
        return micro_batches(positions, costs, self.limits)

    def _attempt(self, batch: EffectiveBatch, positions: Sequence[int]) -> tuple[dict[str, float], Gradients] | None:
        """Return numerators and gradients of a part; None if memory ran out, with the limits halved."""
        try:
            return self.part(batch, positions)
        except Exception as error:
            if not out_of_memory(error):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        costs = [self.costs[batch.indices[k]] for k in positions]
        atoms, edges = sum(cost.atoms for cost in costs), sum(cost.edges for cost in costs)
        if len(positions) == 1:
            raise TrainingError(
                f"Memory ran out for {self.frames[batch.indices[positions[0]]].name} alone ({atoms} atoms, {edges} "
                f"edges): {reason}",
                "Leave it out, or use run.dtype: float32, loss.directions: random, fewer channels or more memory.",
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = BatchLimits((len(positions) + 1) // 2, max(atoms // 2, 1), max(edges // 2, 1))
        self.limits = self.limits.tightened(half)
        self.tell(
            f"Memory ran out with {len(positions)} structures ({atoms} atoms, {edges} edges) at once; from now on at "
            f"most {half.atoms} atoms and {half.edges} edges. Set run.micro_edges to say so from the start."
        )
        return None

    def part(self, batch: EffectiveBatch, positions: Sequence[int]) -> tuple[dict[str, float], Gradients]:
        """Return numerators N_o and gradients of Σ_o N_o/W_o of some frames of an effective batch.

        Args:
            batch: The effective batch, whose normalizations are used.
            positions: Places of the frames in it.
        """
        frames = [self.frames[batch.indices[k]] for k in positions]
        device = self.config.run.device
        data = make_batch(frames, self.setup.labels, device)
        if batch.noise is not None:
            random = torch.cat([batch.noise[k] for k in positions])
            data = replace(data, graph=displaced(data.graph, self.config.run.position_noise, random))
        directions = None
        if batch.directions is not None:
            directions = batch.directions[list(positions)].to(device)
            predictions = directional_response(self.evaluator, data, directions)
        else:
            predictions = full_response(self.evaluator, data, create_graph=True)
        found = self.setup.loss.numerators(predictions, data, directions)
        terms = [found[key] / batch.whole[key] for key in found if key in batch.whole]
        numerators = {key: float(value.detach()) for key, value in found.items()}
        if not terms:
            return numerators, [None] * len(self.parameters)
        loss = torch.stack(terms).sum()
        return numerators, list(torch.autograd.grad(loss, self.parameters, allow_unused=True))

    def _diverged(self, batch: EffectiveBatch, what: str) -> Diverged:
        """Return the error that names the frames of an effective batch whose own loss or gradient is not finite."""
        bad = torch.zeros(len(batch.indices), dtype=torch.float64)
        for k in batch.share:
            numerators, gradients = self.part(batch, [k])
            finite = all(math.isfinite(value) for value in numerators.values())
            bad[k] = not finite or not torch.isfinite(total_norm(gradients))
        self.ranks.exchange()
        self.ranks.add(bad)
        names = [self.frames[i].name for i in batch.indices]
        return Diverged(what, [name for name, wrong in zip(names, bad.tolist(), strict=True) if wrong], names)


def total_norm(gradients: Gradients) -> torch.Tensor:
    """Return the 2-norm of all gradients together."""
    return torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])


def step_bytes(cost: FrameCost, channels: int, layers: int, item_size: int) -> float:
    """Return about how much memory a training step takes for a frame at its peak, in bytes.

    An evaluation with second derivatives (:func:`~fieldflows.backends.mace_field.batches.peak_bytes`) and one third
    of it for each field direction, whose graph is kept for the gradient.  For 33 atoms in four crystals (128 channels,
    cut-off 5 Å, float64, on a processor) that is 0.26 GB with one direction and 0.39 GB with three, where 0.24 and 0.40
    were measured; steps without second derivatives are a guess.

    Args:
        cost: Atoms, edges, labels and directions.
        channels: Channels of the hidden features.
        layers: Interaction layers.
        item_size: Bytes of one number.
    """
    second = bool(SECOND & set(cost.labels))
    base = peak_bytes(cost.edges, cost.atoms, channels, layers, item_size, second)
    return base * (1 + cost.directions / 3) if second else 2 * base
