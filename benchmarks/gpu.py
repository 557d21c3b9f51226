"""Crystals per second in batches on a GPU, against one by one; runs on a CPU as well, in a tiny mode."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from scipy.spatial.transform import Rotation

from benchmarks import baseline
from benchmarks.ionic import SETTINGS
from benchmarks.response import SYMMETRIC, forget_crystals
from fieldflows.backends.mace_field.model import MACEFieldModel
from fieldflows.backends.symmetric import SymmetricModel
from fieldflows.properties.dielectric import DielectricProperty
from fieldflows.properties.run import run_property
from fieldflows.schemas.dielectric import DielectricDocument


def on_device(model: MACEFieldModel, device: str) -> MACEFieldModel:
    """Return the model on a device."""
    return MACEFieldModel(model.network.to(device), model.metadata, sha256=model.info.sha256)


def turned(crystals: Sequence[Atoms], times: int, seed: int = 0) -> list[Atoms]:
    """Return every crystal several times, each time turned at random, so that nothing is remembered from another."""
    copies = []
    for number in range(times):
        for index, atoms in enumerate(crystals):
            rotation = Rotation.random(random_state=seed + 100_003 * number + index).as_matrix()
            copies.append(
                Atoms(atoms.numbers, positions=atoms.positions @ rotation.T, cell=atoms.cell[:] @ rotation.T, pbc=True)
            )
    return copies


def _synchronized(function: Callable[[], Any], device: str) -> tuple[float, Any]:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def response_of(model: MACEFieldModel, crystals: list[Atoms]) -> list[Any]:
    """Return the responses of all crystals, in batches and by symmetry."""
    forget_crystals()
    return list(SymmetricModel(model).evaluate(crystals, observables=baseline.RESPONSE))


def pipeline_of(model: MACEFieldModel, crystals: list[Atoms]) -> list[Any]:
    """Return the documents of all crystals, in batches and by symmetry."""
    forget_crystals()
    return list(run_property(DielectricProperty(SETTINGS[SYMMETRIC]), crystals, model))


def one_by_one(model: MACEFieldModel, crystals: Sequence[Atoms], rows: int | None) -> dict[str, float]:
    """Return the seconds of the baseline for response and for response with Hessian, some rows extrapolated."""
    device = model.device
    response = full = 0.0
    for atoms in crystals:
        seconds, _ = _synchronized(lambda a=atoms: baseline.response(model.network, a), device)
        response += seconds
        found = baseline.hessian_rows(model.network, atoms, rows)
        full += seconds + found.seconds
    return {"response": response, "pipeline": full}


def profile(function: Callable[[], Any], device: str, top: int = 12) -> dict[str, Any]:
    """Return where the time goes: the operations that take most, and how busy the device is."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    cuda = device.startswith("cuda")
    if cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as recorded:
        seconds, _ = _synchronized(function, device)
    events = recorded.key_averages()
    own = [float(e.self_device_time_total if cuda else e.self_cpu_time_total) * 1e-6 for e in events]
    order = np.argsort(own)[::-1][:top]
    return {
        "seconds": seconds,
        "busy_seconds": sum(own),
        "operations": [{"name": events[i].key, "seconds": own[i], "calls": int(events[i].count)} for i in order],
    }


def measure_gpu(
    model: MACEFieldModel,
    crystals: Sequence[Atoms],
    times: int,
    baseline_crystals: int = 8,
    rows: int | None = 2,
    seed: int = 0,
) -> dict[str, Any]:
    """Return rates of response and of the whole pipeline, the baseline's, and a profile.

    Args:
        model: On its device.
        crystals: The sample.
        times: How often it is repeated, turned each time.
        baseline_crystals: How many of the sample the baseline computes, spread over all sizes.
        rows: Rows of the baseline's Hessian.
        seed: Seed of the rotations.
    """
    device = model.device
    many = turned(crystals, times, seed)
    warm = turned(crystals[: min(8, len(crystals))], 1, seed + 1)
    response_of(model, warm)
    pipeline_of(model, warm)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    response_seconds, responses = _synchronized(lambda: response_of(model, many), device)
    pipeline_seconds, documents = _synchronized(lambda: pipeline_of(model, many), device)
    failed = sum(not isinstance(item, DielectricDocument) for item in documents)
    chosen = [crystals[i] for i in np.linspace(0, len(crystals) - 1, min(baseline_crystals, len(crystals))).astype(int)]
    one_by_one(model, chosen[:1], rows)
    theirs = one_by_one(model, chosen, rows)
    # the baseline's rate on the crystals that it computed, and the package's on the same ones, alone in a batch
    same_response, _ = _synchronized(lambda: response_of(model, turned(chosen, 1, seed + 2)), device)
    same_pipeline, _ = _synchronized(lambda: pipeline_of(model, turned(chosen, 1, seed + 2)), device)
    return {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "peak_bytes": int(torch.cuda.max_memory_allocated()) if device.startswith("cuda") else None,
        "crystals": len(many),
        "responses": len(responses),
        "failed": failed,
        "rates": {
            "response": len(many) / response_seconds,
            "pipeline": len(many) / pipeline_seconds,
        },
        "baseline": {
            "crystals": len(chosen),
            "rows": rows,
            "rates": {name: len(chosen) / seconds for name, seconds in theirs.items()},
            "product_rates_on_the_same": {
                "response": len(chosen) / same_response,
                "pipeline": len(chosen) / same_pipeline,
            },
        },
        "profile": {
            "response": profile(lambda: response_of(model, turned(crystals, 1, seed + 3)), device),
            "pipeline": profile(lambda: pipeline_of(model, turned(crystals, 1, seed + 4)), device),
        },
    }
