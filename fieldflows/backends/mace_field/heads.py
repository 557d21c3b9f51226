"""Networks with several heads: readouts, scales and atomic energies of their own on common features.

A head is a block of the readouts.  The hidden features of the last readout are masked so that only the block of a
head reaches its energy; hence the gradient of its energy does not touch the blocks of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fieldflows.backends.mace_field.basis import adopt_coupling_basis
from fieldflows.backends.mace_field.network import MACEFieldNetwork, build_network
from fieldflows.errors import BackboneError, SettingsError, suggestion


def with_heads(network: MACEFieldNetwork, heads: Mapping[str, str | None]) -> MACEFieldNetwork:
    """Return a copy of a network with the named heads first, and its other ones, unchanged, after them.

    Args:
        network: The network.
        heads: Name of each head to the head of the network that it starts as; None is the first one, or the head of
            the same name.

    Raises:
        SettingsError: If the network has no such head.
        BackboneError: If the readouts are of a kind that cannot be divided.
    """
    old = list(network.config.heads)
    names = [*heads, *(name for name in old if name not in heads)]
    sources = [old.index(_start(name, heads.get(name), old)) for name in names]
    if names == old and sources == list(range(len(old))):
        return network
    config = network.config
    energies = np.atleast_2d(np.asarray(config.atomic_energies, dtype=float))
    energies = np.broadcast_to(energies, (len(old), energies.shape[1]))[sources]
    made = build_network(
        config.model_copy(
            update={
                "heads": names,
                "atomic_energies": energies.tolist(),
                "scale": _chosen(config.scale, sources, len(old)),
                "shift": _chosen(config.shift, sources, len(old)),
            }
        ),
        dtype=network.dtype,
        seed=0,
    )
    state = network.state_dict()
    for index, readout in enumerate(network.readouts):
        state.update(_readout(f"readouts.{index}.", readout, state, sources, len(old)))
    for name in ("scale_shift.scale", "scale_shift.shift"):
        state[name] = torch.atleast_1d(state[name]).expand(len(old))[sources]
    table = torch.atleast_2d(state["atomic_energies_fn.atomic_energies"])
    state["atomic_energies_fn.atomic_energies"] = table.expand(len(old), -1)[sources]
    adopt_coupling_basis(made, state)
    own = made.state_dict()
    # masks of readouts say which outputs exist, and have the new number of heads already
    made.load_state_dict(
        {key: value if key.endswith("output_mask") else state[key].reshape(value.shape) for key, value in own.items()}
    )
    for ours, theirs in zip(made.parameters(), network.parameters(), strict=True):
        ours.requires_grad_(theirs.requires_grad)
    return made.to(network.device).train(network.training)


def set_atomic_energies(network: MACEFieldNetwork, energies: Sequence[Sequence[float]]) -> None:
    """Put atomic energies in eV, by head and element, into a network and its description."""
    table = network.atomic_energies_fn.atomic_energies
    with torch.no_grad():
        table.copy_(torch.tensor(energies, dtype=table.dtype).reshape(table.shape))
    values = [list(map(float, row)) for row in energies]
    network.config = network.config.model_copy(update={"atomic_energies": values if len(values) > 1 else values[0]})


def _start(name: str, start: str | None, old: Sequence[str]) -> str:
    if start is None:
        return name if name in old else old[0]
    if start not in old:
        raise SettingsError(
            f"Head {name!r} is to start as {start!r}, but the backbone has the heads {', '.join(old)}.",
            suggestion(start, old),
        )
    return start


def _chosen(value: float | list[float], sources: Sequence[int], count: int) -> list[float]:
    values = np.broadcast_to(np.atleast_1d(np.asarray(value, dtype=float)), (count,))
    return [float(values[i]) for i in sources]


def _readout(
    prefix: str, module: torch.nn.Module, state: Mapping[str, torch.Tensor], sources: Sequence[int], count: int
) -> dict[str, torch.Tensor]:
    """Return the weights of a readout with its blocks in another order and number."""
    kind = type(module).__name__
    if kind == "LinearReadoutBlock":
        layers = {"linear": False}
    elif kind == "NonLinearReadoutBlock":
        layers = {"linear_1": False, "linear_2": True}
    elif kind == "NonLinearBiasReadoutBlock":
        layers = {"linear_1": False, "linear_mid": True, "linear_2": True}
    else:
        raise BackboneError(f"The backbone has a {kind} as readout, to which heads cannot be added.")
    result = {}
    for name, divided in layers.items():
        layer = getattr(module, name)
        result[f"{prefix}{name}.weight"] = _linear(state[f"{prefix}{name}.weight"], layer, divided, sources, count)
        bias = state.get(f"{prefix}{name}.bias")
        if bias is not None and bias.numel():
            result[f"{prefix}{name}.bias"] = bias.view(count, -1)[list(sources)].flatten()
    return result


def _linear(
    weight: torch.Tensor, layer: torch.nn.Module, divided: bool, sources: Sequence[int], count: int
) -> torch.Tensor:
    """Return the weights of a linear map onto blocks, from common features or (divided) from the same blocks.

    e3nn divides a sum over inputs by the root of their number, which grows with the number of blocks; the weights
    make up for it.  Weights between different blocks are never used and are zero.
    """
    chosen, parts, offset = list(sources), [], 0
    for instruction in layer.instructions:  # type: ignore[union-attr]
        if instruction.i_in < 0:  # a bias
            continue
        rows, columns = instruction.path_shape
        block = weight[offset : offset + rows * columns].view(rows, count, columns // count)
        offset += rows * columns
        if not divided:
            parts.append(block[:, chosen].flatten())
            continue
        old = block.view(count, rows // count, count, columns // count)
        new = old.new_zeros(len(chosen), rows // count, len(chosen), columns // count)
        for place, source in enumerate(chosen):
            new[place, :, place] = old[source, :, source]
        parts.append((len(chosen) / count) ** 0.5 * new.flatten())
    return torch.cat(parts)
