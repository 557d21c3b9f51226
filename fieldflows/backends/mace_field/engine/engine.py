"""The engine: F(R, 𝓔) of batches of crystals from the weights of a network, several times faster."""

from __future__ import annotations

import logging
from typing import Any

import torch

from fieldflows.backends.mace_field._mace import o3, scatter_sum
from fieldflows.backends.mace_field.engine.contraction import SparseContraction
from fieldflows.backends.mace_field.engine.layout import Layout, neighbor_layout
from fieldflows.backends.mace_field.engine.weights import (
    coupling,
    element_blocks,
    linear_blocks,
    tensor_product_blocks,
)
from fieldflows.backends.mace_field.graphs import Graph
from fieldflows.backends.mace_field.network import MACEFieldNetwork, NetworkConfig
from fieldflows.errors import EvaluationError

logger = logging.getLogger(__name__)

STALE = 1e-4
"""Edge lengths in Å that differ by more from the tabulated ones belong to other positions."""

COVERED_BLOCKS = ("RealAgnosticInteractionBlock", "RealAgnosticResidualInteractionBlock")


def uncovered(config: NetworkConfig) -> str | None:
    """Return why the engine cannot evaluate an architecture, or None if it can."""
    for name in (config.interaction_cls, config.interaction_cls_first):
        if name not in COVERED_BLOCKS:
            return f"interaction block {name}"
    if config.distance_transform != "None":
        return f"distance transform {config.distance_transform}"
    if config.pair_repulsion:
        return "pair repulsion"
    if config.use_so3 or config.edge_irreps or config.keep_last_layer_irreps or config.use_agnostic_product:
        return "a variant of the irreps (use_so3, edge_irreps, keep_last_layer_irreps or use_agnostic_product)"
    hidden = [(mul, ir) for mul, ir in o3.Irreps(config.hidden_irreps)]
    if len({mul for mul, _ in hidden}) != 1 or [(ir.l, ir.p) for _, ir in hidden] != [
        (degree, (-1) ** degree) for degree in range(len(hidden))
    ]:
        return f"hidden irreps {config.hidden_irreps}"
    return None


class FastEngine:
    """Evaluate the same function as a network; a drop-in for it in :mod:`.derivatives`.

    Weights are read at every call, so that gradients of a loss by the parameters flow through.

    Args:
        network: The network; must be covered (see :func:`uncovered`).
        order: Highest number of derivatives by positions that will be taken (1: forces, stress, Born charges;
            2: Hessian).
    """

    def __init__(self, network: MACEFieldNetwork, order: int = 1) -> None:
        self.network = network
        self.order = order
        self.channels = o3.Irreps(network.config.hidden_irreps)[0].mul
        self.max_ell = network.config.max_ell
        like = network.node_embedding.linear.weight
        self.contractions = [SparseContraction(p.symmetric_contractions).to(like) for p in network.products]
        self._couplings: dict[tuple[int, int, int], torch.Tensor] = {}

    @property
    def config(self) -> NetworkConfig:
        """Architecture of the network."""
        return self.network.config

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.network.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.network.device

    def parameters(self) -> Any:
        """Parameters of the network."""
        return self.network.parameters()

    def __call__(
        self,
        graph: Graph,
        positions: torch.Tensor | None = None,
        strain: torch.Tensor | None = None,
        field: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return interaction part and atomic baseline of F (see :meth:`MACEFieldNetwork.forward`)."""
        network = self.network
        positions = graph["positions"] if positions is None else positions
        layout = neighbor_layout(graph)
        order = layout.order
        batch = graph["batch"][order]
        heads = graph["head"][batch]
        all_species = graph["node_attrs"].argmax(dim=1)[order]
        elements, species = torch.unique(all_species, return_inverse=True)
        n_graphs = graph["ptr"].numel() - 1

        vectors = self._vectors(positions[order], layout, strain, batch)
        lengths = torch.linalg.vector_norm(vectors, dim=-1)
        _check_distances(graph["distances"], lengths.detach(), layout.distance)
        radial = self._radial(graph["distances"], lengths, layout.distance)
        harmonics = network.spherical_harmonics(vectors).split([2 * l + 1 for l in range(self.max_ell + 1)], dim=1)

        atoms = torch.arange(len(order), device=order.device)
        baselines = torch.atleast_2d(network.atomic_energies_fn.atomic_energies).T.to(positions)
        baseline = scatter_sum(baselines[all_species, heads], batch, dim=0, dim_size=n_graphs)

        node_field = None if field is None else field[batch]
        embedding = linear_blocks(network.node_embedding.linear)[0, 0].index_select(0, elements)
        features = [embedding.index_select(0, species)[None]]
        node_energy = torch.zeros_like(lengths[:0]).new_zeros(len(order))
        last = len(network.interactions) - 1
        for layer in range(last + 1):
            features = self._layer(layer, features, radial[layer], harmonics, layout, elements, species)
            if node_field is not None and self.config.field_coupling and layer < last:
                features = self._couple(layer, features, node_field)
            readout = self._readout(layer, last)
            if readout is not None:
                if hasattr(readout, "linear"):
                    energies = features[0][0] @ linear_blocks(readout.linear)[0, 0]
                else:
                    energies = readout(features[0][0], heads)
                node_energy = node_energy + energies[atoms, heads]

        interaction = scatter_sum(network.scale_shift(node_energy, heads), batch, dim=0, dim_size=n_graphs)
        if node_field is not None and self.config.element_polarizability:
            quadratic = -0.5 * network.element_polarizability[all_species] * node_field.square().sum(-1)
            interaction = interaction + scatter_sum(quadratic, batch, dim=0, dim_size=n_graphs)
        return interaction, baseline.to(interaction.dtype)

    def _readout(self, layer: int, last: int) -> torch.nn.Module | None:
        if len(self.network.readouts) == 1:
            return self.network.readouts[0] if layer == last else None
        return self.network.readouts[layer]

    def _vectors(
        self, positions: torch.Tensor, layout: Layout, strain: torch.Tensor | None, batch: torch.Tensor
    ) -> torch.Tensor:
        """Return edge vectors (e', 3) from sender to receiver in Å."""
        shifts = layout.shifts
        if strain is not None:
            symmetric = 0.5 * (strain + strain.transpose(-1, -2))
            positions = positions + torch.einsum("ni,nij->nj", positions, symmetric.index_select(0, batch))
            at_edge = symmetric.index_select(0, batch.index_select(0, layout.sender))
            shifts = shifts + torch.einsum("ei,eij->ej", shifts, at_edge)
        return positions.index_select(0, layout.receiver) - positions.index_select(0, layout.sender) + shifts

    def _radial(self, distances: torch.Tensor, lengths: torch.Tensor, index: torch.Tensor) -> list[torch.Tensor]:
        """Return the radial weights of each layer at every edge, (paths, e', c).

        The radial network and its derivatives are evaluated at the distinct distances only.
        """
        network = self.network

        def weights(r: torch.Tensor) -> torch.Tensor:
            # element arguments are only read by distance transforms, which are not covered
            basis, cutoff = network.radial_embedding(r[:, None], None, None, network.atomic_numbers)
            parts = [interaction.conv_tp_weights(basis) for interaction in network.interactions]
            if cutoff is not None:
                parts = [part * cutoff for part in parts]
            return torch.cat(parts, dim=1)

        paths = [interaction.conv_tp.weight_numel // self.channels for interaction in network.interactions]
        tables = [
            # one extra row of zeros serves the dummy edges
            torch.cat([table, table.new_zeros(1, table.shape[1])])
            .view(-1, sum(paths), self.channels)
            .transpose(0, 1)
            .contiguous()
            for table in jets(weights, distances, self.order)
        ]
        return list(Jet.apply(lengths, index, 0, *tables).split(paths))

    def _layer(
        self,
        layer: int,
        features: list[torch.Tensor],
        radial: torch.Tensor,
        harmonics: tuple[torch.Tensor, ...],
        layout: Layout,
        elements: torch.Tensor,
        species: torch.Tensor,
    ) -> list[torch.Tensor]:
        """One interaction and product: features by degree, each (2l+1, n, c), to the next ones."""
        interaction, product = self.network.interactions[layer], self.network.products[layer]
        up = linear_blocks(interaction.linear_up)
        raised = [(x @ up[l, l]).transpose(0, 1) for l, x in enumerate(features)]
        messages = self._messages(interaction, raised, radial, harmonics, layout)
        skip_blocks = {l: block.index_select(0, elements) for l, block in element_blocks(interaction.skip_tp).items()}
        residual: list[torch.Tensor] = []
        if product.use_sc and "Residual" in type(interaction).__name__:
            n_out = len(product.linear.irreps_out)
            residual = [
                _by_element(features[l], skip_blocks[l], species)
                if l in skip_blocks and l < len(features)
                else torch.zeros(1)
                for l in range(n_out)
            ]
        else:
            messages = [_by_element(m, skip_blocks[l], species) for l, m in enumerate(messages)]
        contraction = self.contractions[layer]
        coefficients = contraction.coefficients(elements).index_select(1, species)
        outputs = contraction(torch.cat(messages), coefficients)
        mix = linear_blocks(product.linear)
        result = [x @ mix[l, l] for l, x in enumerate(outputs)]
        return [x + residual[l] if residual and residual[l].dim() == 3 else x for l, x in enumerate(result)]

    def _messages(
        self,
        interaction: torch.nn.Module,
        raised: list[torch.Tensor],
        radial: torch.Tensor,
        harmonics: tuple[torch.Tensor, ...],
        layout: Layout,
    ) -> list[torch.Tensor]:
        """Sum over neighbors and mix: by degree, each (2l+1, n, c)."""
        product = interaction.conv_tp
        sent = [x.index_select(0, layout.sender) for x in raised]
        mix = linear_blocks(interaction.linear)
        collected: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for instruction, weights in zip(product.instructions, radial.unbind(0), strict=True):
            l1 = product.irreps_in1[instruction.i_in1].ir.l
            l2 = product.irreps_in2[instruction.i_in2].ir.l
            l3 = product.irreps_out[instruction.i_out].ir.l
            table = instruction.path_weight * self._coupling(l1, l2, l3, weights)
            if l1 == 0:
                angular = (harmonics[l2] * table[0, 0, 0])[:, None, :]
            else:
                angular = torch.tensordot(harmonics[l2], table, dims=([1], [1]))  # (e', 2l1+1, 2l3+1)
            radiated = weights[:, None, :] * sent[l1]  # (e', 2l1+1, c)
            summed = _neighbor_sum(angular, radiated, layout.groups)
            for (i_in, i_out), matrix in mix.items():
                if i_in == instruction.i_out:
                    degree = interaction.linear.irreps_out[i_out].ir.l
                    collected.setdefault(degree, []).append((summed, matrix))
        scale = 1.0 / interaction.avg_num_neighbors
        return [
            (torch.cat([x for x, _ in parts], dim=2) @ (scale * torch.cat([m for _, m in parts]))).transpose(0, 1)
            for _, parts in sorted(collected.items())
        ]

    def _couple(self, layer: int, features: list[torch.Tensor], field: torch.Tensor) -> list[torch.Tensor]:
        """Return h − Linear(h ⊗ 𝓔) (Eq. 17), the two matrices of each path multiplied beforehand."""
        block, mix = self.network.field_feats[layer], linear_blocks(self.network.field_linear[layer])
        changed = list(features)
        for (l1, _, l3), weight in tensor_product_blocks(block).items():
            table = torch.einsum("ni,mik->nmk", field, self._coupling(l1, 1, l3, weight))
            matrix = weight[:, 0] @ mix[l3, l3]
            changed[l3] = changed[l3] - torch.einsum("nmk,mnc->knc", table, features[l1] @ matrix)
        return changed

    def _coupling(self, l1: int, l2: int, l3: int, like: torch.Tensor) -> torch.Tensor:
        key = (l1, l2, l3)
        if key not in self._couplings:
            self._couplings[key] = coupling(l1, l2, l3, like.detach())
        return self._couplings[key]


class Jet(torch.autograd.Function):
    """A tabulated function of the edge length that knows its own derivatives.

    ``Jet.apply(r, index, k, *tables)`` gives the k-th derivative, ``tables[k]`` (paths, u, c) at ``index`` (e,); its
    derivative by ``r`` is the next table, and not a number past the last.  Derivatives by the tables are those of a
    gather.
    """

    @staticmethod
    def forward(ctx: Any, r: torch.Tensor, index: torch.Tensor, k: int, *tables: torch.Tensor) -> torch.Tensor:
        """Return (paths, e, c)."""
        ctx.save_for_backward(r, index, *tables)
        ctx.k = k
        return tables[k].index_select(1, index)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """Return gradients by r and by the table in use."""
        r, index, *tables = ctx.saved_tensors
        k = ctx.k
        by_r = None
        if ctx.needs_input_grad[0]:
            if k + 1 < len(tables):
                by_r = (gradient * Jet.apply(r, index, k + 1, *tables)).sum((0, 2))
            else:
                # a loss is differentiated by parameters only; whoever uses this one anyway must notice
                by_r = torch.full_like(r, float("nan"))
        by_tables: list[torch.Tensor | None] = [None] * len(tables)
        if ctx.needs_input_grad[3 + k]:
            by_tables[k] = torch.zeros_like(tables[k]).index_add(1, index, gradient)
        return by_r, None, None, *by_tables


def jets(function: Any, x: torch.Tensor, order: int) -> list[torch.Tensor]:
    """Return value and derivatives up to an order of a function of one variable per row, by forward mode."""
    ones = torch.ones_like(x)

    def derivative(f: Any) -> Any:
        return lambda y: torch.func.jvp(f, (y,), (ones,))[1]

    values = [function(x)]
    current = function
    for _ in range(order):
        current = derivative(current)
        values.append(current(x))
    return values


def _check_distances(distances: torch.Tensor, lengths: torch.Tensor, index: torch.Tensor) -> None:
    """Raise if the tabulated distances are not those of the positions: radial functions would be of another crystal.

    Raises:
        EvaluationError: If positions or strain differ from those that the graph was built for.
    """
    expected = torch.cat([distances, distances.new_ones(1)]).index_select(0, index)  # dummy edges have length one
    if bool(((lengths - expected).abs() > STALE).any()):
        raise EvaluationError(
            "The engine was given positions or a strain that are not those of its graph: distances differ by up to "
            f"{float((lengths - expected).abs().max()):.3g} Å.",
            "Build the graph of the displaced crystal, or evaluate the network itself.",
        )


def _neighbor_sum(angular: torch.Tensor, radiated: torch.Tensor, groups: tuple[tuple[int, int], ...]) -> torch.Tensor:
    """Return Σ_j angular_jᵀ radiated_j for every atom, (n, 2l3+1, c), as one matrix product per group."""
    d1, d3 = angular.shape[1], angular.shape[2]
    channels = radiated.shape[2]
    sizes = [atoms * width for atoms, width in groups]
    parts = [
        torch.bmm(a.reshape(atoms, width * d1, d3).transpose(1, 2), x.reshape(atoms, width * d1, channels))
        for (atoms, width), a, x in zip(groups, angular.split(sizes), radiated.split(sizes), strict=True)
    ]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _by_element(x: torch.Tensor, matrices: torch.Tensor, species: torch.Tensor) -> torch.Tensor:
    """Return x (m, n, c) times the matrix of each atom's element, (z, c, d)."""
    if len(matrices) == 1:
        return x @ matrices[0]
    if x.shape[1] * matrices[0].numel() < 4_000_000:
        return torch.einsum("mnc,ncd->mnd", x, matrices.index_select(0, species))
    result = x.new_zeros(*x.shape[:2], matrices.shape[2])
    for element, matrix in enumerate(matrices):
        members = torch.nonzero(species == element)[:, 0]
        result = result.index_add(1, members, x.index_select(1, members) @ matrix)
    return result


def fastest(network: MACEFieldNetwork, order: int = 1) -> MACEFieldNetwork | FastEngine:
    """Return the engine for a network, or the network itself if the engine does not cover its architecture.

    Args:
        network: The network; shares its weights with the engine.
        order: Highest number of derivatives by positions (see :class:`FastEngine`).
    """
    reason = uncovered(network.config)
    if reason is None:
        return FastEngine(network, order)
    logger.info("the fast engine does not cover %s; the reference path is used", reason)
    return network
