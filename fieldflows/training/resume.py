"""Whether the state in a run directory is one that a run can go on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from fieldflows.errors import TrainingError
from fieldflows.training.config import TrainingConfig
from fieldflows.training.state import TrainingState

CONFIG_NAME = "config.yaml"


def check_state(
    state: TrainingState,
    config: TrainingConfig,
    dataset_digest: str,
    directory: Path,
    parameters: Mapping[str, torch.Tensor],
) -> None:
    """Raise an error if a state belongs to another run.

    Args:
        state: The state that was found.
        config: The configuration to go on with.
        dataset_digest: Digest of the dataset to go on with.
        directory: The run directory, for the message.
        parameters: Trained parameters of the network to go on with, by name.

    Raises:
        TrainingError: If configuration, dataset or architecture differ.
    """
    if state.config_digest != config.digest or state.dataset_digest != dataset_digest:
        what = "configuration" if state.config_digest != config.digest else "dataset"
        advice = "Resume with the settings of that run, choose another --out, or start again with --fresh."
        if state.config_digest == config.without_symmetry().digest:
            advice = "That run did not know run.symmetry, or had it off: set it to false to go on. " + advice
        raise TrainingError(f"{directory} holds a run with another {what} (see {directory / CONFIG_NAME}).", advice)
    ours = {name: tuple(value.shape) for name, value in parameters.items()}
    theirs = {name: tuple(value.shape) for name, value in state.part("model").items()}
    wrong = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if wrong:
        name = wrong[0]
        raise TrainingError(
            f"{directory} holds weights of another architecture: {len(wrong)} parameters differ, such as {name} "
            f"({theirs.get(name, 'none')} there, {ours.get(name, 'none')} now).",
            "Was the file of model.backbone replaced? Choose another --out, or start again with --fresh.",
        )
