"""From a configuration to a network and frames that it can be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fieldflows.backends.mace_field.network import MACEFieldNetwork, NetworkConfig, build_network
from fieldflows.datasets.source import expand_path
from fieldflows.errors import SettingsError, TrainingError, UnknownElementError, suggestion
from fieldflows.training.chemistry import correlate
from fieldflows.training.composition import fit_composition_polarizability, isotropic_part_of_composition
from fieldflows.training.config import ModelSection, TrainingConfig
from fieldflows.training.data import (
    Frame,
    average_neighbors,
    composition_matrix,
    dataset_elements,
    fit_atomic_energies,
    fit_element_polarizability,
    force_scale,
    make_frames,
)
from fieldflows.training.groups import freeze
from fieldflows.training.losses import Loss
from fieldflows.training.sources import (
    HeadedDataset,
    by_head,
    check_heads,
    check_leakage,
    labels_of,
    load_heads,
    open_dataset,
)
from fieldflows.training.symmetry import summarize
from fieldflows.training.weights import TermSummary, make_loss, sum_rule_residual, sum_rule_weights

if TYPE_CHECKING:
    from fieldflows.datasets.dataset import Dataset
    from fieldflows.datasets.frame import LabeledFrame

SPLITS: tuple[str, ...] = ("train", "valid", "test")


@dataclass
class Setup:
    """What a run works on.

    Attributes:
        network: The network; its atomic energies are zero as long as it is trained, see ``atomic_energies``.
        frames: Split to frames.
        loss: The loss.
        labels: Observables that are trained on and occur in the training frames.
        atomic_energies: Baselines in eV, by head and element, that belong into the finished network.
        provenance: What the network was made from, for the checkpoint.
        terms: What became of the terms of the loss, for the log.
    """

    network: MACEFieldNetwork
    frames: dict[str, list[Frame]]
    loss: Loss
    labels: tuple[str, ...]
    atomic_energies: torch.Tensor
    provenance: dict[str, object]
    terms: tuple[TermSummary, ...] = ()

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Trained parameters by name."""
        return {name: value for name, value in self.network.named_parameters() if value.requires_grad}

    def symmetry(self) -> dict[str, dict[str, Any]]:
        """Return what became of the frames of each split that were to be brought to their symmetry."""
        found = {split: summarize([frame.outcome for frame in frames]) for split, frames in self.frames.items()}
        return {split: summary for split, summary in found.items() if summary}

    def notes(self) -> list[str]:
        """Return what to tell at the start: frames by head, what is frozen, weights and scales with their units."""
        heads = sorted({frame.head for frames in self.frames.values() for frame in frames if frame.head is not None})
        lines = []
        for head in heads:
            members = {split: [f for f in frames if f.head == head] for split, frames in self.frames.items()}
            labels = [key for key in self.labels if any(key in f.labels for f in members["train"])]
            counts = ", ".join(f"{split} {len(found)}" for split, found in members.items())
            lines.append(f"head {head}: {counts} frames with {', '.join(labels)}")
        frozen = self.provenance.get("frozen")
        if isinstance(frozen, list):
            values = dict(self.network.named_parameters())
            count = sum(values[name].numel() for name in frozen)
            lines.append(f"frozen: {count:,} of {sum(value.numel() for value in values.values()):,} parameters")
        return lines + [f"loss of {term}" for term in self.terms]

    def baselines(self, head: str | None = None) -> dict[int, float]:
        """Return the atomic energies in eV by atomic number, of a head by name; the first by default."""
        config = self.network.config
        row = 0 if head is None else config.heads.index(head)
        return dict(zip(config.atomic_numbers, self.atomic_energies[row].tolist(), strict=True))


def load_dataset(config: TrainingConfig, cache: Path | None = None) -> Dataset | HeadedDataset:
    """Return the labeled frames that a configuration names: of one dataset, or of all heads.

    Args:
        config: The configuration.
        cache: Folder in which labels of a foundation are kept; the run directory.

    Raises:
        SettingsError: If the directory or file is missing or wrong.
        DataError: If no place knows the digest, or the dataset is damaged.
        TrainingError: If a head has no frames.
    """
    if config.dataset is None:
        return load_heads(config, cache)
    return open_dataset(config.dataset, config.loss.labels)


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch type of a name."""
    return {"float32": torch.float32, "float64": torch.float64}[name]


def prepare(config: TrainingConfig, subsets: dict[str, Sequence[LabeledFrame]]) -> Setup:
    """Return network, graphs and loss.

    Args:
        config: The configuration.
        subsets: Split to labeled frames; "train" is needed.

    Raises:
        TrainingError: If no training frame has a label that is trained on.
        SettingsError: If a setting does not fit the data.
    """
    wanted = config.loss.labels
    train = [frame for frame in subsets.get("train", ()) if any(key in frame.labels for key in wanted)]
    if not train:
        have = sorted({key for frame in subsets.get("train", ()) for key in frame.labels})
        raise TrainingError(
            f"None of the {len(subsets.get('train', ()))} training frames has a label to train on "
            f"({', '.join(wanted)}); they hold {', '.join(have) or 'no labels'}.",
            "Change loss.terms or the dataset.",
        )
    if config.heads:
        parts = by_head([frame for split in SPLITS for frame in subsets.get(split, ())], tuple(config.heads))
        check_heads(parts, config)
        check_leakage(parts)
    dtype = torch_dtype(config.run.dtype)
    everything = [frame for split in SPLITS for frame in subsets.get(split, ())]
    network, provenance = make_network(config, train, everything, dtype)
    frozen = freeze(network, config.model.freeze) if config.model.freeze else []
    if frozen:
        provenance["frozen"] = frozen
    atomic_energies = network.atomic_energies_fn.atomic_energies.detach().clone().double()
    atomic_energies = torch.atleast_2d(atomic_energies)
    with torch.no_grad():
        network.atomic_energies_fn.atomic_energies.zero_()
    frames = {
        split: _frames(config, network, subsets.get(split, ()), atomic_energies.tolist(), dtype) for split in SPLITS
    }
    if config.model.isotropic_polarizability == "composition":
        frames["train"] = isotropic_part_of_composition(frames["train"], network)
    labels = tuple(key for key in wanted if any(key in frame.labels for frame in frames["train"]))
    if config.heads:
        provenance["heads"] = {
            name: {
                "labels": sorted({key for f in frames["train"] if f.head == name for key in f.labels}),
                "frames": {split: sum(f.head == name for f in found) for split, found in frames.items()},
                "started_from": section.start_from,
                "replay": section.replay is not None,
            }
            for name, section in config.heads.items()
        }
    loss, terms = make_loss(config.loss, frames["train"])
    network = network.to(config.run.device)
    return Setup(network, frames, loss, labels, atomic_energies, provenance, tuple(terms))


def _frames(
    config: TrainingConfig,
    network: MACEFieldNetwork,
    items: Sequence[LabeledFrame],
    energies: Sequence[Sequence[float]],
    dtype: torch.dtype,
) -> list[Frame]:
    """Return the frames of a split with graphs and weights, head by head."""
    numbers, cutoff = network.config.atomic_numbers, network.config.r_max
    # without parity, mirrored crystals are different ones
    symprec = None if network.config.use_so3 else config.symprec
    wanted = config.loss.labels
    made: list[Frame] = []
    for name, members in by_head(items, tuple(config.heads)).items() if config.heads else [(None, list(items))]:
        head = config.heads[name] if name is not None else None
        factors = dict.fromkeys(wanted, 1.0) if head is None else labels_of(head, wanted)
        members = [item for item in members if factors.keys() & item.labels.keys()]
        number = 0 if name is None else network.config.heads.index(name)
        known = None if name is None else (name, number)
        found = make_frames(members, tuple(factors), numbers, cutoff, dtype, energies[number], symprec, known)
        if head is not None:
            found = [replace(f, weight=f.weight * head.weight, label_weights=factors) for f in found]
        if config.loss.sum_rule_scale is not None:
            residuals = [sum_rule_residual(item.labels, item.extra.get("sum_rule_residual")) for item in members]
            found = sum_rule_weights(found, residuals, config.loss.sum_rule_scale)
        made += found
    return made


def make_network(
    config: TrainingConfig, train: Sequence[LabeledFrame], everything: Sequence[LabeledFrame], dtype: torch.dtype
) -> tuple[MACEFieldNetwork, dict[str, object]]:
    """Return the network at the start of the run and a note on what it was made from."""
    settings = config.model
    if settings.backbone is not None:
        if settings.composition_polarizability:
            raise SettingsError(
                "model.composition_polarizability is for networks from scratch; model.backbone is "
                f"{settings.backbone!r}.",
                "Use model.element_polarizability with a backbone.",
            )
        network, origin = _from_backbone(config, train, everything, dtype)
        provenance: dict[str, object] = {"backbone": origin}
    else:
        architecture = _architecture(config, train, everything)
        composition = None
        if settings.composition_polarizability:
            composition = fit_composition_polarizability(train, architecture.atomic_numbers)
            architecture = architecture.model_copy(
                update={"element_polarizability": False, "composition_polarizability": composition.n_frames}
            )
        network = build_network(architecture, dtype=dtype, seed=config.run.seed)
        provenance = {"backbone": None}
        if settings.element_similarity is not None:
            correlate(network, settings.element_similarity)
        if composition is not None:
            network.composition_polarizability.load_state_dict(composition.module.state_dict())
            provenance["composition_polarizability"] = composition.summary()
    if network.config.element_polarizability and settings.backbone is None:
        with torch.no_grad():
            start = fit_element_polarizability(train, network.config.atomic_numbers)
            network.element_polarizability.copy_(torch.tensor(start, dtype=dtype))
        network.element_polarizability.requires_grad_(settings.train_element_polarizability)
    return network, provenance


def _architecture(
    config: TrainingConfig, train: Sequence[LabeledFrame], everything: Sequence[LabeledFrame]
) -> NetworkConfig:
    settings = config.model
    size = settings.architecture
    numbers = _elements(settings, everything)
    names = list(config.heads) or ["Default"]
    parts = by_head(train, names) if config.heads else {names[0]: list(train)}
    energies = []
    for name in names:
        choice = config.heads[name].atomic_energies if config.heads else None
        fitted = (choice or settings.atomic_energies) == "least squares"
        energies.append(fit_atomic_energies(parts[name], numbers) if fitted else [0.0] * len(numbers))
    scale = force_scale(train) if settings.scale == "auto" else float(settings.scale)
    several = len(names) > 1
    hidden = " + ".join(f"{size.channels}x{degree}{'oe'[degree % 2 == 0]}" for degree in range(size.max_L + 1))
    return NetworkConfig(
        atomic_numbers=numbers,
        atomic_energies=energies if several else energies[0],
        r_max=size.cutoff,
        num_bessel=size.num_bessel,
        num_polynomial_cutoff=size.num_polynomial_cutoff,
        max_ell=size.max_ell,
        num_interactions=size.num_interactions,
        hidden_irreps=hidden,
        MLP_irreps=f"{size.readout_channels}x0e",
        correlation=size.correlation,
        radial_MLP=list(size.radial_MLP),
        avg_num_neighbors=average_neighbors(train, size.cutoff),
        scale=[scale] * len(names) if several else scale,
        shift=[0.0] * len(names) if several else 0.0,
        heads=names,
        element_polarizability=settings.element_polarizability,
    )


def _elements(settings: ModelSection, everything: Sequence[LabeledFrame]) -> list[int]:
    from ase.data import atomic_numbers

    found = dataset_elements(everything)
    if isinstance(settings.elements, str):
        return found
    unknown = [symbol for symbol in settings.elements if symbol not in atomic_numbers]
    if unknown:
        raise SettingsError(f"There is no element {unknown[0]!r}.", suggestion(unknown[0], list(atomic_numbers)[1:]))
    numbers = sorted({atomic_numbers[symbol] for symbol in settings.elements})
    missing = [symbol for symbol, z in atomic_numbers.items() if z in set(found) - set(numbers)]
    if missing:
        raise SettingsError(
            f"model.elements leaves out {', '.join(missing)}, which the dataset holds.",
            "Add them, or write 'from dataset'.",
        )
    return numbers


def _check_elements(network: MACEFieldNetwork, frames: Sequence[LabeledFrame]) -> None:
    """Raise if frames hold elements that the backbone does not know; names both."""
    from ase.data import chemical_symbols

    known = set(network.config.atomic_numbers)
    unknown = {z for z in dataset_elements(frames) if z not in known}
    if unknown:
        names = [frame.name for frame in frames if unknown & set(frame.atoms.numbers.tolist())]
        raise UnknownElementError(
            f"The backbone does not know {', '.join(chemical_symbols[z] for z in sorted(unknown))}, which {len(names)} "
            f"of {len(frames)} frames hold: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}.",
            "Leave these frames out of the dataset, or choose another backbone.",
        )


def _from_backbone(
    config: TrainingConfig, train: Sequence[LabeledFrame], everything: Sequence[LabeledFrame], dtype: torch.dtype
) -> tuple[MACEFieldNetwork, dict[str, object]]:
    from fieldflows.backends.mace_field.foundation import load_backbone, with_field
    from fieldflows.backends.mace_field.heads import with_heads

    settings = config.model
    name = str(settings.backbone)
    path = expand_path(name)
    network, metadata = load_backbone(path if path.is_file() else name, trust_pickle=settings.trust_pickle, dtype=dtype)
    _check_elements(network, everything)
    if settings.field_blocks == "zero" and network.config.field_coupling:
        raise SettingsError(
            f"model.field_blocks is 'zero', but the backbone {metadata.name!r} has field blocks already.",
            "Leave field_blocks out to go on with them.",
        )
    if config.heads:
        network = with_heads(network, {head: section.start_from for head, section in config.heads.items()})
        _set_energies(network, config, train)
    if not network.config.field_coupling or settings.element_polarizability != network.config.element_polarizability:
        network = with_field(
            network,
            initialization=settings.field_blocks,
            element_polarizability=settings.element_polarizability,
            seed=config.run.seed,
        )
    origin: dict[str, object] = {
        "name": metadata.name,
        "license": metadata.license,
        "content_sha256": metadata.content_sha256,
    }
    return network.train(), origin


def _set_energies(network: MACEFieldNetwork, config: TrainingConfig, train: Sequence[LabeledFrame]) -> None:
    """Put other atomic energies into heads that ask for them."""
    from fieldflows.backends.mace_field.heads import set_atomic_energies
    from fieldflows.training.replay import foundation_labels

    numbers = network.config.atomic_numbers
    energies = torch.atleast_2d(network.atomic_energies_fn.atomic_energies).tolist()
    for name, members in by_head(train, tuple(config.heads)).items():
        choice = config.heads[name].atomic_energies
        row = network.config.heads.index(name)
        if choice == "zero":
            energies[row] = [0.0] * len(numbers)
        elif choice == "least squares":
            labeled = [frame for frame in members if "energy" in frame.labels]
            if not labeled:
                raise SettingsError(
                    f"heads.{name}.atomic_energies is 'least squares', but none of its frames has an energy.",
                    "Leave it out.",
                )
            predicted = foundation_labels(network, labeled, name, ("energy",))["energy"]
            rest = composition_matrix(labeled, numbers) @ np.array(energies[row])
            known = [
                frame.with_(labels={"energy": frame.labels["energy"] - (value - base)})
                for frame, value, base in zip(labeled, predicted, rest, strict=True)
            ]
            energies[row] = fit_atomic_energies(known, numbers)
    set_atomic_energies(network, energies)
