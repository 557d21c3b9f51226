"""Exact derivatives of the electric enthalpy.

    forces f = −∂F/∂u            stress σ = (1/Ω) ∂F/∂ε           P = −(1/Ω) ∂F/∂𝓔
    Z*[κ, i, j] = ∂f_κj/∂𝓔_i      α_ij = −(1/Ω) ∂²F/∂𝓔_i∂𝓔_j       H = ∂²F/∂u∂u

Derivatives are taken on the interaction part of F; atomic baselines are constant.  Crystals of a batch do not
interact, so that one vector-Jacobian product serves all of them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import torch

from fieldflows.backends.mace_field.graphs import Graph, volumes
from fieldflows.observables import ELECTRONIC_OBSERVABLES


class Enthalpy(Protocol):
    """The function F(R, 𝓔) of a batch: the network, or the fast engine on its weights."""

    @property
    def device(self) -> torch.device:
        """Where it is evaluated."""
        ...

    def __call__(
        self,
        graph: Graph,
        positions: torch.Tensor | None = None,
        strain: torch.Tensor | None = None,
        field: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return interaction part and atomic baseline of F, each (g,) in eV."""
        ...


def respond(
    network: Enthalpy,
    graph: Graph,
    observables: Collection[str],
    fields: torch.Tensor | None = None,
    create_graph: bool = False,
) -> dict[str, torch.Tensor]:
    """Return observables of a batch, computing no derivative that nobody asked for.

    Args:
        network: The network, or the fast engine.
        graph: A batch of g crystals with n atoms in all.
        observables: Names; ``hessian`` has a function of its own.
        fields: (g, 3) in V/Å; zero by default.
        create_graph: Keep the graph of the results, for the gradient of a loss by the parameters.

    Returns:
        energy (g,) eV, forces (n, 3) eV/Å, stress (g, 3, 3) eV/Å³, polarization (g, 3) e/Å²,
        born_effective_charges (n, 3, 3) e as [atom, polarization, displacement], polarizability (g, 3, 3) e/(V·Å);
        those that were asked for.
    """
    wanted = set(observables)
    second = wanted & {"born_effective_charges", "polarizability"}
    needs_field = bool(wanted & set(ELECTRONIC_OBSERVABLES))
    needs_positions = bool(wanted & {"forces", "born_effective_charges"})
    n_graphs = graph["ptr"].numel() - 1

    positions = graph["positions"].detach()
    if needs_positions:
        positions = positions.clone().requires_grad_(True)
    strain = None
    if "stress" in wanted:
        strain = positions.new_zeros(n_graphs, 3, 3).requires_grad_(True)
    field = fields
    if needs_field:
        field = positions.new_zeros(n_graphs, 3) if fields is None else fields.detach().clone()
        field = field.requires_grad_(True)

    interaction, baseline = network(graph, positions=positions, strain=strain, field=field)
    results: dict[str, torch.Tensor] = {}
    if "energy" in wanted:
        results["energy"] = interaction + baseline

    first_inputs = {}
    if needs_field:
        first_inputs["field"] = field
    if "forces" in wanted:
        first_inputs["positions"] = positions
    if strain is not None:
        first_inputs["strain"] = strain
    if not first_inputs:
        return _finish(results, create_graph)
    first = dict(
        zip(
            first_inputs,
            _gradient(interaction.sum(), list(first_inputs.values()), bool(second) or create_graph, create_graph),
            strict=True,
        )
    )
    volume = volumes(graph)
    if "forces" in wanted:
        results["forces"] = -first["positions"]
    if "stress" in wanted:
        results["stress"] = first["strain"] / volume[:, None, None]
    if "polarization" in wanted:
        results["polarization"] = -first["field"] / volume[:, None]
    if second:
        second_inputs = {}
        if "born_effective_charges" in wanted:
            second_inputs["positions"] = positions
        if "polarizability" in wanted:
            second_inputs["field"] = field
        rows = [
            _gradient(first["field"][:, i].sum(), list(second_inputs.values()), create_graph, True) for i in range(3)
        ]
        for k, name in enumerate(second_inputs):
            stacked = -torch.stack([row[k] for row in rows], dim=1)
            if name == "positions":
                results["born_effective_charges"] = stacked
            else:
                results["polarizability"] = stacked / volume[:, None, None]
    return _finish(results, create_graph)


def hessian(network: Enthalpy, graph: Graph, fields: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Return the Γ-point Hessian of every crystal of a batch, each (3n, 3n) in eV/Å², symmetrized.

    Row k of all crystals comes from one product: the Hessian of a batch is block diagonal.

    Args:
        network: The network, or the fast engine.
        graph: A batch.
        fields: (g, 3) in V/Å; zero by default.
    """
    positions = graph["positions"].detach().clone().requires_grad_(True)
    interaction, _ = network(graph, positions=positions, field=fields)
    (gradient,) = _gradient(interaction.sum(), [positions], True, True)
    starts, ends = graph["ptr"][:-1], graph["ptr"][1:]
    sizes = (ends - starts).tolist()
    blocks = [positions.new_zeros(3 * n, 3 * n) for n in sizes]
    for row in range(3 * max(sizes)):
        seed = torch.zeros_like(gradient)
        atom, axis = divmod(row, 3)
        alive = [g for g, n in enumerate(sizes) if atom < n]
        seed[starts[alive] + atom, axis] = 1.0
        (product,) = _gradient((gradient * seed).sum(), [positions], False, True)
        for g in alive:
            blocks[g][row] = product[starts[g] : ends[g]].reshape(-1)
    return [0.5 * (block + block.T) for block in blocks]


def _gradient(
    scalar: torch.Tensor, inputs: list[torch.Tensor], create_graph: bool, retain_graph: bool
) -> tuple[torch.Tensor, ...]:
    """Gradient that is zero where the scalar does not depend on an input (isolated atoms, a plain backbone)."""
    if not scalar.requires_grad:
        return tuple(torch.zeros_like(x) for x in inputs)
    return torch.autograd.grad(
        scalar,
        inputs,
        create_graph=create_graph,
        retain_graph=retain_graph or create_graph,
        allow_unused=True,
        materialize_grads=True,
    )


def _finish(results: dict[str, torch.Tensor], create_graph: bool) -> dict[str, torch.Tensor]:
    return results if create_graph else {key: value.detach() for key, value in results.items()}
