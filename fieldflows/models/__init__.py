"""The models that come with the package: one folder each, with ``model.safetensors`` and ``README.md`` (the card)."""

from __future__ import annotations

from pathlib import Path

from fieldflows.errors import CheckpointError, suggestion

CHECKPOINT_NAME = "model.safetensors"


def bundled_models() -> dict[str, Path]:
    """Return the bundled checkpoints by name."""
    here = Path(__file__).parent
    return {path.parent.name: path for path in sorted(here.glob(f"*/{CHECKPOINT_NAME}"))}


def bundled_model(name: str) -> Path:
    """Return the checkpoint file of a bundled model.

    Raises:
        CheckpointError: If there is none of that name.
    """
    models = bundled_models()
    if name not in models:
        raise CheckpointError(f"There is no bundled model {name!r}.", suggestion(name, models))
    return models[name]
