"""From what a user calls a model to its file: path, hash, address, bundled or registered name."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path

from fieldflows import artifacts
from fieldflows.artifacts import SHORTEST_PREFIX, checked_sha256, file_sha256
from fieldflows.errors import ArtifactError, CheckpointError
from fieldflows.models import bundled_models
from fieldflows.models.registry import ModelRegistry

HASH = "sha256:"
_FRAGMENT = "#sha256="


def registry(folder: str | Path | None = None) -> ModelRegistry:
    """Return the registry of this machine; names of bundled models and of backends are reserved in it."""
    reserved = dict.fromkeys(bundled_models(), "a model of that name comes with the package")
    reserved |= {point.name: "a backend has that name" for point in entry_points(group="fieldflows.backends")}
    return ModelRegistry(folder, reserved)


def known_names() -> list[str]:
    """Return the names that :func:`locate` knows on this machine."""
    return sorted({*bundled_models(), *registry().names()})


def model_label(name: str) -> str:
    """Return the label under which the checkpoint of a registered model is found in a store."""
    return f"model/{name}"


def locate(text: str) -> Path | None:
    """Return the verified file of a model, fetched if need be; None if nothing of that name is known.

    In this order: the path of a file; ``sha256:`` with a hash or its first digits; an address with its hash,
    ``https://host/model.safetensors#sha256=...``; a bundled name; a registered name, or ``name@version``; a name that a
    place known to :mod:`fieldflows.artifacts` has, such as the store of the job.

    Raises:
        CheckpointError: If a hash is unknown or ambiguous, an address lacks its hash, or a file was altered.
        ArtifactError: If a file cannot be fetched.
    """
    path = Path(text).expanduser()
    if path.is_file():
        return path.resolve()
    if text.startswith(HASH):
        return _by_hash(text)
    if "://" in text:
        address, fragment, digits = text.partition(_FRAGMENT)
        if not fragment:
            raise CheckpointError(
                f"The address {text} does not say which file is expected there.",
                "Append #sha256= and the hash, so that it can be verified.",
            )
        return artifacts.download(address, digits)
    bundled = bundled_models()
    if text in bundled:
        return bundled[text]
    own = registry()
    entry = own.find(text)
    if entry is not None:
        return own.path(entry)
    return _by_label(text)


def _by_hash(text: str) -> Path:
    """Return the file of a hash, or of its first digits."""
    try:
        digits = checked_sha256(text, SHORTEST_PREFIX)
    except ArtifactError as error:
        raise CheckpointError(error.message, error.hint) from None
    own = registry()
    found: dict[str, Path] = {}
    for path in bundled_models().values():
        sha256 = _hash_of(path, path.stat().st_mtime_ns)
        if sha256.startswith(digits):
            found[sha256] = path
    entries = {entry.sha256: entry for entry in own.with_sha256(digits)}
    kept = [name for name in artifacts.local().starting_with(digits) if _is_checkpoint(name)]
    candidates = sorted({*found, *entries, *kept})
    if len(candidates) > 1:
        shown = ", ".join(f"{item[:16]}..." for item in candidates)
        raise CheckpointError(f"{text} stands for several models: {shown}.", "Give more digits.")
    if candidates:
        (sha256,) = candidates
        if sha256 in found:
            return found[sha256]
        return own.path(entries[sha256]) if sha256 in entries else artifacts.fetch(sha256)
    if len(digits) < 64:
        raise CheckpointError(
            f"No model on this machine has a sha256 that starts with {digits}.",
            "Give all 64 digits to look into other places; `fieldflows model list` shows what is here.",
        )
    try:
        return artifacts.fetch(digits)
    except ArtifactError as error:
        raise CheckpointError(f"No model {text}: {error.message[0].lower()}{error.message[1:]}", error.hint) from error


def _by_label(text: str) -> Path | None:
    try:
        sha256 = artifacts.find(model_label(text))
    except ArtifactError:  # no label at all, or a place that is away: the name is unknown here in any case
        return None
    return None if sha256 is None else artifacts.fetch(sha256)


def _is_checkpoint(sha256: str) -> bool:
    """Return whether a kept file may be a model, by its first bytes: 8 of a length, then JSON."""
    with artifacts.local().path(sha256).open("rb") as handle:
        return handle.read(9)[8:] == b"{"


@lru_cache(maxsize=64)
def _hash_of(path: Path, stamp: int) -> str:
    return file_sha256(path)
