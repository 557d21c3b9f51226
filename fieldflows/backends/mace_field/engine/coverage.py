"""Which architectures the engine evaluates."""

from __future__ import annotations

from fieldflows.backends.mace_field._mace import o3
from fieldflows.backends.mace_field.network import NetworkConfig

PLAIN_BLOCKS = (
    "RealAgnosticInteractionBlock",
    "RealAgnosticResidualInteractionBlock",
    "RealAgnosticDensityInteractionBlock",
    "RealAgnosticDensityResidualInteractionBlock",
)
GATED_BLOCK = "RealAgnosticResidualNonLinearInteractionBlock"

READOUTS = ("NonLinearReadoutBlock", "NonLinearBiasReadoutBlock")

RADIAL_TYPES = ("bessel", "gaussian")


def uncovered(config: NetworkConfig) -> str | None:
    """Return why the engine cannot evaluate an architecture, or None if it can."""
    blocks = {config.interaction_cls, config.interaction_cls_first}
    for name in sorted(blocks):
        if name not in (*PLAIN_BLOCKS, GATED_BLOCK):
            return f"interaction block {name}"
    if config.radial_type not in RADIAL_TYPES:
        return f"radial basis {config.radial_type}"
    if config.distance_transform not in ("None", "Agnesi", "Soft"):
        return f"distance transform {config.distance_transform}"
    if config.readout_cls not in READOUTS:
        return f"readout {config.readout_cls}"
    hidden = list(o3.Irreps(config.hidden_irreps))
    irreps = [ir for _, ir in hidden]
    if len({mul for mul, _ in hidden}) != 1 or len(set(irreps)) != len(irreps) or irreps[0] != o3.Irrep(0, 1):
        return f"hidden irreps {config.hidden_irreps}"
    if config.edge_irreps:
        on_edges = [ir for _, ir in o3.Irreps(config.edge_irreps)]
        if len(set(on_edges)) != len(on_edges):
            return f"edge irreps {config.edge_irreps}"
    if GATED_BLOCK in blocks and o3.Irrep(0, -1) in irreps:
        return f"gates with pseudoscalars (hidden irreps {config.hidden_irreps})"
    return None
