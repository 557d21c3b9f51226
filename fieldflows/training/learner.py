"""What changes while a run goes on: weights, moments, averages, the best weights, and the learning rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from fieldflows.training.chemistry import Sharing
from fieldflows.training.config import TrainingConfig
from fieldflows.training.ema import MovingAverage, copy_into
from fieldflows.training.optimize import (
    Schedule,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rate,
)
from fieldflows.training.setup import Setup
from fieldflows.training.state import TrainingState
from fieldflows.training.step import Gradients


class Learner:
    """Takes gradients in.

    Args:
        config: The configuration.
        setup: Network, frames and loss.
        factors: Name of a parameter to the factor on its learning rate; 1 for those left out.

    Attributes:
        parameters: Name to trained parameter.
        schedule: Course of the learning rate.
        best: The best weights so far; empty before the first evaluation.
    """

    def __init__(self, config: TrainingConfig, setup: Setup, factors: Mapping[str, float] | None = None) -> None:
        self.parameters = setup.parameters
        self.optimizer = make_optimizer(self.parameters, config.optimizer, factors, setup.network)
        self.schedule = Schedule(config.optimizer)
        self.clip = config.optimizer.clip_norm
        strength, similarity = config.optimizer.element_sharing, config.model.element_similarity
        self.sharing = Sharing(setup.network, strength, similarity) if strength and similarity else None
        run = config.run
        averaged = run.ema_decay is not None or run.average_from is not None
        self.average = MovingAverage(self.parameters, run.ema_decay or 0.0) if averaged else None
        self.average_from = run.average_from
        self.best: dict[str, torch.Tensor] = {}

    def learn(self, gradients: Gradients, norm: torch.Tensor, rate: float, state: TrainingState) -> None:
        """Make a step of the optimizer and take the weights into the average; counts the step.

        Args:
            gradients: One per parameter; those without one stay.
            norm: 2-norm of all of them.
            rate: The learning rate.
            state: Counters, updated.
        """
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        if self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(list(self.parameters.values()), self.clip, norm)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.sharing is not None:
            self.sharing.apply(rate)
        state.step += 1
        state.batch += 1
        state.learning_rate = rate
        if self.average is not None:
            plain = self.average_from is not None and state.epoch >= self.average_from
            self.average.update(state.step, plain)

    @property
    def evaluated(self) -> Mapping[str, torch.Tensor]:
        """The weights that are evaluated: the average, if there is one."""
        return self.average.average if self.average is not None else self.parameters

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the weights that are evaluated into the network inside the block."""
        if self.average is None:
            yield
        else:
            with self.average.applied():
                yield

    def keep_best(self) -> None:
        """Take the weights that are evaluated for the best."""
        self.best = {name: value.detach().clone() for name, value in self.evaluated.items()}

    def use_best(self) -> None:
        """Put the best weights into the network."""
        copy_into(self.parameters, self.best)

    def fill(self, state: TrainingState) -> None:
        """Write weights, moments, averages and schedule into a state."""
        state.schedule = self.schedule.state()
        state.averaged = self.average.averaged if self.average is not None else 0
        parts: dict[str, Mapping[str, torch.Tensor]] = {
            "model": self.parameters,
            "average": self.average.average if self.average is not None else {},
            "best": self.best,
            "optimizer": optimizer_tensors(self.optimizer, self.parameters),
        }
        state.tensors = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}

    def adopt(self, state: TrainingState, device: str) -> None:
        """Take from a state what :meth:`fill` wrote, and drop its tensors."""
        copy_into(self.parameters, state.part("model"))
        restore_optimizer(self.optimizer, self.parameters, state.part("optimizer"))
        if self.average is not None:
            self.average.average = {name: value.to(device) for name, value in state.part("average").items()}
            self.average.averaged = state.averaged
        self.best = {name: value.to(device) for name, value in state.part("best").items()}
        self.schedule.restore(state.schedule)
        state.tensors = {}
