"""The naive reference: one derivative at a time, every one with a graph, and the Hessian row by row.

It shares the forward pass of the network with the package and nothing else: no pooled first derivative, no skipped
graph, no symmetry.  This is how the equations read when they are typed in.
"""

from __future__ import annotations

import torch
from ase import Atoms

from fieldflows.backends.mace_field.graphs import build_graph, collate
from fieldflows.backends.mace_field.model import MACEFieldModel


def _grad(scalar: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(scalar, leaf, create_graph=True, retain_graph=True)[0]


def _energy(model: MACEFieldModel, atoms: Atoms) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    config, dtype = model.network.config, model.network.dtype
    graph = collate([build_graph(atoms, config.atomic_numbers, config.r_max, dtype)])
    positions = graph["positions"].clone().requires_grad_(True)
    strain = positions.new_zeros(1, 3, 3).requires_grad_(True)
    field = positions.new_zeros(1, 3).requires_grad_(True)
    interaction, baseline = model.network(graph, positions=positions, strain=strain, field=field)
    return (interaction + baseline)[0], positions, strain, field


def response(model: MACEFieldModel, atoms: Atoms) -> dict[str, torch.Tensor]:
    """Return energy, forces, stress, polarization, Born charges and polarizability at zero field."""
    energy, positions, strain, field = _energy(model, atoms)
    volume = atoms.get_volume()
    forces = -_grad(energy, positions)
    stress = _grad(energy, strain)[0] / volume
    polarization = -_grad(energy, field)[0] / volume
    charges = torch.stack([volume * _grad(polarization[i], positions) for i in range(3)], dim=1)
    polarizability = torch.stack([_grad(polarization[i], field)[0] for i in range(3)])
    values = {
        "energy": energy,
        "forces": forces,
        "stress": stress,
        "polarization": polarization,
        "born_effective_charges": charges,
        "polarizability": polarizability,
    }
    return {name: value.detach() for name, value in values.items()}


def hessian(model: MACEFieldModel, atoms: Atoms) -> torch.Tensor:
    """Return the (3n, 3n) Hessian at the Γ point, one backward pass per row."""
    energy, positions, _, _ = _energy(model, atoms)
    gradient = _grad(energy, positions).reshape(-1)
    rows = [torch.autograd.grad(gradient[k], positions, retain_graph=True)[0].reshape(-1) for k in range(len(gradient))]
    return torch.stack(rows).detach()
