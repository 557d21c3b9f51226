"""The MACE-Field network: electric enthalpy F(R, 𝓔) on the modules of mace-torch.

After each interaction layer t but the last, the node features h couple to the field (Martin et al., PRX Intelligence
1, 013006 (2026), arXiv:2508.17870v2, Eq. 17)::

    Δh = FullyConnectedTensorProduct(h, 𝓔 as 1o)      (field_feats.{t}.weight)
    h̃  = h − Linear(Δh)                               (field_linear.{t}.weight)

The next layer and the readout of layer t see h̃.  At 𝓔 = 0 the correction vanishes identically.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from fieldflows.backends.mace_field._mace import (
    ScaleShiftMACE,
    gate_dict,
    interaction_classes,
    module_construction,
    o3,
    readout_classes,
    scatter_sum,
)
from fieldflows.backends.mace_field.composition import CompositionPolarizability, composition_enthalpy
from fieldflows.backends.mace_field.graphs import Graph
from fieldflows.errors import BackboneError, suggestion

ScalarOrList = float | list[float]

FIELD_SWITCHES = ("field_coupling", "element_polarizability", "composition_polarizability")
"""Settings that a plain MACE does not have."""


class NetworkConfig(BaseModel):
    """Architecture of a MACE-Field network; the names are those of mace-torch's ``ScaleShiftMACE``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    atomic_numbers: list[int] = Field(description="Elements, in the order of the one-hot encoding.")
    r_max: float = Field(5.0, gt=0, description="Cut-off.", json_schema_extra={"unit": "Å"})
    num_bessel: int = Field(8, ge=1, description="Number of radial basis functions.")
    num_polynomial_cutoff: int = Field(5, ge=1, description="Power of the polynomial envelope.")
    max_ell: int = Field(3, ge=0, description="Highest degree of the spherical harmonics of edges.")
    interaction_cls: str = Field("RealAgnosticResidualInteractionBlock", description="Block of layers 2 to T.")
    interaction_cls_first: str = Field("RealAgnosticResidualInteractionBlock", description="Block of layer 1.")
    num_interactions: int = Field(2, ge=1, description="Number of layers T.")
    hidden_irreps: str = Field("32x0e + 32x1o", description="Irreps of the node features.")
    MLP_irreps: str = Field("16x0e", description="Irreps of the last readout, per head.")
    gate: str = Field("silu", description="Nonlinearity of the last readout.")
    correlation: int | list[int] = Field(3, description="Body order minus one, for all layers or each of them.")
    atomic_energies: list[float] | list[list[float]] = Field(
        description="Baselines by element, or by head and element.", json_schema_extra={"unit": "eV"}
    )
    avg_num_neighbors: float = Field(1.0, gt=0, description="Normalization of messages.")
    scale: ScalarOrList = Field(1.0, description="Scale of the interaction energy, for all heads or each of them.")
    shift: ScalarOrList = Field(0.0, description="Shift of the interaction energy per atom.")
    heads: list[str] = Field(default_factory=lambda: ["Default"], min_length=1, description="Names of the heads.")
    radial_type: str = Field("bessel", description="Radial basis: bessel, gaussian or chebyshev.")
    radial_MLP: list[int] = Field(default_factory=lambda: [64, 64, 64], description="Hidden widths of the radial net.")
    distance_transform: str = Field("None", description="None, Agnesi or Soft.")
    pair_repulsion: bool = Field(False, description="Add the Ziegler-Biersack-Littmark repulsion.")
    apply_cutoff: bool = Field(True, description="Envelope on the radial basis (else on the messages).")
    use_reduced_cg: bool = Field(True, description="Reduced basis of the symmetric contraction.")
    use_so3: bool = Field(False, description="Drop parity.")
    use_agnostic_product: bool = Field(False, description="One set of product weights for all elements.")
    use_last_readout_only: bool = Field(False, description="Read out the last layer only.")
    readout_cls: str = Field("NonLinearReadoutBlock", description="Class of the last readout.")
    edge_irreps: str | None = Field(None, description="Irreps of the sender features on edges.")
    use_edge_irreps_first: bool = Field(False, description="Use edge_irreps in the first layer as well.")
    keep_last_layer_irreps: bool = Field(False, description="Keep L > 0 features in the last layer.")
    field_coupling: bool = Field(True, description="False: a plain MACE, which has no response to a field.")
    element_polarizability: bool = Field(
        False,
        description="Add −½ Σ_κ a_{Z_κ} |𝓔|² with one trained a per element (e Å² V⁻¹), the field's analogue of the "
        "atomic energy baselines; off for parity with Eq. 17.",
    )
    composition_polarizability: int = Field(
        0,
        ge=0,
        description="Reference compositions of the polarizability that composition and volume predict (see "
        "composition.py); 0 for none, for parity with Eq. 17.",
    )

    @field_validator("interaction_cls", "interaction_cls_first")
    @classmethod
    def _known_interaction(cls, value: str) -> str:
        if value not in interaction_classes:
            raise ValueError(f"unknown interaction block {value!r}; {suggestion(value, interaction_classes)}")
        return value

    @field_validator("readout_cls")
    @classmethod
    def _known_readout(cls, value: str) -> str:
        if value not in readout_classes:
            raise ValueError(f"unknown readout {value!r}; {suggestion(value, readout_classes)}")
        return value

    @field_validator("gate")
    @classmethod
    def _known_gate(cls, value: str) -> str:
        if value not in gate_dict:
            raise ValueError(f"unknown gate {value!r}; {suggestion(value, gate_dict)}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> NetworkConfig:
        energies = np.atleast_2d(np.asarray(self.atomic_energies, dtype=float))
        if energies.shape[1] != len(self.atomic_numbers):
            raise ValueError(f"{energies.shape[1]} atomic energies for {len(self.atomic_numbers)} elements")
        if len(set(self.atomic_numbers)) != len(self.atomic_numbers):
            raise ValueError("atomic_numbers holds an element twice")
        return self

    @model_serializer(mode="wrap")
    def _without_later_switches(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a switch that older files do not know as long as it is off: their hashes cover this document."""
        values: dict[str, Any] = handler(self)
        if not values.get("composition_polarizability"):
            values.pop("composition_polarizability", None)
        return values

    def backbone_arguments(self) -> dict[str, Any]:
        """Return the arguments of mace-torch's ``ScaleShiftMACE``."""
        values = self.model_dump(exclude={"scale", "shift", *FIELD_SWITCHES})
        values.update(
            interaction_cls=interaction_classes[self.interaction_cls],
            interaction_cls_first=interaction_classes[self.interaction_cls_first],
            readout_cls=readout_classes[self.readout_cls],
            gate=gate_dict[self.gate],
            hidden_irreps=o3.Irreps(self.hidden_irreps),
            MLP_irreps=o3.Irreps(self.MLP_irreps),
            edge_irreps=o3.Irreps(self.edge_irreps) if self.edge_irreps else None,
            atomic_energies=np.asarray(self.atomic_energies, dtype=float),
            num_elements=len(self.atomic_numbers),
            atomic_inter_scale=self.scale,
            atomic_inter_shift=self.shift,
            # a new network must not depend on whether cuequivariance is installed (see basis.py)
            use_reduced_cg=False,
        )
        return values


def check_backbone(config: NetworkConfig) -> None:
    """Raise unless an architecture can carry a field coupling.

    P, Z* and α are derivatives through the coupling of scalars with vectors between layers.  With one layer nothing
    is coupled, and with scalar features alone the product of a scalar and a vector has nowhere to go.

    Raises:
        BackboneError: Says which of the two is the case.
    """
    if config.num_interactions < 2:
        raise BackboneError(
            f"The backbone has {config.num_interactions} interaction layer; the field couples between layers, so that "
            "polarization, Born charges and polarizability would be identically zero.",
            "Use a backbone with at least two layers.",
        )
    degrees = {(ir.l, ir.p) for _, ir in o3.Irreps(config.hidden_irreps)}
    if (1, -1) not in degrees:
        raise BackboneError(
            f"The backbone has hidden irreps {config.hidden_irreps}; without vector features (1o) the field has "
            "nothing to couple to, so that polarization, Born charges and polarizability would be identically zero.",
            "Use a backbone with L >= 1, such as 'medium' or '32x0e + 32x1o'.",
        )


class MACEFieldNetwork(ScaleShiftMACE):
    """Electric enthalpy F(R, 𝓔) of batches of crystals (Eq. 17).

    State names are those of ``ScaleShiftMACE`` plus ``field_feats.{t}.weight``, ``field_linear.{t}.weight`` and,
    if the switches are on, ``element_polarizability`` and ``composition_polarizability.*``.
    """

    def __init__(self, config: NetworkConfig) -> None:
        if config.field_coupling:
            check_backbone(config)
        super().__init__(**config.backbone_arguments())
        self.config = config
        if config.field_coupling:
            hidden = o3.Irreps(config.hidden_irreps)
            layers = range(config.num_interactions - 1)
            self.field_feats = torch.nn.ModuleList(
                o3.FullyConnectedTensorProduct(hidden, o3.Irreps("1x1o"), hidden) for _ in layers
            )
            self.field_linear = torch.nn.ModuleList(o3.Linear(hidden, hidden) for _ in layers)
        if config.element_polarizability:
            self.element_polarizability = torch.nn.Parameter(torch.zeros(len(config.atomic_numbers)))
        if config.composition_polarizability:
            self.composition_polarizability = CompositionPolarizability(
                len(config.atomic_numbers), config.composition_polarizability
            )

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parameters."""
        return self.node_embedding.linear.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.node_embedding.linear.weight.device

    def forward(  # type: ignore[override]
        self,
        graph: Graph,
        positions: torch.Tensor | None = None,
        strain: torch.Tensor | None = None,
        field: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return interaction part and atomic baseline of F, each of shape (g,), in eV.

        Args:
            graph: A batch from :func:`fieldflows.backends.mace_field.graphs.collate`.
            positions: (n, 3) in Å, in place of those of the graph (the leaf to differentiate by).
            strain: (g, 3, 3); its symmetric part deforms positions and images, r → r (1 + ε).
            field: (g, 3) in V/Å; None skips the coupling, which is the same as zero.

        Geometry is float64 whatever the precision of the network: edge vectors, harmonics and radial functions are
        formed in it, and cast where they meet the channels.  Energies of atoms are summed in float64.
        """
        positions = graph["positions"] if positions is None else positions
        shifts = graph["shifts"]
        batch = graph["batch"]
        sender, receiver = graph["edge_index"]
        if strain is not None:
            symmetric = 0.5 * (strain + strain.transpose(-1, -2))
            positions = positions + torch.einsum("ni,nij->nj", positions, symmetric[batch])
            shifts = shifts + torch.einsum("ei,eij->ej", shifts, symmetric[batch[sender]])
        vectors = positions[receiver] - positions[sender] + shifts
        lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)

        n_graphs = graph["ptr"].numel() - 1
        heads = graph["head"][batch]
        atoms = torch.arange(len(positions), device=positions.device)
        attrs = graph["node_attrs"]
        baselines = self.atomic_energies_fn(attrs.to(positions.dtype))[atoms, heads]
        baseline = scatter_sum(baselines, batch, dim=0, dim_size=n_graphs)

        edge_attrs = self.spherical_harmonics(vectors).to(self.dtype)
        edge_feats, cutoff = self.radial_embedding(lengths, attrs, graph["edge_index"], self.atomic_numbers)
        edge_feats = edge_feats.to(self.dtype)
        cutoff = None if cutoff is None else cutoff.to(self.dtype)
        if hasattr(self, "pair_repulsion_fn"):
            node_energy = self.pair_repulsion_fn(lengths, attrs, graph["edge_index"], self.atomic_numbers)
        else:
            node_energy = torch.zeros_like(positions[:, 0])

        features = self.node_embedding(attrs)
        collected = []
        node_field = None if field is None else field[batch]
        for layer, (interaction, product) in enumerate(zip(self.interactions, self.products, strict=True)):
            features, skip = interaction(
                node_attrs=attrs,
                node_feats=features,
                edge_attrs=edge_attrs,
                edge_feats=edge_feats,
                edge_index=graph["edge_index"],
                cutoff=cutoff,
                first_layer=layer == 0,
            )
            features = product(node_feats=features, sc=skip, node_attrs=attrs)
            if node_field is not None and self.config.field_coupling and layer < len(self.field_feats):
                change = self.field_feats[layer](features, node_field.to(self.dtype))
                features = features - self.field_linear[layer](change)
            collected.append(features)
        for index, readout in enumerate(self.readouts):
            layer = -1 if len(self.readouts) == 1 else index
            node_energy = node_energy + readout(collected[layer], heads)[atoms, heads]

        interaction_energy = scatter_sum(self.scale_shift(node_energy, heads), batch, dim=0, dim_size=n_graphs)
        if node_field is not None and self.config.element_polarizability:
            atomic = attrs @ self.element_polarizability
            quadratic = -0.5 * atomic * node_field.square().sum(-1)
            interaction_energy = interaction_energy + scatter_sum(quadratic, batch, dim=0, dim_size=n_graphs)
        if field is not None and self.config.composition_polarizability:
            known = composition_enthalpy(self.composition_polarizability, graph, field, strain)
            interaction_energy = interaction_energy + known
        return interaction_energy, baseline.to(interaction_energy.dtype)


def build_network(
    config: NetworkConfig, dtype: torch.dtype = torch.float64, seed: int | None = None
) -> MACEFieldNetwork:
    """Return a network with random weights.

    Args:
        config: The architecture.
        dtype: Precision of the parameters.
        seed: Seed of the weights; the state of the global generator is left untouched if it is given.

    Raises:
        BackboneError: If the architecture cannot carry the coupling that it asks for.
    """
    with module_construction(dtype):
        if seed is None:
            return MACEFieldNetwork(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return MACEFieldNetwork(config)
