"""Parts of a network by name: what is frozen, and what learns faster or slower."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from fieldflows.errors import SettingsError, suggestion
from fieldflows.training.config import TrainingConfig

FIELD_PARAMETERS: tuple[str, ...] = ("field_feats.", "field_linear.", "element_polarizability", "composition_")
"""Beginnings of the names of parameters that a field acts through."""

PRESETS: dict[str, str] = {
    "embedding": r"(node_embedding|radial_embedding)\..*",
    "interactions": r"interactions\..*",
    "products": r"products\..*",
    "readouts": r"readouts\..*",
    "field": "(" + "|".join(re.escape(start) for start in FIELD_PARAMETERS) + ").*",
    "backbone": "(?!" + "|".join(re.escape(start) for start in FIELD_PARAMETERS) + ").*",
}
"""Names of parts; those of numbered blocks may be followed by a number, as in ``interactions.0``."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with a learning rate in common.

    Attributes:
        name: The name or pattern in ``optimizer.groups``; "default" for all others.
        params: Parameters by name.
        factor: Factor on the learning rate.
    """

    name: str
    params: dict[str, torch.nn.Parameter]
    factor: float


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the parameter names that a preset or pattern means.

    Example:
        >>> matching("readouts.1", ["readouts.0.linear.weight", "readouts.1.linear_1.weight"])
        ['readouts.1.linear_1.weight']
    """
    numbered = re.fullmatch(r"(interactions|products|readouts|field)\.(\d+)", pattern)
    if pattern in PRESETS:
        return [name for name in names if re.fullmatch(PRESETS[pattern], name)]
    if numbered and numbered[1] == "field":
        return [name for name in names if re.fullmatch(rf"field_(feats|linear)\.{numbered[2]}\..*", name)]
    if numbered:
        return [name for name in names if name.startswith(f"{pattern}.")]
    return [name for name in names if fnmatchcase(name, pattern)]


def _known(pattern: str, names: Sequence[str], where: str) -> list[str]:
    found = matching(pattern, names)
    if not found:
        known = [*PRESETS, *sorted({".".join(name.split(".")[:2]) for name in names})]
        raise SettingsError(f"{where}: no parameter is called {pattern!r}.", suggestion(pattern, known))
    return found


def freeze(network: torch.nn.Module, patterns: Sequence[str]) -> list[str]:
    """Stop training what the patterns mean, and return the names of all parameters that are not trained.

    Raises:
        SettingsError: If a pattern means nothing, or nothing would be left to train.
    """
    parameters = dict(network.named_parameters())
    for pattern in patterns:
        for name in _known(pattern, list(parameters), "model.freeze"):
            parameters[name].requires_grad_(False)
    frozen = [name for name, value in parameters.items() if not value.requires_grad]
    if len(frozen) == len(parameters):
        raise SettingsError("model.freeze leaves nothing to train.", "Freeze less.")
    return frozen


def parameter_groups(network: torch.nn.Module, config: TrainingConfig) -> list[ParameterGroup]:
    """Return the trained parameters by learning rate, in the order of the configuration, all others first.

    The last pattern that means a parameter decides.

    Raises:
        SettingsError: If a pattern means nothing.
    """
    trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
    every = [name for name, _ in network.named_parameters()]
    owner = dict.fromkeys(trained, "default")
    for pattern in config.optimizer.groups:
        for name in _known(pattern, every, "optimizer.groups"):
            if name in owner:
                owner[name] = pattern
    factors = {"default": 1.0, **config.optimizer.groups}
    groups = [
        ParameterGroup(group, {name: trained[name] for name in trained if owner[name] == group}, factor)
        for group, factor in factors.items()
    ]
    return [group for group in groups if group.params]
