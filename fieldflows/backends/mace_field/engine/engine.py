"""The engine: F(R, 𝓔) of batches of crystals from the weights of a network, several times faster."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch

from fieldflows.backends.mace_field._mace import scatter_sum
from fieldflows.backends.mace_field.composition import composition_enthalpy
from fieldflows.backends.mace_field.engine.coverage import uncovered
from fieldflows.backends.mace_field.engine.harmonics import Harmonics
from fieldflows.backends.mace_field.engine.layers import Features, Geometry, Layer, couple, first_radial_factors
from fieldflows.backends.mace_field.engine.layout import Layout, Rows, distinct_rows, neighbor_layout
from fieldflows.backends.mace_field.engine.radial import (
    RadialBasis,
    Table,
    edge_density,
    jet,
    pair_repulsion,
    perceptron,
)
from fieldflows.backends.mace_field.engine.readout import readout_energies
from fieldflows.backends.mace_field.engine.series import Series
from fieldflows.backends.mace_field.engine.weights import Weights
from fieldflows.backends.mace_field.graphs import Graph
from fieldflows.backends.mace_field.network import MACEFieldNetwork, NetworkConfig
from fieldflows.errors import EvaluationError

__all__ = ["FastEngine", "fastest", "uncovered"]

logger = logging.getLogger(__name__)

STALE = 1e-4
"""Edge lengths in Å that differ by more from the tabulated ones belong to other positions."""


class FastEngine:
    """Evaluate the same function as a network; a drop-in for it in :mod:`.derivatives`.

    Weights that require gradients are read at every call, so that those of a loss flow through; what is made of fixed
    ones is remembered until they change (see :class:`.Weights`).

    Args:
        network: The network; must be covered (see :func:`uncovered`).
        order: Highest number of derivatives by positions that will be taken (1: forces, stress, Born charges;
            2: Hessian).
    """

    def __init__(self, network: MACEFieldNetwork, order: int = 1) -> None:
        self.network = network
        self.order = order
        self.weights = Weights()
        blocks = zip(network.interactions, network.products, strict=True)
        self.layers = [Layer(i, p, number == 0, self.weights) for number, (i, p) in enumerate(blocks)]
        self.harmonics = Harmonics(network.config.max_ell, network.device)
        by_elements = network.config.distance_transform != "None"
        self.by_pairs = [by_elements or layer.gated for layer in self.layers]

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
        heads = graph["head"][layout.batch]
        n_graphs = graph["ptr"].numel() - 1
        all_species = layout.elements[layout.species]
        sum_by_crystal = partial(scatter_sum, index=layout.batch, dim=0, dim_size=n_graphs)

        vectors = _vectors(positions.index_select(0, layout.order), layout, strain)
        lengths = torch.linalg.vector_norm(vectors, dim=-1)
        _check_distances(graph["distances"], lengths.detach(), layout.distance)
        harmonics = self.harmonics((vectors / lengths[:, None]).T.to(torch.float64)).to(self.dtype)
        geometry = Geometry(layout, lengths, harmonics)

        baselines = torch.atleast_2d(network.atomic_energies_fn.atomic_energies).T.to(positions)
        baseline = sum_by_crystal(baselines[all_species, heads])
        node_field = None if field is None else field.index_select(0, layout.batch)
        embedding = self.weights.linear(network.node_embedding.linear)[0, 0]
        features: Features = [embedding.index_select(0, layout.elements)[None]]
        tables = self._tables(graph["distances"], layout, features)
        node_energy = lengths.new_zeros(len(layout.order))
        if hasattr(network, "pair_repulsion_fn"):
            repulsion = self._repulsion(graph["distances"], layout)
            node_energy = node_energy + layout.neighbor_sum(jet(lengths, repulsion))[:, 0]
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            features = layer(features, *tables[number], geometry)
            if node_field is not None and self.config.field_coupling and number < last:
                block, linear = network.field_feats[number], network.field_linear[number]
                features = couple(self.weights, block, linear, features, node_field.to(self.dtype))
            for readout in self._readouts(number, last):
                node_energy = node_energy + readout_energies(readout, features[0][0], heads, self.weights)

        interaction = sum_by_crystal(network.scale_shift(node_energy, heads))
        if node_field is not None and self.config.element_polarizability:
            quadratic = -0.5 * network.element_polarizability[all_species] * node_field.square().sum(-1)
            interaction = interaction + sum_by_crystal(quadratic)
        if field is not None and self.config.composition_polarizability:
            interaction = interaction + composition_enthalpy(network.composition_polarizability, graph, field, strain)
        return interaction, baseline.to(interaction.dtype)

    def _readouts(self, number: int, last: int) -> list[torch.nn.Module]:
        """Return the readouts of a layer; a single one reads the last layer."""
        readouts = list(self.network.readouts)
        if len(readouts) == 1:
            return readouts if number == last else []
        return readouts[number : number + 1]

    def _tables(self, distances: torch.Tensor, layout: Layout, features: Features) -> list[tuple[Table, Table | None]]:
        """Return the tables of the radial weights, and of the density of neighbors, of each layer."""
        count = len(distances)
        plain = RadialBasis(self.network, distances, None)
        shared: dict[bool, tuple[Rows, RadialBasis]] = {}

        def of_pairs(by_receiver: bool) -> tuple[Rows, RadialBasis]:
            if by_receiver not in shared:
                rows = distinct_rows(layout, count, by_receiver)
                pairs = tuple(layout.elements.index_select(0, x) for x in (rows.sender, rows.receiver))
                shared[by_receiver] = rows, RadialBasis(self.network, distances.index_select(0, rows.distance), pairs)
            return shared[by_receiver]

        tables = []
        for layer, by_pairs in zip(self.layers, self.by_pairs, strict=True):
            rows, basis = of_pairs(True) if by_pairs else (None, plain)
            index = layout.distance if rows is None else rows.index
            inputs = partial(self._edge_features, layer, basis)
            weights = partial(_radial_weights, layer, inputs)
            density = None
            if layer.density:
                density = Table(partial(_density, layer, inputs), index, self.order, start=1)
            if layer.first:
                rows = rows or of_pairs(False)[0]
                at = None if by_pairs else rows.distance
                sent = first_radial_factors(layer, features).index_select(0, rows.sender)
                weights, index = partial(_sent_weights, layer, inputs, at, sent), rows.index
            tables.append((Table(weights, index, self.order, start=1), density))
        return tables

    def _edge_features(self, layer: Layer, basis: RadialBasis, order: int) -> tuple[Series, Series | None]:
        """Return what the radial networks of a layer see, with derivatives by distance."""
        values, cutoff = basis(order)
        if not layer.gated:
            return values, cutoff
        assert basis.pairs is not None
        modules = layer.interaction.source_embedding, layer.interaction.target_embedding
        embeddings = [
            self.weights.linear(module)[0, 0].index_select(0, elements)
            for module, elements in zip(modules, basis.pairs, strict=True)
        ]
        first = torch.cat([values[0], *embeddings], dim=1)
        rest = first.shape[1] - values[0].shape[1]
        return [first, *(torch.nn.functional.pad(entry, (0, rest)) for entry in values[1:])], cutoff

    def _repulsion(self, distances: torch.Tensor, layout: Layout) -> Table:
        rows = distinct_rows(layout, len(distances), by_receiver=True)
        pairs = (layout.elements.index_select(0, rows.sender), layout.elements.index_select(0, rows.receiver))
        at = distances.index_select(0, rows.distance)
        return Table(partial(pair_repulsion, self.network, at, pairs), rows.index, self.order, start=1)


def _radial_weights(layer: Layer, inputs: Any, order: int) -> Series:
    """Return the weights of all paths, (u, paths · c)."""
    return perceptron(layer.interaction.conv_tp_weights, *inputs(order))


def _sent_weights(layer: Layer, inputs: Any, at: torch.Tensor | None, sent: torch.Tensor, order: int) -> Series:
    """Return the weights of all paths times what the sender's element sends, (rows, paths · c).

    Args:
        layer: The first layer.
        inputs: What its radial network sees.
        at: (rows,) distance of each row, if that network does not tell elements apart.
        sent: (rows, c) what the sender of each row sends.
        order: Highest derivative.
    """
    weights = _radial_weights(layer, inputs, order)
    if at is not None:
        weights = [entry.index_select(0, at) for entry in weights]
    shape = (len(sent), len(layer.paths), sent.shape[1])
    return [(entry.view(shape) * sent[:, None]).view(entry.shape) for entry in weights]


def _density(layer: Layer, inputs: Any, order: int) -> Series:
    return edge_density(layer.interaction.density_fn, *inputs(order))


def _vectors(positions: torch.Tensor, layout: Layout, strain: torch.Tensor | None) -> torch.Tensor:
    """Return edge vectors (e', 3) from sender to receiver in Å."""
    shifts = layout.shifts
    if strain is not None:
        symmetric = (0.5 * (strain + strain.transpose(-1, -2))).index_select(0, layout.batch)
        positions = positions + torch.einsum("ni,nij->nj", positions, symmetric)
        shifts = shifts + torch.einsum("ei,eij->ej", shifts, symmetric.index_select(0, layout.sender))
    return positions.index_select(0, layout.receiver) - positions.index_select(0, layout.sender) + shifts


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
