"""Baseline A: Eq. 17 on mace-torch's own modules, one crystal at a time, with vector-Jacobian products shared.

The network is :class:`MACEFieldNetwork`, whose blocks are those of mace-torch (radial embedding, interactions,
products, readouts).  One backward pass gives forces, stress and polarization together, one more per Cartesian field
direction Born charges and polarizability together, and one per row the Hessian through the graph of the forces.
Nothing else of the package's speed is in it: no engine, no symmetry, no batches.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms

from fieldflows.backends.mace_field._mace import contained_imports
from fieldflows.backends.mace_field.graphs import Graph, build_graph, to_device
from fieldflows.backends.mace_field.network import MACEFieldNetwork

RESPONSE = ("energy", "forces", "stress", "polarization", "born_effective_charges", "polarizability")


def graph_of(network: MACEFieldNetwork, atoms: Atoms) -> Graph:
    """Return the graph of a crystal, from the compiled neighbor list that the package uses as well."""
    graph = build_graph(atoms, network.config.atomic_numbers, network.config.r_max, network.dtype)
    return to_device(graph, network.device)


def clock(network: MACEFieldNetwork) -> float:
    """Return the time in seconds when all work handed to the device so far is done."""
    if network.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def response(network: MACEFieldNetwork, atoms: Atoms | Graph, create_graph: bool = False) -> dict[str, torch.Tensor]:
    """Return energy, forces, stress, polarization, Born charges and polarizability at zero field.

    Args:
        network: The network.
        atoms: A crystal, or the graph of one or more.
        create_graph: Keep the graph of the results, for the gradient of a loss by the parameters.
    """
    graph = atoms if isinstance(atoms, dict) else graph_of(network, atoms)
    count = graph["ptr"].numel() - 1
    positions = graph["positions"].clone().requires_grad_(True)
    strain = positions.new_zeros(count, 3, 3).requires_grad_(True)
    field = positions.new_zeros(count, 3).requires_grad_(True)
    interaction, reference = network(graph, positions=positions, strain=strain, field=field)
    by_field, by_positions, by_strain = torch.autograd.grad(
        interaction.sum(), (field, positions, strain), create_graph=True
    )
    rows = [
        torch.autograd.grad(
            by_field[:, i].sum(), (positions, field), retain_graph=create_graph or i < 2, create_graph=create_graph
        )
        for i in range(3)
    ]
    volume = torch.linalg.det(graph["cell"].view(-1, 3, 3)).abs()
    values = {
        "energy": interaction + reference,
        "forces": -by_positions,
        "stress": by_strain / volume[:, None, None],
        "polarization": -by_field / volume[:, None],
        "born_effective_charges": -torch.stack([row[0] for row in rows], dim=1),
        "polarizability": -torch.stack([row[1] for row in rows], dim=1) / volume[:, None, None],
    }
    return values if create_graph else {name: value.detach() for name, value in values.items()}


def one(values: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return the response of one crystal as arrays in the shapes of ``Response``."""
    per_graph = ("energy", "stress", "polarization", "polarizability")
    return {k: (v[0] if k in per_graph else v).double().cpu().numpy() for k, v in values.items()}


@dataclass(frozen=True)
class Rows:
    """Some rows of a Hessian and what they took.

    Attributes:
        indices: Which rows.
        values: (len(indices), 3n) in eV/Å².
        seconds: Estimated time of all 3n rows: that of energy and first derivative once, and 3n times the mean row.
        complete: Whether all rows were computed, so that nothing was extrapolated.
    """

    indices: tuple[int, ...]
    values: np.ndarray
    seconds: float
    complete: bool


def hessian_rows(network: MACEFieldNetwork, atoms: Atoms, limit: int | None = None) -> Rows:
    """Return rows of the Hessian at the Γ point, one backward pass per row.

    Args:
        network: The network.
        atoms: A crystal.
        limit: Compute only so many rows, evenly spread, and extrapolate the time, if there are four times more.
    """
    start = clock(network)
    graph = graph_of(network, atoms)
    positions = graph["positions"].clone().requires_grad_(True)
    interaction, _ = network(graph, positions=positions)
    (gradient,) = torch.autograd.grad(interaction.sum(), positions, create_graph=True)
    flat = gradient.reshape(-1)
    total = len(flat)
    count = total if limit is None or total <= 4 * limit else limit
    indices = tuple(int(i) for i in np.linspace(0, total - 1, count).round()) if count > 1 else (0,)
    prepared = clock(network)
    rows = [torch.autograd.grad(flat[k], positions, retain_graph=True)[0].reshape(-1) for k in indices]
    finished = clock(network)
    seconds = prepared - start + (finished - prepared) * total / len(indices)
    return Rows(indices, torch.stack(rows).double().cpu().numpy(), seconds, count == total)


def scripted(network: MACEFieldNetwork) -> MACEFieldNetwork:
    """Return the same network with e3nn's modules compiled by TorchScript, which is how mace-torch builds them."""
    with contained_imports():
        from e3nn import get_optimization_defaults, set_optimization_defaults

    options, default = dict(get_optimization_defaults()), torch.get_default_dtype()
    torch.set_default_dtype(network.dtype)
    set_optimization_defaults(jit_script_fx=True)
    try:
        twin = MACEFieldNetwork(network.config)
    finally:
        set_optimization_defaults(**options)
        torch.set_default_dtype(default)
    twin.load_state_dict(network.state_dict())
    return twin.eval().requires_grad_(False)
