"""Field blocks on top of a plain MACE: inherit a foundation model, keep its energies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fieldflows.backends.mace_field._mace import ScaleShiftMACE, contained_imports, gate_dict, module_construction, o3
from fieldflows.backends.mace_field.basis import adopt_coupling_basis
from fieldflows.backends.mace_field.checkpoint import CheckpointMetadata, load_checkpoint
from fieldflows.backends.mace_field.graphs import build_graph
from fieldflows.backends.mace_field.network import MACEFieldNetwork, NetworkConfig, build_network, check_backbone
from fieldflows.errors import BackboneError, CheckpointError, suggestion
from fieldflows.models.find import known_names, locate

Initialization = Literal["random", "zero"]

ENERGY_LABELS = ("energy", "forces", "stress")
"""Labels that the public foundation models were trained on."""

DERIVED_FLAGS = ("_zeroed",)
"""Endings of state names that say which coupling tables vanish; pickles of older releases of mace lack them."""

UNREAD_STATE = ("pair_repulsion_fn.r_max", "pair_repulsion_fn.cutoff.")
"""State that pickles of older releases carry and no forward pass reads (see ACEsuit/mace#816)."""


def network_config(module: torch.nn.Module) -> NetworkConfig:
    """Return the architecture of a plain mace-torch ``ScaleShiftMACE`` module.

    Raises:
        BackboneError: If the module is of another class, or uses something that Eq. 17 does not cover (joint
            embeddings, accelerated layouts).
    """
    if not isinstance(module, ScaleShiftMACE):
        raise BackboneError(
            f"The backbone is a {type(module).__name__}; only ScaleShiftMACE (the class of the MACE foundation models) "
            "can inherit field blocks."
        )
    if hasattr(module, "joint_embedding"):
        raise BackboneError("The backbone embeds extra features (charge, spin); these are not supported.")
    accelerated = getattr(module, "cueq_config", None) or getattr(module.products[0], "cueq_config", None)
    if getattr(accelerated, "enabled", False):
        raise BackboneError(
            "The backbone was saved in the layout of cuequivariance.",
            "Convert it back with mace's `mace_cueq_to_e3nn` first.",
        )
    with contained_imports():
        from mace.tools.scripts_utils import extract_config_mace_model
    try:
        found = extract_config_mace_model(module)
    except AttributeError as error:  # it knows Bessel functions only, for one
        raise BackboneError(f"The architecture of the backbone cannot be read: {error}.") from error
    gate = next((name for name, function in gate_dict.items() if function is found["gate"]), "silu")
    hidden = o3.Irreps(found["hidden_irreps"])
    last = o3.Irreps(str(module.products[-1].linear.irreps_out))
    try:
        return NetworkConfig(
            atomic_numbers=[int(z) for z in module.atomic_numbers],
            r_max=float(found["r_max"]),
            num_bessel=int(found["num_bessel"]),
            num_polynomial_cutoff=int(found["num_polynomial_cutoff"]),
            max_ell=int(found["max_ell"]),
            interaction_cls=found["interaction_cls"].__name__,
            interaction_cls_first=found["interaction_cls_first"].__name__,
            num_interactions=int(found["num_interactions"]),
            hidden_irreps=str(hidden),
            MLP_irreps=str(found["MLP_irreps"]),
            gate=gate,
            correlation=_correlation(module),
            atomic_energies=_floats(found["atomic_energies"]),
            avg_num_neighbors=float(found["avg_num_neighbors"]),
            scale=_floats(found["atomic_inter_scale"]),
            shift=_floats(found["atomic_inter_shift"]),
            heads=list(found["heads"]),
            radial_type=found["radial_type"],
            radial_MLP=[int(width) for width in found["radial_MLP"]],
            distance_transform=str(found["distance_transform"] or "None"),
            pair_repulsion=bool(found["pair_repulsion"]),
            apply_cutoff=bool(found["apply_cutoff"]),
            use_reduced_cg=bool(found["use_reduced_cg"]),
            use_so3=bool(found["use_so3"]),
            use_agnostic_product=bool(found["use_agnostic_product"]),
            use_last_readout_only=bool(found["use_last_readout_only"]),
            readout_cls=found["readout_cls"].__name__,
            edge_irreps=str(found["edge_irreps"]) if found["edge_irreps"] else None,
            use_edge_irreps_first=bool(found["use_edge_irreps_first"]),
            keep_last_layer_irreps=last.lmax > 0 and len(module.interactions) > 1,
            field_coupling=hasattr(module, "field_feats"),
        )
    except ValueError as error:
        raise BackboneError(f"The architecture of the backbone cannot be read: {error}") from error


def from_plain_mace(
    module: torch.nn.Module,
    *,
    field_coupling: bool = True,
    initialization: Initialization = "random",
    element_polarizability: bool = False,
    seed: int = 0,
) -> MACEFieldNetwork:
    """Return a MACE-Field network with the weights of a plain MACE.

    Elements, heads, scale and shift are all kept; energies, forces and stresses at zero field are unchanged.  The
    energy on a two-atom cell is compared with the original before the network is handed out.

    Args:
        module: A mace-torch ``ScaleShiftMACE``.
        field_coupling: False keeps it a plain MACE in this package's format.
        initialization: ``"random"`` field blocks, or ``"zero"``: F is that of the backbone at any field at first.
        element_polarizability: Add one trained polarizability per element.
        seed: Seed of the random field blocks.

    Raises:
        BackboneError: If the backbone has one layer or no vector features, is of another class, or its energy is
            not reproduced.
    """
    config = network_config(module)
    if field_coupling:
        check_backbone(config)
    config = config.model_copy(
        update={
            "field_coupling": field_coupling or config.field_coupling,
            "element_polarizability": element_polarizability,
        }
    )
    weights = {name: value for name, value in module.state_dict().items() if value is not None}
    dtype = weights["node_embedding.linear.weight"].dtype
    network = _inherit(config, weights, dtype, initialization, seed)
    _compare_energy(module, network)
    return network


def with_field(
    network: MACEFieldNetwork,
    *,
    initialization: Initialization = "random",
    element_polarizability: bool = False,
    seed: int = 0,
) -> MACEFieldNetwork:
    """Return a copy of a network with field blocks added where it has none.

    Raises:
        BackboneError: If the architecture cannot carry them.
    """
    config = network.config.model_copy(
        update={
            "field_coupling": True,
            "element_polarizability": element_polarizability or network.config.element_polarizability,
        }
    )
    check_backbone(config)
    return _inherit(config, network.state_dict(), network.dtype, initialization, seed)


def load_backbone(
    name: str | Path, *, trust_pickle: bool = False, dtype: torch.dtype | None = None
) -> tuple[MACEFieldNetwork, CheckpointMetadata]:
    """Return a network to start from, by checkpoint file, pickled MACE file or foundation name.

    Names such as ``"medium-0b3"`` are downloaded by mace's own machinery into mace's cache.  Both the downloads and
    ``.model`` files are pickles, which can run code on loading.

    Args:
        name: ``path.safetensors``, ``path.model``, a name of mace's foundation models, or what else
            :func:`fieldflows.load_model` takes: a bundled or registered name, ``sha256:...``, an address with its hash.
        trust_pickle: Say that the origin of a pickle is trusted.
        dtype: Precision; as stored by default.

    Raises:
        UntrustedPickleError: If it is a pickle and ``trust_pickle`` is False.
        CheckpointError: If there is no such file or name, or it cannot be read.
    """
    from fieldflows.backends.mace_field import pickles

    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".safetensors":
        network, metadata, _ = load_checkpoint(path, dtype)
        return network, metadata
    if path.is_file():
        network, metadata = pickles.convert(path, trust=trust_pickle)
        return network.to(dtype) if dtype else network, metadata
    names = foundation_names()
    if str(name) not in names:
        found = locate(str(name))
        if found is None:
            known = [*names, *known_names()]
            raise CheckpointError(
                f"No backbone {str(name)!r}: no such file or foundation name.", suggestion(str(name), known)
            )
        network, metadata, _ = load_checkpoint(found, dtype)
        return network, metadata
    pickles.require_trust(str(name), trust_pickle)
    network, metadata = pickles.convert(download_foundation(str(name)), trust=True)
    metadata = metadata.model_copy(
        update={"name": str(name), "provenance": {**metadata.provenance, "foundation": str(name)}}
    )
    return network.to(dtype) if dtype else network, metadata


def foundation_names() -> list[str]:
    """Return the names that mace's machinery can download."""
    with contained_imports():
        from mace.calculators import foundations_models
    return sorted(foundations_models.mace_mp_urls)


def download_foundation(name: str) -> Path:
    """Download a foundation model with mace's machinery, or find it in mace's cache, and return the file.

    Raises:
        CheckpointError: If the download fails.
    """
    with contained_imports():
        from mace.calculators import foundations_models
    try:
        return Path(foundations_models.download_mace_mp_checkpoint(name))
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"The foundation model {name!r} could not be downloaded: {error}",
            "Check the network, or download the file elsewhere and give its path.",
        ) from error


def _inherit(
    config: NetworkConfig,
    weights: dict[str, torch.Tensor],
    dtype: torch.dtype,
    initialization: Initialization,
    seed: int,
) -> MACEFieldNetwork:
    network = build_network(config, dtype=dtype, seed=seed)
    adopt_coupling_basis(network, weights)
    own = network.state_dict()
    wrong = [k for k, v in weights.items() if k in own and own[k].shape != v.shape and own[k].numel() == v.numel()]
    result = network.load_state_dict(
        {k: v.reshape(own[k].shape) if k in wrong else v for k, v in weights.items()}, strict=False
    )
    allowed = ("field_feats.", "field_linear.", "element_polarizability")
    missing = [key for key in result.missing_keys if not key.startswith(allowed) and not key.endswith(DERIVED_FLAGS)]
    unexpected = [
        key
        for key in result.unexpected_keys
        if own.get(key) is None and weights[key].numel() and not key.startswith(UNREAD_STATE)
    ]
    if missing or unexpected:
        raise BackboneError(
            f"The weights do not fit the architecture read from the backbone: missing {missing[:3]}, "
            f"unexpected {unexpected[:3]}."
        )
    fresh = any(key.startswith("field_linear.") for key in result.missing_keys)
    if fresh and initialization == "zero":
        with torch.no_grad():
            for block in network.field_linear:
                block.weight.zero_()
    return network


def _compare_energy(module: torch.nn.Module, network: MACEFieldNetwork) -> None:
    """Raise unless both give the same energy on a strained two-atom cell, for every head."""
    from ase import Atoms

    numbers = network.config.atomic_numbers
    atoms = Atoms(
        numbers=[numbers[0], numbers[-1]],
        cell=[[3.1, 0.1, 0.0], [0.2, 3.3, 0.1], [0.0, 0.3, 3.6]],
        scaled_positions=[[0, 0, 0], [0.47, 0.52, 0.55]],
        pbc=True,
    )
    tolerance = 1e-9 if network.dtype == torch.float64 else 1e-4
    for head in range(len(network.config.heads)):
        graph = build_graph(atoms, numbers, network.config.r_max, network.dtype, head)
        # mace wants all of it in the precision of the network
        data = {key: value.to(network.dtype) if value.is_floating_point() else value for key, value in graph.items()}
        with module_construction(network.dtype):
            # class-level call: an imported MACEField brings a forward of its own, which we do not have
            original = ScaleShiftMACE.forward(module, data, compute_force=False)["energy"]
        ours = sum(network(graph))
        difference = float((original - ours).detach().abs().max())
        if not difference <= tolerance * max(1.0, float(original.detach().abs().max())):
            raise BackboneError(
                f"The energy of the backbone is not reproduced: {difference:.3g} eV apart on a two-atom cell "
                f"(head {network.config.heads[head]!r}).",
                "Please report this architecture.",
            )


def _correlation(module: torch.nn.Module) -> int | list[int]:
    orders = [len(p.symmetric_contractions.contractions[0].weights) + 1 for p in module.products]
    return orders[0] if len(set(orders)) == 1 else orders


def _floats(values: Any) -> Any:
    return np.asarray(values, dtype=float).tolist()


def describe(network: MACEFieldNetwork, name: str, labels: Sequence[str], **provenance: Any) -> CheckpointMetadata:
    """Return metadata for a network that was made from another one."""
    return CheckpointMetadata(name=name, network=network.config, trained_labels=tuple(labels), provenance=provenance)
