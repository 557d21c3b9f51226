"""Architectures of the MACE families, and plain backbones with the weights of a network."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from fieldflows.backends.mace_field._mace import ScaleShiftMACE, module_construction
from fieldflows.backends.mace_field.graphs import Graph, build_graph, collate
from fieldflows.backends.mace_field.network import MACEFieldNetwork, NetworkConfig
from tests.backends.mace_field.models import HIDDEN, cubic, small_network, triclinic

TWO_HEADS: dict[str, Any] = {
    "heads": ["pbe", "r2scan"],
    "scale": [2.8, 1.7],
    "shift": [0.1, -0.3],
    "atomic_energies": [[-1.5, -0.25, 3.75], [0.5, 1.25, -2.0]],
}
NONLINEAR = {
    "interaction_cls_first": "RealAgnosticResidualNonLinearInteractionBlock",
    "interaction_cls": "RealAgnosticResidualNonLinearInteractionBlock",
}
CASES: dict[str, dict[str, Any]] = {
    "residual": {},
    "L2": {"hidden_irreps": HIDDEN["L2"]},
    "first block without residual": {"interaction_cls_first": "RealAgnosticInteractionBlock"},
    "density": {
        "interaction_cls_first": "RealAgnosticDensityInteractionBlock",
        "interaction_cls": "RealAgnosticDensityResidualInteractionBlock",
    },
    "density residual": {
        "interaction_cls_first": "RealAgnosticDensityResidualInteractionBlock",
        "interaction_cls": "RealAgnosticDensityResidualInteractionBlock",
    },
    "two heads": TWO_HEADS,
    "ZBL": {"pair_repulsion": True},
    "Agnesi": {"distance_transform": "Agnesi"},
    "Soft": {"distance_transform": "Soft"},
    "Gaussian": {"radial_type": "gaussian"},
    "envelope on messages": {"apply_cutoff": False},
    "like the 2024 foundations": {
        "interaction_cls_first": "RealAgnosticDensityInteractionBlock",
        "interaction_cls": "RealAgnosticDensityResidualInteractionBlock",
        "pair_repulsion": True,
        "distance_transform": "Agnesi",
        **TWO_HEADS,
    },
    "non-linear block": NONLINEAR,
    "like the 2025 foundations": {
        **NONLINEAR,
        **TWO_HEADS,
        "readout_cls": "NonLinearBiasReadoutBlock",
        "apply_cutoff": False,
        "use_agnostic_product": True,
        "edge_irreps": "3x0e + 3x1o",
        "keep_last_layer_irreps": True,
    },
    "last readout only": {"use_last_readout_only": True},
    "unnatural parity": {"hidden_irreps": "3x0e + 3x0o + 3x1o + 3x1e"},
    "first order": {"correlation": 1},
    "three layers": {"num_interactions": 3, "correlation": [2, 1, 2]},
}


FAMILIES = (
    "residual",
    "density",
    "two heads",
    "ZBL",
    "Agnesi",
    "like the 2024 foundations",
    "like the 2025 foundations",
    "three layers",
)
"""Cases of the default suite; the others run with ``-m slow``."""


def cases(*left_out: str) -> list[Any]:
    """All cases, those beyond the families marked slow."""
    return [
        case if case in FAMILIES else pytest.param(case, marks=pytest.mark.slow)
        for case in CASES
        if case not in left_out
    ]


def network_of(case: str) -> MACEFieldNetwork:
    """The network of a case, with random weights as they come."""
    return small_network(lively=False, **CASES[case])


def heads_of(case: str) -> range:
    """Indices of the heads of a case."""
    return range(len(CASES[case].get("heads", ["one"])))


def plain_twin(network: MACEFieldNetwork, fresh: bool = False) -> ScaleShiftMACE:
    """A ScaleShiftMACE with the weights of a network, which knows nothing of fields.

    Building one takes long, so that it is shared by all calls for one architecture; ask for a ``fresh`` one to change.
    """
    build = _untrained.__wrapped__ if fresh else _untrained
    twin = build(network.config.model_dump_json())
    weights = {k: v for k, v in network.state_dict().items() if not k.startswith(("field_", "element_"))}
    twin.load_state_dict(weights, strict=True)
    return twin


@cache
def _untrained(document: str) -> ScaleShiftMACE:
    with module_construction(torch.float64):
        return ScaleShiftMACE(**NetworkConfig.model_validate_json(document).backbone_arguments())


def graphs_of(network: MACEFieldNetwork, head: int = 0) -> list[Graph]:
    """A batch of two crystals, and the first of them alone; some atoms are close, for the repulsion."""
    squeezed = triclinic()
    squeezed.set_cell(0.75 * squeezed.cell[:], scale_atoms=True)
    config = network.config
    pair = [build_graph(a, config.atomic_numbers, config.r_max, head=head) for a in (squeezed, cubic())]
    return [collate(pair), collate(pair[:1])]


def plain_results(twin: torch.nn.Module, graph: Graph) -> dict[str, torch.Tensor]:
    """Energy, forces and stress from mace-torch's own forward pass."""
    keys = ("positions", "node_attrs", "edge_index", "shifts", "unit_shifts", "cell", "batch", "ptr", "head")
    data = {key: graph[key].clone() for key in keys}
    results = ScaleShiftMACE.forward(twin, data, compute_stress=True)
    return {name: results[name].detach() for name in ("energy", "forces", "stress")}
