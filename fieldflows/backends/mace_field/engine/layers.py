"""One layer of the network: messages, products and the field, on features laid out component by component.

Features are a list with one tensor (2l+1, n, c) per block of the irreps.  Weights are read from the modules of mace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fieldflows.backends.mace_field.engine.contraction import SparseContraction
from fieldflows.backends.mace_field.engine.layout import Layout
from fieldflows.backends.mace_field.engine.neighbors import NeighborSums, PathShape
from fieldflows.backends.mace_field.engine.radial import Table, jet
from fieldflows.backends.mace_field.engine.shells import ShellSums
from fieldflows.backends.mace_field.engine.weights import (
    Blocks,
    Weights,
    coupling,
    tensor_product_blocks,
)

Features = list[torch.Tensor]


@dataclass(frozen=True)
class Geometry:
    """Edges of a batch.

    Attributes:
        layout: Who neighbors whom.
        lengths: (e',) in Å, in float64.
        harmonics: ((L+1)², e') in the precision of the network.
    """

    layout: Layout
    lengths: torch.Tensor
    harmonics: torch.Tensor


@dataclass(frozen=True)
class Path:
    """One product of sender features with harmonics.

    Attributes:
        source: Block of the sender features.
        degree: Degree of the harmonics.
        target: Block of the products, in the order of the linear map that follows.
        matrix: (2l3+1, (2l2+1)(2l1+1)) coupling; None if it is one (times ``factor``).
        factor: Constant in front.
        width: Channels.
    """

    source: int
    degree: int
    target: int
    matrix: torch.Tensor | None
    factor: float
    width: int


class Layer:
    """One interaction block of mace and the product that follows it.

    Args:
        interaction: The interaction block.
        product: The product block.
        first: Its features are those of the elements, scalars that do not depend on positions.
        weights: The memory of the engine.
    """

    def __init__(self, interaction: Any, product: Any, first: bool, weights: Weights) -> None:
        self.interaction, self.product, self.first, self.weights = interaction, product, first, weights
        name = type(interaction).__name__
        self.gated = "NonLinear" in name
        self.density = hasattr(interaction, "density_fn")
        self.residual = product.use_sc and "Residual" in name
        like = product.linear.weight.detach()
        mixed = interaction.linear_1 if self.gated else interaction.linear
        self.n_blocks = len(mixed.irreps_out)
        self.paths = _paths(interaction.conv_tp, like)
        irreps = interaction.conv_tp.irreps_in1
        self.shapes = tuple(PathShape(p.degree, p.source, irreps[p.source].ir.dim, p.width) for p in self.paths)

    def __call__(self, features: Features, radial: Table, density: Table | None, geometry: Geometry) -> Features:
        """Return the next features.

        Args:
            features: Those of the layer before, or one (1, z, c) of the elements for the first layer.
            radial: Weights of the paths; those of the first layer times what the sender's element sends.
            density: Weights of the density of neighbors, if the block has one.
            geometry: The edges.
        """
        layout = geometry.layout
        interaction, species = self.interaction, layout.species
        raised = _linear(self.weights, interaction.linear_up, features)
        summed = self._first_messages(radial, geometry) if self.first else self._messages(raised, radial, geometry)
        neighbors = None if density is None else layout.neighbor_sum(jet(geometry.lengths, density))
        if self.gated:
            scale = 1.0 / (neighbors * interaction.beta + interaction.alpha)
            messages = [_times(m, scale) for m in self._mixed(interaction.linear_1, summed)]
            stayed = _linear(self.weights, interaction.linear_res, raised, len(messages))
            if self.first:
                stayed = [None if x is None else x.index_select(1, species) for x in stayed]
            messages = [m if s is None else m + s for m, s in zip(messages, stayed, strict=True)]
            messages = _all(
                _linear(self.weights, interaction.linear_2, _gate(interaction.equivariant_nonlin, messages))
            )
        else:
            messages = self._mixed(interaction.linear, summed)
            if neighbors is None:
                messages = [m / interaction.avg_num_neighbors for m in messages]
            else:
                messages = [_times(m, 1.0 / (neighbors + 1.0)) for m in messages]
            if not self.residual:
                blocks = self._element_blocks(layout)
                messages = [_by_element(m, blocks[b, b], layout) for b, m in enumerate(messages)]
        contraction = self._contraction()
        coefficients = self.weights.remember(
            "coefficients",
            contraction.module,
            contraction.module.parameters(),
            (layout.names, contraction),
            lambda: contraction.coefficients(layout.elements),
        )
        outputs = contraction(torch.cat(messages), coefficients, layout)
        result = _all(_linear(self.weights, self.product.linear, outputs))
        if not self.residual:
            return result
        kept = self._skipped(features, layout, len(result))
        return [x if s is None else x + s for x, s in zip(result, kept, strict=True)]

    def _contraction(self) -> SparseContraction:
        """Return the contraction; its tables are part of the state and can be loaded, moved or rounded."""
        module = self.product.symmetric_contractions
        like = self.product.linear.weight.detach()
        return self.weights.remember(
            "tables", module, module.buffers(), None, lambda: SparseContraction(module).to(like)
        )

    def _element_blocks(self, layout: Layout) -> Blocks:
        return self.weights.elements(self.interaction.skip_tp, layout.elements, layout.names)

    def _skipped(self, features: Features, layout: Layout, count: int) -> list[torch.Tensor | None]:
        """Return what goes past the interaction, by output block."""
        if self.gated:
            kept = _linear(self.weights, self.interaction.skip_tp, features, count)
            return [None if x is None else x.index_select(1, layout.species) for x in kept] if self.first else kept
        kept = [None] * count
        for (i_in, i_out), matrices in self._element_blocks(layout).items():
            if self.first:
                part = torch.einsum("mzc,zcd->mzd", features[i_in], matrices).index_select(1, layout.species)
            else:
                part = _by_element(features[i_in], matrices, layout)
            kept[i_out] = part if kept[i_out] is None else kept[i_out] + part
        return kept

    def _first_messages(self, radial: Table, geometry: Geometry) -> dict[int, torch.Tensor]:
        """Sums over neighbors by path, each (n, 2l+1, c), where senders differ by their element only."""
        sums = ShellSums(radial, geometry.layout, geometry.lengths).collect(geometry.harmonics).transpose(0, 1)
        parts = sums.split([2 * path.degree + 1 for path in self.paths], dim=1)
        return {path.target: path.factor * part for path, part in zip(self.paths, parts, strict=True)}

    def _messages(
        self, raised: list[torch.Tensor | None], radial: Table, geometry: Geometry
    ) -> dict[int, torch.Tensor]:
        """Sums over neighbors by path, each (n, 2l3+1, c)."""
        layout = geometry.layout
        n = len(layout.order)
        irreps = self.interaction.conv_tp.irreps_in1
        h = torch.cat(
            [
                radial.entries[0].new_zeros(n, irreps[i].dim) if x is None else x.transpose(0, 1).reshape(n, -1)
                for i, x in enumerate(raised)
            ],
            dim=1,
        )
        sources = tuple((ir.dim, mul) for mul, ir in irreps)
        sums = NeighborSums(self.shapes, sources, radial, layout, geometry.lengths)
        collected = sums.collect(geometry.harmonics, h).split(sums.sizes, dim=1)
        summed = {}
        for path, flat in zip(self.paths, collected, strict=True):
            outer = flat.view(n, -1, path.width)
            if path.matrix is None:
                summed[path.target] = path.factor * outer
            else:
                summed[path.target] = torch.bmm(path.matrix.to(outer).expand(n, -1, -1), outer)
        return summed

    def _mixed(self, linear: Any, summed: dict[int, torch.Tensor]) -> Features:
        """Mix channels of the sums into blocks, each (2l+1, n, c)."""
        collected: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for (i_in, i_out), matrix in self.weights.linear(linear).items():
            if i_in in summed:
                collected.setdefault(i_out, []).append((summed[i_in], matrix))
        messages = []
        for block in range(self.n_blocks):
            parts = collected[block]
            x = parts[0][0] if len(parts) == 1 else torch.cat([x for x, _ in parts], dim=2)
            matrix = parts[0][1] if len(parts) == 1 else torch.cat([m for _, m in parts])
            messages.append((x @ matrix).transpose(0, 1))
        return messages


def first_radial_factors(layer: Layer, features: Features) -> torch.Tensor:
    """Return what an atom of each element sends in the first layer, (z, c)."""
    (sent,) = _all(_linear(layer.weights, layer.interaction.linear_up, features))
    return sent[0]


def couple(weights: Weights, block: Any, linear: Any, features: Features, field: torch.Tensor) -> Features:
    """Return h − Linear(h ⊗ 𝓔) (Eq. 17), the two matrices of each path multiplied beforehand.

    Args:
        weights: The memory of the engine.
        block: The tensor product of features and field.
        linear: The linear map.
        features: h.
        field: (n, 3) in V/Å, of each atom's crystal.
    """

    def collapsed() -> Blocks:
        mix = weights.linear(linear)
        return {
            (i_in, i_out): weight[:, 0] @ mix[i_out, i_out]
            for (i_in, _, i_out), weight in tensor_product_blocks(block).items()
        }

    parameters = [*block.parameters(), *linear.parameters()]
    changed = list(features)
    for (i_in, i_out), matrix in weights.remember("field", block, parameters, None, collapsed).items():
        l1, l3 = block.irreps_in1[i_in].ir.l, block.irreps_out[i_out].ir.l
        table = torch.einsum("ni,mik->nmk", field, coupling(l1, 1, l3, field))
        changed[i_out] = changed[i_out] - torch.einsum("nmk,mnc->knc", table, features[i_in] @ matrix)
    return changed


def _paths(product: Any, like: torch.Tensor) -> list[Path]:
    paths = []
    for instruction in product.instructions:
        mul, ir1 = product.irreps_in1[instruction.i_in1]
        l1, l2 = ir1.l, product.irreps_in2[instruction.i_in2].ir.l
        l3 = product.irreps_out[instruction.i_out].ir.l
        table = instruction.path_weight * coupling(l1, l2, l3, like.double())  # (2l1+1, 2l2+1, 2l3+1)
        matrix, factor = None, 1.0
        if l1 == 0 or l2 == 0:
            factor = float(table[0, 0, 0])
        else:
            matrix = table.permute(2, 1, 0).reshape(2 * l3 + 1, -1).to(like)
        paths.append(Path(instruction.i_in1, instruction.i_in2, instruction.i_out, matrix, factor, mul))
    return paths


def _linear(weights: Weights, linear: Any, x: Any, count: int | None = None) -> list[torch.Tensor | None]:
    """Return the outputs of an ``o3.Linear`` by block, None where nothing arrives."""
    count = len(linear.irreps_out) if count is None else count
    result: list[torch.Tensor | None] = [None] * count
    for (i_in, i_out), matrix in weights.linear(linear).items():
        if i_in >= len(x) or x[i_in] is None:
            continue
        part = x[i_in] @ matrix
        result[i_out] = part if result[i_out] is None else result[i_out] + part
    return result


def _all(features: list[torch.Tensor | None]) -> Features:
    assert all(x is not None for x in features)
    return features  # type: ignore[return-value]


def _gate(module: Any, messages: Features) -> Features:
    """Apply mace's gated nonlinearity: scalars by an activation, others by gates that stand after the scalars."""
    scalars, *gated = messages
    sizes = [module.irreps_scalars.dim, *(mul for mul, _ in module.irreps_gated)]
    plain, *gates = scalars.split(sizes, dim=2)
    gates = [module._gate_cst * module._act_gate(gate) for gate in gates]
    return [module._scalar_cst * module._act_scalar(plain), *(x * g for x, g in zip(gated, gates, strict=True))]


def _times(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return x (m, n, c) times a number per atom (n, 1)."""
    return x * factor


def _by_element(x: torch.Tensor, matrices: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Return x (m, n, c) times the matrix of each atom's element, (z, c, d)."""
    if len(matrices) == 1:
        return x @ matrices[0]
    parts = x.index_select(1, layout.by_element).split(layout.of_element, dim=1)
    products = [part @ matrix for part, matrix in zip(parts, matrices.unbind(0), strict=True)]
    return torch.cat(products, dim=1).index_select(1, layout.place_by_element)
