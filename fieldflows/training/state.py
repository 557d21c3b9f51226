"""The state of an unfinished run in one file, written so that a kill at any moment loses no more than some steps.

One safetensors file: weights, their average, the best weights, and the moments of the optimizer as tensors; progress
as a JSON document in the header, with a hash over all of it.  A new state is written beside and moved into place; the
one before is kept as ``state.previous.safetensors`` and taken when the newer one is damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialize_tensors

from fieldflows.errors import TrainingError

STATE_NAME = "state.safetensors"
PREVIOUS_NAME = "state.previous.safetensors"
_ENTRY = "fieldflows-training"
_FORMAT_VERSION = 1


@dataclass
class TrainingState:
    """Everything that decides how a run goes on.

    Attributes:
        config_digest: Digest of the settings that decide the result.
        dataset_digest: Digest of the dataset.
        epoch: Epochs that are complete, evaluation included.
        batch: Batches of the present epoch that are done.
        step: Optimizer steps so far.
        seconds: Wall time of training so far.
        learning_rate: That of the last step.
        sums: Running sums of the loss of the present epoch, by observable, and their count.
        schedule: State of the learning rate.
        best: Score, epoch and evaluations since then of the best validation so far.
        history: One record per evaluation.
        watched: Observable to its best validation loss and the evaluations since then.
        averaged: Steps that are in the plain mean of the weights.
        log_bytes: Length of the log file that belongs to this state.
        tensors: ``model/...``, ``average/...``, ``best/...`` and ``optimizer/...``.
    """

    config_digest: str
    dataset_digest: str
    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    learning_rate: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    schedule: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    watched: dict[str, dict[str, float]] = field(default_factory=dict)
    averaged: int = 0
    log_bytes: int = 0
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return the tensors below a prefix."""
        start = f"{prefix}/"
        return {name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)}


def serialize(state: TrainingState) -> bytes:
    """Return a state as the content of a safetensors file, with a hash over all of it."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in sorted(state.tensors.items())}
    document = {key: value for key, value in vars(state).items() if key != "tensors"}
    document["format_version"] = _FORMAT_VERSION
    text = json.dumps(document, sort_keys=True)
    return serialize_tensors(tensors, metadata={_ENTRY: text, "sha256": _hash(text, tensors)})


def save_state(directory: Path, state: TrainingState) -> None:
    """Write the state atomically and keep the one before.

    Raises:
        TrainingError: If it cannot be written.
    """
    data = serialize(state)
    temporary = directory / f".{STATE_NAME}.{os.getpid()}.tmp"
    target = directory / STATE_NAME
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        if target.exists():
            os.replace(target, directory / PREVIOUS_NAME)
        os.replace(temporary, target)
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise TrainingError(
            f"Cannot write the state of the run to {target}: {error.strerror}.",
            "Free disk space or permissions, then resume: the state before is kept.",
        ) from error


def load_state(directory: Path) -> TrainingState | None:
    """Return the newest state that is whole; None if there is none at all.

    Raises:
        TrainingError: If there are states and each of them is damaged.
    """
    problems = []
    for name in (STATE_NAME, PREVIOUS_NAME):
        path = directory / name
        if not path.exists():
            continue
        try:
            return deserialize(path.read_bytes())
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise TrainingError(
            f"No state of the run in {directory} can be read ({'; '.join(problems)}).",
            "Start again with --fresh, or restore the files.",
        )
    return None


def clear_states(directory: Path) -> None:
    """Remove the states of an earlier run."""
    for name in (STATE_NAME, PREVIOUS_NAME):
        (directory / name).unlink(missing_ok=True)


def deserialize(data: bytes) -> TrainingState:
    """Return the state that :func:`serialize` wrote.

    Raises:
        ValueError: If the data are truncated, altered, or of another format version.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise ValueError(f"truncated ({len(data)} bytes)")
    header = json.loads(data[8 : 8 + length])["__metadata__"]
    tensors = parse_tensors(data)
    if _hash(header[_ENTRY], tensors) != header["sha256"]:
        raise ValueError("its content does not have the hash that it states")
    document = json.loads(header[_ENTRY])
    version = document.pop("format_version")
    if version != _FORMAT_VERSION:
        raise ValueError(f"format version {version}; this program reads {_FORMAT_VERSION}")
    return TrainingState(**document, tensors=tensors)


def _hash(text: str, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
