"""Checkpoints: one safetensors file whose header carries a JSON document.  Loading one executes nothing.

The header holds a single entry, ``fieldflows``, with the JSON text of :class:`CheckpointMetadata`; any safetensors
reader can show it.  Tensors carry the state names of the network.  The coupling tables of the symmetric contraction
(``U_matrix_*``) are mostly zeros and are stored as the positions and values of their nonzero entries.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialize_tensors

from fieldflows.backends.mace_field.basis import adopt_coupling_basis
from fieldflows.backends.mace_field.network import MACEFieldNetwork, NetworkConfig, build_network
from fieldflows.errors import CheckpointError, SettingsError
from fieldflows.observables import OBSERVABLES

FORMAT = "fieldflows-mace-field"
FORMAT_VERSION = 1
_ENTRY = "fieldflows"
_SPARSE = ("::positions", "::values")
_LARGEST_TABLE = 100_000_000

ROUNDING = 5e-7
"""Relative difference up to which a constant in single precision is the rounded one of the architecture."""


class CheckpointMetadata(BaseModel):
    """What a checkpoint says about itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str = Field(FORMAT, description="Always 'fieldflows-mace-field'.")
    format_version: int = Field(FORMAT_VERSION, description="Version of this layout.")
    name: str = Field(description="Short name of the model.")
    network: NetworkConfig = Field(description="Architecture, elements, heads and baselines.")
    trained_labels: tuple[str, ...] = Field((), description="Observables that the weights were trained on.")
    units: dict[str, str] = Field(
        default_factory=lambda: {item.name: item.unit for item in OBSERVABLES.values()},
        description="Unit of every output.",
    )
    license: str = Field("unknown", description="Terms of the weights.")
    provenance: dict[str, Any] = Field(
        default_factory=dict, description="Where the weights come from: training settings, dataset digest, metrics."
    )
    sparse_shapes: dict[str, list[int]] = Field(
        default_factory=dict, description="Full shapes of tensors that are stored by their nonzero entries."
    )
    content_sha256: str = Field("", description="Hash of everything else in the file: this document and all tensors.")


def checkpoint_bytes(network: MACEFieldNetwork, metadata: CheckpointMetadata) -> bytes:
    """Return the serialization of a network; the same content gives the same bytes."""
    tensors: dict[str, torch.Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, value in sorted(network.state_dict().items()):
        value = value.detach().cpu().contiguous()
        if ".U_matrix_" in name:
            flat = value.reshape(-1)
            (positions,) = torch.nonzero(flat, as_tuple=True)
            shapes[name] = list(value.shape)
            tensors[name + _SPARSE[0]] = positions.to(torch.int32)
            tensors[name + _SPARSE[1]] = flat[positions].clone()
        else:
            tensors[name] = value.clone()
    metadata = metadata.model_copy(
        update={"network": network.config, "sparse_shapes": shapes, "content_sha256": ""}, deep=True
    )
    metadata = metadata.model_copy(update={"content_sha256": _content_hash(metadata, tensors)})
    return serialize_tensors(tensors, metadata={_ENTRY: _canonical_json(metadata)})


def save_checkpoint(path: str | Path, network: MACEFieldNetwork, metadata: CheckpointMetadata) -> str:
    """Write a checkpoint atomically and return the sha256 of the file.

    Args:
        path: Where to write; must end in ``.safetensors``.
        network: The network; its configuration replaces the one in ``metadata``.
        metadata: Name, trained labels, license and provenance.

    Raises:
        SettingsError: If the name of the file does not end in ``.safetensors``.
        CheckpointError: If the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise SettingsError(f"A checkpoint must be named *.safetensors, asked for {path.name!r}.")
    data = checkpoint_bytes(network, metadata)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CheckpointError(f"Cannot write {path}: {error.strerror}.", "Check the folder and the disk.") from error
    return hashlib.sha256(data).hexdigest()


def read_metadata(path: str | Path) -> CheckpointMetadata:
    """Return what a checkpoint says about itself, after checking that it is whole.

    Raises:
        CheckpointError: If the file is missing, truncated, altered or foreign.
    """
    return _read(Path(path))[0]


def load_checkpoint(
    path: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> tuple[MACEFieldNetwork, CheckpointMetadata, str]:
    """Return network, metadata and sha256 of a checkpoint file.

    Args:
        path: The file.
        dtype: Precision to evaluate in; as stored by default.
        device: Where the network goes.

    Raises:
        CheckpointError: If the file is missing, truncated, altered or foreign, or does not fit its own architecture.
    """
    path = Path(path)
    metadata, tensors, sha256 = _read(path)
    for name, shape in metadata.sparse_shapes.items():
        tensors[name] = _dense(path, name, shape, *(tensors.pop(name + suffix, None) for suffix in _SPARSE))
    stored = tensors["node_embedding.linear.weight"].dtype if "node_embedding.linear.weight" in tensors else None
    network = build_network(metadata.network, dtype=dtype or stored or torch.float64, seed=0)
    adopt_coupling_basis(network, tensors)
    expected = network.state_dict()
    missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    wrong = [k for k in expected if k in tensors and tensors[k].shape != expected[k].shape]
    if missing or extra or wrong:
        raise CheckpointError(
            f"{path} does not fit its own architecture: missing {missing[:3]}, unexpected {extra[:3]}, "
            f"wrong shape {wrong[:3]}.",
            "It was written by another version; convert it again from the original.",
        )
    exact = _exact_constants(network, tensors)
    network.load_state_dict(tensors)
    network.load_state_dict(exact, strict=False)
    return network.to(device).eval(), metadata, sha256


def _exact_constants(network: MACEFieldNetwork, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return constants of the architecture (couplings, radial basis) that a file in single precision has rounded.

    With rounded constants the network is covariant to 1e-7 only, however precisely it is evaluated.
    """
    if network.dtype != torch.float64:
        return {}
    exact = {}
    for name, fresh in network.named_buffers():
        stored = tensors.get(name)
        if stored is not None and stored.dtype == torch.float32 and fresh.dtype == torch.float64:
            size = float(fresh.abs().max()) if fresh.numel() else 0.0
            if torch.allclose(stored.double(), fresh, rtol=ROUNDING, atol=ROUNDING * size):
                exact[name] = fresh.detach().clone()
    return exact


def _read(path: Path) -> tuple[CheckpointMetadata, dict[str, torch.Tensor], str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"Cannot read the checkpoint {path}: {error.strerror}.") from error
    # a safetensors file may start with 0x80 as well (the low byte of its header's length), but then a "{" follows
    if data[:4] == b"PK\x03\x04" or (data[:1] == b"\x80" and data[8:9] != b"{"):
        raise CheckpointError(
            f"{path} is a pickle (a PyTorch file), which can run code on loading.",
            "If you trust its origin, convert it with `fieldflows model import FILE --trust-pickle`.",
        )
    header = _header(path, data)
    if _ENTRY not in header.get("__metadata__", {}):
        raise CheckpointError(
            f"{path} is a safetensors file of another program: it has no {_ENTRY!r} entry in its header.",
            "Only checkpoints written by fieldflows can be loaded.",
        )
    try:
        metadata = CheckpointMetadata.model_validate_json(header["__metadata__"][_ENTRY])
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(
            f"The description inside {path} is damaged or of another version: "
            f"{'.'.join(str(x) for x in first['loc']) or 'document'}: {first['msg']}."
        ) from error
    if metadata.format != FORMAT or metadata.format_version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {metadata.format!r} version {metadata.format_version}; "
            f"this program reads {FORMAT!r} up to version {FORMAT_VERSION}.",
            "Update fieldflows.",
        )
    try:
        tensors = parse_tensors(data)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}.", "Copy it again.") from error
    if _content_hash(metadata.model_copy(update={"content_sha256": ""}), tensors) != metadata.content_sha256:
        raise CheckpointError(
            f"{path} was altered after it was written: its content does not have the hash that it states "
            f"({metadata.content_sha256[:12]}...).",
            "Copy it again from its source.",
        )
    return metadata, tensors, hashlib.sha256(data).hexdigest()


def _dense(
    path: Path, name: str, shape: list[int], positions: torch.Tensor | None, values: torch.Tensor | None
) -> torch.Tensor:
    """Return a tensor from its nonzero entries, after checking that they describe one."""
    size = math.prod(shape)
    if (
        positions is None
        or values is None
        or positions.shape != values.shape
        or not 0 < size <= _LARGEST_TABLE
        or min(shape) < 1
        or (positions.numel() and not 0 <= int(positions.min()) <= int(positions.max()) < size)
    ):
        raise CheckpointError(
            f"{path} describes {name} of shape {shape} by entries that do not fit.",
            "It was written by another version or altered; convert it again from the original.",
        )
    full = torch.zeros(size, dtype=values.dtype)
    full[positions.long()] = values
    return full.reshape(shape)


def _header(path: Path, data: bytes) -> dict[str, Any]:
    """Parse the JSON header of a safetensors file: 8 bytes of length, then the text."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        whole = "empty" if not data else "truncated, or no safetensors file"
        raise CheckpointError(f"{path} is {whole} ({len(data)} bytes).", "Copy it again from its source.")
    try:
        header = json.loads(data[8 : 8 + length])
    except ValueError as error:
        raise CheckpointError(f"{path} is no safetensors file, or its header is damaged.") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is no safetensors file: its header is no JSON object.")
    return header


def _canonical_json(metadata: CheckpointMetadata) -> str:
    return json.dumps(metadata.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _content_hash(metadata: CheckpointMetadata, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(_canonical_json(metadata).encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
