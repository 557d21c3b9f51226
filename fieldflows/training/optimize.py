"""The optimizer and the course of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from fieldflows.training.config import OptimizerSection
from fieldflows.training.soap import SOAP, weight_blocks


def decays(name: str) -> bool:
    """Return whether a parameter is one of the interaction or product blocks, whose weights decay."""
    inside = name.startswith(("interactions.", "products."))
    return inside and ("linear." in name or "symmetric_contractions" in name) and not name.endswith("bias")


def make_optimizer(
    parameters: dict[str, torch.nn.Parameter],
    settings: OptimizerSection,
    factors: Mapping[str, float] | None = None,
    network: torch.nn.Module | None = None,
) -> torch.optim.Optimizer:
    """Return the optimizer; weight decay acts on the interaction and product blocks alone.

    The fused form reads and writes each weight and moment once per step: with many elements and channels the other
    forms spend more time on memory than the step itself is worth.

    Args:
        parameters: Name to parameter.
        settings: Kind and numbers.
        factors: Name to the factor on the learning rate (see :func:`set_learning_rate`); 1 for those left out.
        network: Where the parameters are from; SOAP learns from it which matrices they hold.
    """
    members: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        factor = 1.0 if factors is None else float(factors.get(name, 1.0))
        members.setdefault((factor, not decays(name)), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": found, "weight_decay": 0.0 if free else settings.weight_decay, "factor": factor}
        for (factor, free), found in sorted(members.items(), key=lambda item: item[0])
    ]
    if settings.kind == "soap":
        known = {} if network is None else weight_blocks(network)
        blocks = {p: known.get(name) or [(0, p.numel(), 1)] for name, p in parameters.items()}
        return SOAP(groups, blocks, lr=settings.learning_rate)
    if settings.kind == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
    return torch.optim.Adam(groups, lr=settings.learning_rate, amsgrad=settings.kind == "amsgrad", fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate, in each group times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """Return the moments of an optimizer as tensors named ``{parameter}/{moment}``."""
    return {
        f"{name}/{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if torch.is_tensor(value)
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter], tensors: dict[str, torch.Tensor]
) -> None:
    """Put the moments back that :func:`optimizer_tensors` took."""
    for name, parameter in parameters.items():
        found = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        if found:
            # fused optimizers count in single precision, beside the weights
            optimizer.state[parameter] = {
                key: value.to(parameter.device, torch.float32 if key == "step" else parameter.dtype, copy=True)
                for key, value in found.items()
            }


class Schedule:
    """The learning rate as a function of progress.

    - warm-up: linear from 0 over ``warm_up_steps``;
    - cosine: from 1 to f (``final_fraction``), (1 + cos πx)/2 (1 − f) + f with the progress x from 0 to 1;
    - plateau: multiplied by ``plateau_factor`` after ``plateau_patience`` evaluations without improvement;
    - constant.

    Args:
        settings: Kind and numbers.
    """

    def __init__(self, settings: OptimizerSection) -> None:
        self.settings = settings
        self.reduction = 1.0
        self.best = math.inf
        self.waited = 0

    def learning_rate(self, step: int, progress: float) -> float:
        """Return the learning rate of step ``step`` (from 0) at a progress between 0 and 1."""
        settings = self.settings
        factor = min(1.0, (step + 1) / settings.warm_up_steps) if settings.warm_up_steps else 1.0
        if settings.schedule == "cosine":
            x = min(1.0, max(0.0, progress))
            factor *= settings.final_fraction + (1 - settings.final_fraction) * 0.5 * (1 + math.cos(math.pi * x))
        elif settings.schedule == "plateau":
            factor *= max(self.reduction, settings.final_fraction)
        return settings.learning_rate * factor

    def observe(self, score: float) -> None:
        """Take the score of an evaluation in (lower is better)."""
        if score < self.best:
            self.best, self.waited = score, 0
            return
        self.waited += 1
        if self.waited >= self.settings.plateau_patience:
            self.reduction, self.waited = self.reduction * self.settings.plateau_factor, 0

    def state(self) -> dict[str, float]:
        """Return what a resumed run needs."""
        return {"reduction": self.reduction, "best": self.best, "waited": self.waited}

    def restore(self, state: dict[str, float]) -> None:
        """Put a state back."""
        self.reduction, self.best, self.waited = float(state["reduction"]), float(state["best"]), int(state["waited"])
