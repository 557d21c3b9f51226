"""From a configuration to a network and frames that it can be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fieldflows.backends.mace_field.network import MACEFieldNetwork, NetworkConfig, build_network
from fieldflows.datasets.source import expand_path
from fieldflows.errors import SettingsError, TrainingError, suggestion
from fieldflows.training.chemistry import correlate
from fieldflows.training.config import ModelSection, TrainingConfig
from fieldflows.training.data import (
    Frame,
    average_neighbors,
    dataset_elements,
    fit_atomic_energies,
    fit_element_polarizability,
    force_scale,
    label_spread,
    make_frames,
)
from fieldflows.training.losses import Loss
from fieldflows.training.symmetry import summarize

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
    """

    network: MACEFieldNetwork
    frames: dict[str, list[Frame]]
    loss: Loss
    labels: tuple[str, ...]
    atomic_energies: torch.Tensor
    provenance: dict[str, object]

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Trained parameters by name."""
        return {name: value for name, value in self.network.named_parameters() if value.requires_grad}

    def symmetry(self) -> dict[str, dict[str, Any]]:
        """Return what became of the frames of each split that were to be brought to their symmetry."""
        found = {split: summarize([frame.outcome for frame in frames]) for split, frames in self.frames.items()}
        return {split: summary for split, summary in found.items() if summary}

    def baselines(self) -> dict[int, float]:
        """Return the atomic energies in eV by atomic number (first head)."""
        numbers = self.network.config.atomic_numbers
        return dict(zip(numbers, self.atomic_energies[0].tolist(), strict=True))


def load_dataset(config: TrainingConfig) -> Dataset:
    """Return the dataset that a configuration names: loaded, or built.

    Raises:
        SettingsError: If the directory or file is missing or wrong.
    """
    from fieldflows.datasets.config import DatasetConfig
    from fieldflows.datasets.dataset import Dataset, build_dataset

    if config.dataset.path is not None:
        path = expand_path(config.dataset.path)
        if not path.is_dir():
            raise SettingsError(
                f"There is no dataset directory {path}.", "Build it first: `fieldflows dataset build CONFIG --out DIR`."
            )
        return Dataset.load(path)
    return build_dataset(DatasetConfig.from_yaml(expand_path(str(config.dataset.config))))


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
    dtype = torch_dtype(config.run.dtype)
    everything = [frame for split in SPLITS for frame in subsets.get(split, ())]
    network, provenance = make_network(config, train, everything, dtype)
    atomic_energies = network.atomic_energies_fn.atomic_energies.detach().clone().double()
    atomic_energies = torch.atleast_2d(atomic_energies)
    with torch.no_grad():
        network.atomic_energies_fn.atomic_energies.zero_()

    numbers, cutoff = network.config.atomic_numbers, network.config.r_max
    energies = atomic_energies[0].tolist()
    # without parity, mirrored crystals are different ones
    symprec = None if network.config.use_so3 else config.symprec
    frames = {
        split: make_frames(subsets.get(split, ()), wanted, numbers, cutoff, dtype, energies, symprec)
        for split in SPLITS
    }
    labels = tuple(key for key in wanted if any(key in frame.labels for frame in frames["train"]))
    scales = {}
    for key in wanted:
        scale = config.loss.terms[key].scale
        if isinstance(scale, str):
            scale = label_spread(frames["train"], key) if key in labels else 1.0
        scales[key] = float(scale)
    network = network.to(config.run.device)
    return Setup(network, frames, Loss(config.loss.terms, scales), labels, atomic_energies, provenance)


def make_network(
    config: TrainingConfig, train: Sequence[LabeledFrame], everything: Sequence[LabeledFrame], dtype: torch.dtype
) -> tuple[MACEFieldNetwork, dict[str, object]]:
    """Return the network at the start of the run and a note on what it was made from."""
    settings = config.model
    if settings.backbone is not None:
        network, origin = _from_backbone(settings, dtype, config.run.seed)
        provenance: dict[str, object] = {"backbone": origin}
    else:
        network = build_network(_architecture(settings, train, everything), dtype=dtype, seed=config.run.seed)
        provenance = {"backbone": None}
        if settings.element_similarity is not None:
            correlate(network, settings.element_similarity)
    if network.config.element_polarizability and settings.backbone is None:
        with torch.no_grad():
            start = fit_element_polarizability(train, network.config.atomic_numbers)
            network.element_polarizability.copy_(torch.tensor(start, dtype=dtype))
        network.element_polarizability.requires_grad_(settings.train_element_polarizability)
    return network, provenance


def _architecture(
    settings: ModelSection, train: Sequence[LabeledFrame], everything: Sequence[LabeledFrame]
) -> NetworkConfig:
    size = settings.architecture
    numbers = _elements(settings, everything)
    energies = [0.0] * len(numbers)
    if settings.atomic_energies == "least squares":
        energies = fit_atomic_energies(train, numbers)
    hidden = " + ".join(f"{size.channels}x{degree}{'oe'[degree % 2 == 0]}" for degree in range(size.max_L + 1))
    return NetworkConfig(
        atomic_numbers=numbers,
        atomic_energies=energies,
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
        scale=force_scale(train) if settings.scale == "auto" else float(settings.scale),
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


def _from_backbone(settings: ModelSection, dtype: torch.dtype, seed: int) -> tuple[MACEFieldNetwork, dict[str, object]]:
    from fieldflows.backends.mace_field.foundation import load_backbone, with_field

    name = str(settings.backbone)
    path = expand_path(name)
    network, metadata = load_backbone(path if path.is_file() else name, trust_pickle=settings.trust_pickle, dtype=dtype)
    if not network.config.field_coupling or settings.element_polarizability != network.config.element_polarizability:
        network = with_field(network, element_polarizability=settings.element_polarizability, seed=seed)
    origin: dict[str, object] = {
        "name": metadata.name,
        "license": metadata.license,
        "content_sha256": metadata.content_sha256,
    }
    return network.train(), origin
