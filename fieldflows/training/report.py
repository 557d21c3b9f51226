"""What a run leaves behind: checkpoint, metrics, figures and a draft of the model card."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fieldflows.backends.mace_field.checkpoint import CheckpointMetadata, save_checkpoint
from fieldflows.backends.mace_field.engine.engine import fastest
from fieldflows.models import CHECKPOINT_NAME
from fieldflows.training.config import TrainingConfig
from fieldflows.training.evaluation import predict
from fieldflows.training.figures import learning_curves, parity
from fieldflows.training.metrics import QUANTITIES, Predictions, TrivialPredictor, collect, evaluate_metrics, summary
from fieldflows.training.sampler import BatchLimits
from fieldflows.training.setup import SPLITS, Setup
from fieldflows.training.state import TrainingState
from fieldflows.training.symmetry import describe

if TYPE_CHECKING:
    from fieldflows.training.data import Frame
    from fieldflows.training.result import TrainingResult

METRICS_NAME = "metrics.json"
CARD_NAME = "README.md"


def write_report(
    config: TrainingConfig,
    setup: Setup,
    limits: BatchLimits,
    state: TrainingState,
    result: TrainingResult,
    tell: Callable[[str], None],
    figures: bool = True,
    predictions: dict[str, Predictions] | None = None,
) -> None:
    """Evaluate the network on every split and write everything into the run directory; completes ``result``.

    Files: model.safetensors, metrics.json, learning_curves.png, parity_<quantity>.png, README.md.  Predictions that
    are given, by split, are not computed again.
    """
    directory = result.directory
    predictions = dict(predictions or {})
    trivial = TrivialPredictor(setup.frames["train"], setup.baselines())
    evaluator = fastest(setup.network)
    for split in SPLITS:
        frames = setup.frames[split]
        if not frames:
            continue
        if split not in predictions:
            predictions[split], _ = predict(evaluator, frames, setup.labels, limits)
        result.metrics[split] = evaluate_metrics(frames, predictions[split])
        # energies by the atomic energies of the head of each frame
        guesses = [{**trivial.predict(frame), "energy": np.array(frame.baseline)} for frame in frames]
        result.baselines[split] = evaluate_metrics(frames, restrict(guesses, setup.labels))
        tell(f"{split} ({len(frames)} frames): {summary(result.metrics[split])}")
    result.checkpoint = directory / CHECKPOINT_NAME
    result.sha256 = export_checkpoint(config, setup, state, directory, result.metrics)
    write_json(directory / METRICS_NAME, metrics_document(setup, state, result))
    if figures:
        draw_figures(setup, predictions, result)
    write_text(directory / CARD_NAME, model_card(config, setup, state, result))


def draw_figures(setup: Setup, predictions: dict[str, Predictions], result: TrainingResult) -> None:
    """Write learning_curves.png and parity_<quantity>.png."""
    directory = result.directory
    learning_curves(result.history, directory / "learning_curves.png")
    for quantity in QUANTITIES:
        series = {}
        for split, values in predictions.items():
            found = collect(setup.frames[split], values).get(quantity.name)
            if found is not None:
                series[split] = (found[1], found[2])
        if series:
            parity(series, quantity.symbol, quantity.unit, directory / f"parity_{quantity.name}.png")


def restrict(predictions: Sequence[dict[str, Any]], labels: Sequence[str]) -> Predictions:
    """Return predictions of the given observables alone."""
    return [{key: value for key, value in item.items() if key in labels} for item in predictions]


def export_checkpoint(
    config: TrainingConfig,
    setup: Setup,
    state: TrainingState,
    directory: Path,
    metrics: dict[str, Any],
    unfinished: bool = False,
) -> str:
    """Write the network as it is, with its atomic energies, and return the sha256 of the file."""
    provenance = {
        **setup.provenance,
        "configuration": portable_configuration(config),
        "configuration_digest": state.config_digest,
        "dataset_digest": state.dataset_digest,
        "frames": {split: len(frames) for split, frames in setup.frames.items()},
        # what a later test set must not share with the training and selection frames
        "formulas": {split: formulas(setup.frames[split]) for split in ("train", "valid")},
        "best": state.best,
        "steps": state.step,
        "seed": config.run.seed,
        "metrics": metrics,
        "software": software(),
    }
    if unfinished:
        provenance["unfinished"] = True
    metadata = CheckpointMetadata(
        name=config.model.name,
        network=setup.network.config,
        trained_labels=trained_labels(setup),
        license=config.model.license,
        provenance=_plain(provenance),
    )
    energies = setup.network.atomic_energies_fn.atomic_energies
    with torch.no_grad():
        energies.copy_(setup.atomic_energies.reshape(energies.shape))
    try:
        return save_checkpoint(directory / CHECKPOINT_NAME, setup.network, metadata)
    finally:
        with torch.no_grad():
            energies.zero_()


def portable_configuration(config: TrainingConfig) -> dict[str, Any]:
    """Return the configuration with the names of files in place of their paths, which mean nothing elsewhere."""
    values = config.model_dump(mode="json")
    places = [values["model"], values["dataset"]]
    for head in values["heads"].values():
        places += [head["dataset"], head["replay"], (head["replay"] or {}).get("dataset")]
    for section in places:
        for key in ("config", "path", "backbone"):
            if section and section.get(key):
                section[key] = Path(section[key]).name
    if not values["heads"]:
        del values["heads"]
    return values


def formulas(frames: Sequence[Frame]) -> list[str]:
    """Return the reduced formulas of some frames, each once, sorted."""
    from pymatgen.core import Composition

    return sorted({Composition(str(frame.atoms.symbols)).reduced_formula for frame in frames})


def trained_labels(setup: Setup) -> tuple[str, ...]:
    """Return the observables that the weights saw labels of, in this run."""
    return setup.labels


def metrics_document(setup: Setup, state: TrainingState, result: TrainingResult) -> dict[str, Any]:
    """Return the content of metrics.json: errors of the model and of trivial predictors by split."""
    return {
        "schema_version": 1,
        "checkpoint_sha256": result.sha256,
        "dataset_digest": state.dataset_digest,
        "status": result.status,
        "epochs": result.epochs,
        "steps": result.steps,
        "seconds": round(result.seconds, 3),
        "best": result.best,
        "frames": {split: len(frames) for split, frames in setup.frames.items()},
        "symmetry": setup.symmetry(),
        "materials": {split: len({f.name.split(" ")[0] for f in frames}) for split, frames in setup.frames.items()},
        "model": result.metrics,
        "trivial_predictor": result.baselines,
        "trivial_predictor_definition": "medians of the training labels: diagonal of Z* by element, diagonal of the "
        "polarizability; zero polarization and forces; mean stress; energies by least squares over the composition",
        "history": result.history,
    }


def model_card(config: TrainingConfig, setup: Setup, state: TrainingState, result: TrainingResult) -> str:
    """Return a draft of the model card in Markdown."""
    from ase.data import chemical_symbols

    network = setup.network.config
    elements = " ".join(chemical_symbols[z] for z in network.atomic_numbers)
    lines = [
        f"# {config.model.name}",
        "",
        "*Draft written by the training run; complete it before you publish the model.*",
        "",
        "| | |",
        "|---|---|",
        f"| Trained labels | {', '.join(trained_labels(setup))} |",
        f"| Architecture | MACE-Field, {network.num_interactions} layers, {network.hidden_irreps}, correlation "
        f"{network.correlation}, cut-off {network.r_max:g} Å"
        + (", element polarizabilities" if network.element_polarizability else "")
        + " |",
        f"| Backbone | {setup.provenance.get('backbone') or 'none, trained from scratch'} |",
        f"| Parameters | {sum(p.numel() for p in setup.parameters.values()):,} |",
        f"| Elements ({len(network.atomic_numbers)}) | {elements} |",
        f"| Dataset digest | `{state.dataset_digest}` |",
        f"| Frames | {', '.join(f'{split} {len(frames)}' for split, frames in setup.frames.items())} |",
        *(f"| Symmetry, {split} | {describe(summary)} |" for split, summary in setup.symmetry().items()),
        f"| Run | {result.epochs} epochs, {result.steps} steps, {result.seconds / 60:.1f} min, seed {config.run.seed}, "
        f"ended by: {result.status}; best at epoch {result.best.get('epoch')} |",
        f"| Checkpoint sha256 | `{result.sha256}` |",
        f"| License of the weights | {config.model.license} |",
        "",
        "## Errors",
        "",
        "Mean absolute error (root mean square error in brackets), beside the trivial predictor (medians of the "
        "training labels).",
        "",
        "| quantity | unit | " + " | ".join(f"{split} | trivial" for split in result.metrics) + " |",
        "|---|---|" + "---|---|" * len(result.metrics),
    ]
    for quantity in QUANTITIES:
        cells = []
        for split, values in result.metrics.items():
            if quantity.name not in values:
                cells += ["", ""]
                continue
            own, other = values[quantity.name], result.baselines[split][quantity.name]
            cells += [f"{own['mae']:.4g} ({own['rmse']:.4g})", f"{other['mae']:.4g} ({other['rmse']:.4g})"]
        if any(cells):
            lines.append(f"| {quantity.symbol} | {quantity.unit} | " + " | ".join(cells) + " |")
    missing = {"energy", "forces"} - set(trained_labels(setup))
    lines += ["", "## Limits", ""]
    if missing:
        lines.append(
            f"- Not trained on {' and '.join(sorted(missing))}: forces, phonons, ionic permittivities and relaxations "
            "need another model."
        )
    lines += [
        "- Insulators only; a potential cannot tell that a crystal is a metal.",
        "- Elements outside the list are refused; rare ones in the list are less certain.",
        "",
    ]
    return "\n".join(lines)


def software() -> dict[str, str]:
    """Return versions of what made the weights."""
    from importlib.metadata import version

    import fieldflows

    packages = {name: version(name) for name in ("torch", "mace-torch", "e3nn", "numpy")}
    return {"fieldflows": fieldflows.__version__, "python": platform.python_version(), **packages}


def write_json(path: Path, document: Any) -> None:
    """Write JSON atomically; numbers that are not finite become null."""
    write_text(path, json.dumps(_plain(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
