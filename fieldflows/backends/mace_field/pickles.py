"""Import of foreign pickles, the only place of the package that unpickles.

A pickle can run any code on loading.  Nothing here is called by :func:`fieldflows.load_model`; it takes the command
``fieldflows model import FILE --trust-pickle`` or ``trust=True``.
"""

from __future__ import annotations

import hashlib
import pickle
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fieldflows.backends.mace_field._mace import ScaleShiftMACE, contained_imports
from fieldflows.backends.mace_field.checkpoint import CheckpointMetadata, save_checkpoint
from fieldflows.backends.mace_field.foundation import (
    ENERGY_LABELS,
    Initialization,
    describe,
    from_plain_mace,
    load_backbone,
    with_field,
)
from fieldflows.backends.mace_field.network import MACEFieldNetwork
from fieldflows.errors import BackboneError, CheckpointError, SettingsError, UntrustedPickleError
from fieldflows.observables import check_observables

FORKED_CLASSES = ("MACEField",)
"""Classes of the public MACE-Field that mace-torch does not have; their weights map one to one."""

DEFECTIVE_CLASSES = ("ScaleShiftFieldMACE",)
"""Classes of the earlier snapshot, which is another function (not covariant under a field)."""


def require_trust(what: str, trust: bool) -> None:
    """Raise unless the caller said that a pickle is trusted.

    Raises:
        UntrustedPickleError: Says why, and how to say it.
    """
    if not trust:
        raise UntrustedPickleError(
            f"{what} is a pickled PyTorch model; loading it can run any code with your rights.",
            "If you trust its origin, say so with --trust-pickle (trust_pickle=True).",
        )


def convert(
    path: str | Path, *, trust: bool, labels: Sequence[str] | None = None, name: str | None = None
) -> tuple[MACEFieldNetwork, CheckpointMetadata]:
    """Return network and metadata of a pickled plain MACE or public ``MACEField``.

    Args:
        path: The file.
        trust: Say that its origin is trusted.
        labels: Observables that it was trained on; energy, forces and stress by default for a plain MACE, required
            for a ``MACEField``.
        name: Name of the model; that of the file by default.

    Raises:
        UntrustedPickleError: If ``trust`` is False.
        CheckpointError: If the file cannot be unpickled.
        SettingsError: If the labels of a ``MACEField`` are not given, or one is unknown.
        BackboneError: If it is another kind of model.
    """
    path = Path(path)
    require_trust(str(path), trust)
    module, forked = _unpickle(path)
    if labels is None:
        if forked:
            raise SettingsError(
                f"{path.name} is a MACEField, and its file does not say what it was trained on.",
                "Name the labels, for example --labels energy,forces,stress,polarization,born_effective_charges,"
                "polarizability.",
            )
        labels = ENERGY_LABELS
    network = from_plain_mace(module, field_coupling=forked)
    metadata = describe(
        network,
        name or path.stem,
        check_observables(labels),
        imported_from=path.name,
        imported_class="MACEField" if forked else type(module).__name__,
        imported_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    return network, metadata


def import_pickle(
    source: str | Path,
    out: str | Path | None = None,
    *,
    trust: bool = False,
    labels: Sequence[str] | None = None,
    name: str | None = None,
    field_blocks: Initialization | None = None,
) -> tuple[Path, str]:
    """Convert a pickled model into a checkpoint; return the new file and its sha256.

    Args:
        source: The pickle, or the name of a foundation model, which mace's own machinery then downloads.
        out: Where to write; next to the pickle, or ``NAME.safetensors``, by default.
        trust: Say that its origin is trusted.
        labels: Observables that it was trained on (see :func:`convert`).
        name: Name of the model.
        field_blocks: Add untrained field blocks to a plain MACE, ``"random"`` or ``"zero"`` (see
            :func:`~fieldflows.backends.mace_field.foundation.with_field`); energies at zero field stay as they are.

    Raises:
        CheckpointError: If there is neither such a file nor such a foundation model; and as :func:`convert`.
    """
    path = Path(source).expanduser()
    if path.is_file():
        network, metadata = convert(path, trust=trust, labels=labels, name=name)
        default = path.with_suffix(".safetensors")
    else:
        network, metadata = load_backbone(source, trust_pickle=trust)
        changes = {"name": name} if name else {}
        if labels is not None:
            changes["trained_labels"] = check_observables(labels)  # type: ignore[assignment]
        metadata = metadata.model_copy(update=changes)
        default = Path(f"{source}.safetensors")
    if field_blocks is not None and not network.config.field_coupling:
        network = with_field(network, initialization=field_blocks)
    target = Path(out) if out is not None else default
    return target, save_checkpoint(target, network, metadata)


class _ForkedModel(ScaleShiftMACE):
    """Stands in for a class of the fork while its weights are read."""


def _unpickle(path: Path) -> tuple[torch.nn.Module, bool]:
    """Return the module in a file and whether it is a ``MACEField``."""
    met: set[str] = set()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            met.add(name)
            if module.split(".")[0] == "mace" and name in FORKED_CLASSES:
                return _ForkedModel
            return super().find_class(module, name)

    shim = types.ModuleType("fieldflows_pickle")
    shim.Unpickler = Unpickler  # type: ignore[attr-defined]
    shim.load = pickle.load  # type: ignore[attr-defined]
    shim.__name__ = "pickle"
    try:
        with contained_imports():
            module = torch.load(path, map_location="cpu", weights_only=False, pickle_module=shim)
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no file {path}.") from error
    except Exception as error:  # an unpickler may raise anything
        defective = met & set(DEFECTIVE_CLASSES)
        if defective:
            raise BackboneError(
                f"{path.name} holds a {defective.pop()} of the 2025 snapshot of MACE-Field, which is another function "
                "(its dipole uses absolute positions, and it is not covariant under a field).",
                "Import a MACEField of release 1.0 or later, or inherit its plain backbone.",
            ) from error
        raise CheckpointError(
            f"{path} cannot be unpickled: {type(error).__name__}: {error}.",
            "It is truncated, no PyTorch file, or holds classes that mace-torch does not have.",
        ) from error
    if isinstance(module, dict):
        raise CheckpointError(
            f"{path.name} holds a dictionary ({', '.join(map(str, list(module)[:4]))}), not a model.",
            "Give the exported .model file of mace, not a training checkpoint.",
        )
    if not isinstance(module, torch.nn.Module):
        raise CheckpointError(
            f"{path.name} holds an object of type {type(module).__name__}, not a model.",
            "Give the exported .model file of mace.",
        )
    forked = isinstance(module, _ForkedModel)
    if forked:
        module.__class__ = ScaleShiftMACE
    return module.eval(), forked
