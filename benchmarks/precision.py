"""Errors of single precision, observable by observable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms

from benchmarks.agreement import FLOORS
from benchmarks.baseline import RESPONSE
from fieldflows.backends.base import load_model
from fieldflows.backends.mace_field.checkpoint import CheckpointMetadata
from fieldflows.backends.mace_field.model import MACEFieldModel
from fieldflows.backends.mace_field.network import build_network
from fieldflows.observables import OBSERVABLES

NAMES = (*RESPONSE, "hessian")


def in_single_precision(model: MACEFieldModel) -> MACEFieldModel:
    """Return a model with the same weights, rounded to float32."""
    network = build_network(model.network.config, torch.float32, seed=0)
    network.load_state_dict(model.network.state_dict())
    metadata = CheckpointMetadata(name=model.info.name, network=model.network.config)
    return MACEFieldModel(network, metadata, sha256="0" * 64)


def errors(double: MACEFieldModel, single: MACEFieldModel, crystals: Sequence[Atoms]) -> dict[str, dict[str, Any]]:
    """Return, by observable, errors of single precision over some crystals.

    Returns:
        ``absolute``: the largest error of a component, in internal units (energies per atom);  ``relative``: the
        median over the crystals of the largest error relative to the largest component;  ``relative_max``: the
        largest of them.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}
    for atoms in crystals:
        right, rounded = (model.evaluate(atoms, observables=NAMES) for model in (double, single))
        for name in NAMES:
            expected, value = np.asarray(right.get(name)), np.asarray(rounded.get(name))
            absolute = float(np.abs(expected - value).max())
            relative = absolute / max(float(np.abs(expected).max()), FLOORS[name])
            found[name].append((absolute / (len(atoms) if name == "energy" else 1), relative))
    return {
        name: {
            "unit": OBSERVABLES[name].unit,
            "absolute": max(a for a, _ in values),
            "relative": float(np.median([r for _, r in values])),
            "relative_max": max(r for _, r in values),
        }
        for name, values in found.items()
    }


def measure_precision(model: MACEFieldModel, crystals: Mapping[str, Atoms]) -> Iterator[dict[str, Any]]:
    """Yield the errors of a model, and those of the bundled one on the crystals whose elements it knows."""
    yield {
        "model": f"random weights, {model.info.name.rsplit('-', 1)[-1]} channels",
        "crystals": list(crystals),
        "errors": errors(model, in_single_precision(model), list(crystals.values())),
    }
    bundled = {dtype: load_model("dielectric", dtype=dtype) for dtype in ("float64", "float32")}
    known = set(bundled["float64"].info.elements)
    fitting = {tag: atoms for tag, atoms in crystals.items() if set(atoms.get_chemical_symbols()) <= known}
    yield {
        "model": "dielectric (bundled)",
        "crystals": list(fitting),
        "errors": errors(bundled["float64"], bundled["float32"], list(fitting.values())),  # type: ignore[arg-type]
    }
