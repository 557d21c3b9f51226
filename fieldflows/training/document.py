"""From the result of a run to the document that is stored."""

from __future__ import annotations

import os
import platform

import torch

from fieldflows import __version__
from fieldflows.backends.mace_field.checkpoint import read_metadata
from fieldflows.errors import TrainingError
from fieldflows.schemas.training import CurvePoint, Hardware, TrainingDocument
from fieldflows.training.config import TrainingConfig
from fieldflows.training.report import software
from fieldflows.training.result import TrainingResult


def training_document(config: TrainingConfig, result: TrainingResult) -> TrainingDocument:
    """Return the document of a finished run.

    Raises:
        TrainingError: If the run was interrupted and has no final model.
    """
    from ase.data import chemical_symbols

    if result.status == "interrupted" or result.checkpoint is None or result.sha256 is None:
        raise TrainingError(
            f"The run in {result.directory} was stopped at step {result.steps}.", "Run the same job again to go on."
        )
    metadata = read_metadata(result.checkpoint)
    return TrainingDocument(
        name=config.model.name,
        checkpoint=str(result.checkpoint.resolve()),
        checkpoint_sha256=result.sha256,
        directory=str(result.directory.resolve()),
        trained_labels=metadata.trained_labels,
        elements=tuple(chemical_symbols[z] for z in metadata.network.atomic_numbers),
        configuration=config.model_dump(mode="json"),
        configuration_digest=config.digest,
        dataset_digest=str(metadata.provenance["dataset_digest"]),
        frames=metadata.provenance["frames"],
        status=result.status,
        epochs=result.epochs,
        steps=result.steps,
        wall_time=result.seconds,
        seed=config.run.seed,
        best_epoch=result.best.get("epoch"),
        best_score=result.best.get("score"),
        metrics=result.metrics,
        trivial_metrics=result.baselines,
        curves=tuple(CurvePoint.model_validate(record) for record in result.history),
        hardware=hardware(config),
        code_version=__version__,
    )


def hardware(config: TrainingConfig) -> Hardware:
    """Return what the process runs on."""
    cuda = config.run.device != "cpu" and torch.cuda.is_available()
    return Hardware(
        device=config.run.device,
        accelerator=torch.cuda.get_device_name(config.run.device) if cuda else None,
        machine=platform.machine(),
        processors=os.cpu_count() or 1,
        threads=config.run.threads or torch.get_num_threads(),
        software=software(),
    )
