"""Exact derivatives of the electric enthalpy.

    forces f = −∂F/∂u            stress σ = (1/Ω) ∂F/∂ε           P = −(1/Ω) ∂F/∂𝓔
    Z*[κ, i, j] = ∂f_κj/∂𝓔_i      α_ij = −(1/Ω) ∂²F/∂𝓔_i∂𝓔_j       H = ∂²F/∂u∂u

Derivatives are taken on the interaction part of F; atomic baselines are constant.  Crystals of a batch do not
interact, so that one vector-Jacobian product serves all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
    directions: torch.Tensor | None = None,
    displacements: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Return observables of a batch from one forward pass, computing no derivative that nobody asked for.

    Second derivatives are taken along directions, one vector-Jacobian product each for all crystals at once: field
    directions v for v·Z* and v·α, displacements w for H w.  Crystals that need fewer than others have zeros.

    Args:
        network: The network, or the fast engine.
        graph: A batch of g crystals with n atoms in all.
        observables: Names; ``hessian`` needs ``displacements`` (see also :func:`hessian`).
        fields: (g, 3) in V/Å; zero by default.
        create_graph: Keep the graph of the results, for the gradient of a loss by the parameters.
        directions: (k, g, 3) field directions; the three axes by default.
        displacements: (m, n, 3) displacements of all atoms, for ``hessian``.

    Returns:
        energy (g,) eV, forces (n, 3) eV/Å, stress (g, 3, 3) eV/Å³, polarization (g, 3) e/Å²,
        born_effective_charges (n, k, 3) e as [atom, field direction, displacement], polarizability (g, k, 3)
        e/(V·Å), and hessian (m, n, 3) eV/Å², the products with the displacements; those that were asked for.
    """
    wanted = set(observables)
    second = wanted & {"born_effective_charges", "polarizability"}
    products = displacements is not None and "hessian" in wanted
    needs_field = bool(wanted & set(ELECTRONIC_OBSERVABLES))
    needs_positions = bool(wanted & {"forces", "born_effective_charges"}) or products
    n_graphs = graph["ptr"].numel() - 1

    positions = graph["positions"].detach()
    if needs_positions:
        positions = positions.clone().requires_grad_(True)
    strain = None
    if "stress" in wanted:
        strain = positions.new_zeros(n_graphs, 3, 3).requires_grad_(True)
    field = fields
    if needs_field:
        field = positions.new_zeros(n_graphs, 3) if fields is None else fields.detach().clone().to(positions)
        field = field.requires_grad_(True)

    interaction, baseline = network(graph, positions=positions, strain=strain, field=field)
    results: dict[str, torch.Tensor] = {}
    if "energy" in wanted:
        results["energy"] = interaction + baseline

    first_inputs = {}
    if needs_field:
        first_inputs["field"] = field
    if "forces" in wanted or products:
        first_inputs["positions"] = positions
    if strain is not None:
        first_inputs["strain"] = strain
    if not first_inputs:
        return _finish(results, create_graph)
    keep = bool(second) or products or create_graph
    first = dict(
        zip(first_inputs, _products(interaction, list(first_inputs.values()), None, keep, create_graph), strict=True)
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
        if directions is None:
            directions = torch.eye(3).to(first["field"])[:, None, :].expand(3, n_graphs, 3)
        rows = [
            _products(first["field"], list(second_inputs.values()), direction, create_graph, True)
            for direction in directions
        ]
        for k, name in enumerate(second_inputs):
            stacked = -torch.stack([row[k] for row in rows], dim=1)
            if name == "positions":
                results["born_effective_charges"] = stacked
            else:
                results["polarizability"] = stacked / volume[:, None, None]
    if displacements is not None and products:
        columns = [
            _products(first["positions"], [positions], vector, create_graph, True)[0] for vector in displacements
        ]
        results["hessian"] = torch.stack(columns) if columns else positions.new_zeros(0, *positions.shape)
    return _finish(results, create_graph)


def hessian(network: Enthalpy, graph: Graph, fields: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Return the Γ-point Hessian of every crystal of a batch, each (3n, 3n) in eV/Å², symmetrized.

    Row k of all crystals comes from one product: the Hessian of a batch is block diagonal.

    Args:
        network: The network, or the fast engine.
        graph: A batch.
        fields: (g, 3) in V/Å; zero by default.
    """
    sizes = graph["ptr"].diff().tolist()
    units = unit_displacements(sizes).to(graph["positions"])
    rows = respond(network, graph, ("hessian",), fields, displacements=units)["hessian"]
    blocks = []
    for start, size in zip(graph["ptr"].tolist(), sizes, strict=False):
        block = rows[: 3 * size, start : start + size].reshape(3 * size, 3 * size)
        blocks.append(0.5 * (block + block.T))
    return blocks


def unit_displacements(sizes: Sequence[int]) -> torch.Tensor:
    """Return displacements (3 max n, Σ n, 3) of one atom along one axis: row 3κ + i in each crystal of a batch."""
    blocks = []
    for size in sizes:
        block = torch.zeros(3 * max(sizes), 3 * size, dtype=torch.float64)
        block[: 3 * size] = torch.eye(3 * size, dtype=torch.float64)
        blocks.append(block.view(-1, size, 3))
    return torch.cat(blocks, dim=1)


def _products(
    output: torch.Tensor,
    inputs: list[torch.Tensor],
    vector: torch.Tensor | None,
    create_graph: bool,
    retain_graph: bool,
) -> tuple[torch.Tensor, ...]:
    """Vector-Jacobian products (ones by default), zero where the output does not depend on an input.

    That is so for isolated atoms and for a plain backbone.
    """
    if not output.requires_grad:
        return tuple(torch.zeros_like(x) for x in inputs)
    return torch.autograd.grad(
        output,
        inputs,
        torch.ones_like(output) if vector is None else vector.to(output),
        create_graph=create_graph,
        retain_graph=retain_graph or create_graph,
        allow_unused=True,
        materialize_grads=True,
    )


def _finish(results: dict[str, torch.Tensor], create_graph: bool) -> dict[str, torch.Tensor]:
    return results if create_graph else {key: value.detach() for key, value in results.items()}
