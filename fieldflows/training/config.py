"""What a training run is: one typed description, read from YAML, written once into the run directory.

Every field says its meaning, unit and default here and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from fieldflows.datasets.source import expand_path
from fieldflows.errors import SettingsError, suggestion
from fieldflows.observables import ENERGY_SURFACE_OBSERVABLES
from fieldflows.training.data_config import DatasetSection, HeadSection, ReplaySection
from fieldflows.training.loss_config import TRAINABLE_LABELS, LossSection, Term
from fieldflows.training.section import Section

__all__ = [
    "TRAINABLE_LABELS",
    "DatasetSection",
    "HeadSection",
    "LossSection",
    "ReplaySection",
    "Term",
    "TrainingConfig",
]


class Architecture(Section):
    """Size and cut-offs of a network made from scratch."""

    channels: int = Field(32, ge=1, description="Channels per irreducible representation of the node features.")
    max_L: int = Field(1, ge=1, le=3, description="Highest degree of the node features; 1 at least feels a field.")
    num_interactions: int = Field(2, ge=2, description="Message-passing layers; 2 at least feel a field.")
    max_ell: int = Field(3, ge=1, description="Highest degree of the spherical harmonics of the edges.")
    correlation: int = Field(3, ge=1, le=4, description="Correlation order of the product basis (3: four bodies).")
    cutoff: float = Field(5.0, gt=0, description="Interaction cut-off.", json_schema_extra={"unit": "Å"})
    num_bessel: int = Field(8, ge=1, description="Radial Bessel functions.")
    num_polynomial_cutoff: int = Field(5, ge=2, description="Exponent of the polynomial cut-off function.")
    radial_MLP: tuple[int, ...] = Field((64, 64, 64), description="Widths of the hidden layers of the radial networks.")
    readout_channels: int = Field(16, ge=1, description="Hidden channels of the last, non-linear readout.")


class ModelSection(Section):
    """The network: from scratch, or from a backbone that gets field blocks."""

    name: str = Field("field-model", min_length=1, description="Name on the model card.")
    architecture: Architecture = Field(
        default_factory=Architecture, description="Architecture of a new network; ignored with a backbone."
    )
    backbone: str | None = Field(
        None,
        description="Checkpoint file or foundation name (such as 'medium-0b3') to inherit; None starts from scratch.",
    )
    trust_pickle: bool = Field(
        False,
        description="Whether a backbone that is a pickle (foundation names and .model files are), which can run code "
        "on loading, is trusted.",
    )
    elements: tuple[str, ...] | Literal["from dataset"] = Field(
        "from dataset", description="Chemical symbols that a new network knows; all elements of the dataset by default."
    )
    element_polarizability: bool = Field(
        True,
        description="Whether each element gets its own isotropic polarizability, fitted to the training labels at the "
        "start (robust non-negative least squares).",
    )
    train_element_polarizability: bool = Field(
        False, description="Whether these are trained on; fixed, they keep what is far from the training data sane."
    )
    composition_polarizability: bool = Field(
        False,
        description="Whether a Gaussian process over composition and volume, fitted to the training labels at the "
        "start, predicts the isotropic part of the polarizability; takes the place of element_polarizability.",
    )
    isotropic_polarizability: Literal["network", "composition"] = Field(
        "network",
        description="What describes the isotropic part of α beside composition and volume. 'composition': nothing; the "
        "training labels of α keep their anisotropy and take the isotropic part of that process, so that the network "
        "learns to add none.",
    )
    element_similarity: float | None = Field(
        None,
        gt=0,
        description="Correlate the first weights of chemically similar elements: length of the kernel relative to half "
        "the root mean square distance between elements (1 is a good value); None: independent weights.",
    )
    atomic_energies: Literal["least squares", "zero"] = Field(
        "least squares",
        description="Atomic baselines: least squares over the energies of the training frames, or zero. Zero is also "
        "taken where there are no energies.",
        json_schema_extra={"unit": "eV"},
    )
    scale: float | Literal["auto"] = Field(
        "auto",
        description="Scale of the interaction energy per atom: root mean square force of the training frames, or 1 "
        "without forces.",
        json_schema_extra={"unit": "eV"},
    )
    field_blocks: Literal["random", "zero"] = Field(
        "random",
        description="New field blocks of a backbone. 'zero': the model starts as exactly the backbone, at any field; "
        "needs labels of P or Z*, because α does not change to first order there.",
    )
    freeze: tuple[str, ...] = Field(
        (),
        description="Parameters that are not trained: embedding, interactions, interactions.0, products, products.1, "
        "readouts, field, backbone (all but the field blocks), or patterns of their names such as 'readouts.0.*'.",
    )
    license: str = Field("unspecified", description="License of the weights, written on the card.")


class OptimizerSection(Section):
    """The optimizer and its schedule."""

    kind: Literal["adam", "amsgrad", "adamw", "soap"] = Field(
        "amsgrad",
        description="Adam, Adam with AMSGrad, AdamW, or SOAP (Adam in the eigenbasis of Shampoo's preconditioner).",
    )
    learning_rate: float = Field(0.005, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(
        5e-7, ge=0, description="Decay of the weights of the interaction and product blocks; others do not decay."
    )
    element_sharing: float = Field(
        0.0,
        ge=0,
        description="Strength with which weights are drawn to those of chemically similar elements in each step, "
        "relative to the learning rate; needs model.element_similarity.",
    )
    warm_up_steps: int = Field(50, ge=0, description="Steps over which the learning rate rises linearly from zero.")
    schedule: Literal["cosine", "plateau", "constant"] = Field("cosine", description="Course of the learning rate.")
    final_fraction: float = Field(
        0.01, ge=0, le=1, description="Cosine: learning rate at the end; plateau: least one; as a fraction of the peak."
    )
    sized_by: Literal["epochs", "minutes"] = Field(
        "epochs",
        description="What a cosine is stretched over: 'epochs', or 'minutes' (run.max_minutes of wall time, which "
        "gives up bitwise reproducibility).",
    )
    plateau_factor: float = Field(0.5, gt=0, lt=1, description="Plateau: the learning rate is multiplied by this.")
    plateau_patience: int = Field(10, ge=1, description="Plateau: evaluations without improvement before a cut.")
    clip_norm: float | None = Field(10.0, gt=0, description="Largest 2-norm of the gradient; None does not clip.")
    groups: dict[str, float] = Field(
        default_factory=dict,
        description="Factors on the learning rate by name or pattern of parameters, as in model.freeze; the last one "
        "that matches a parameter counts.",
    )

    @field_validator("groups")
    @classmethod
    def _positive_factors(cls, value: dict[str, float]) -> dict[str, float]:
        for name, factor in value.items():
            if not factor > 0:
                raise ValueError(f"the factor of {name!r} must be positive; freeze parameters with model.freeze")
        return value


class RunSection(Section):
    """How long, in what portions, on what machine."""

    epochs: int = Field(100, ge=1, description="Passes over the training frames.")
    max_minutes: float | None = Field(
        None,
        gt=0,
        description="Wall time of training, summed over resumed runs; the run ends in order after the step in which "
        "it is exceeded. None: no limit.",
        json_schema_extra={"unit": "min"},
    )
    batch_structures: int = Field(
        16, ge=1, description="Most structures in an effective batch, the one that a step of the optimizer sees."
    )
    batch_atoms: int | None = Field(None, ge=1, description="Most atoms in a batch; a larger structure goes alone.")
    batch_edges: int | None = Field(
        None, ge=1, description="Most edges (neighbor pairs) in a batch; balances the cost; a larger one goes alone."
    )
    batching: Literal["homogeneous", "mixed"] = Field(
        "homogeneous",
        description="'homogeneous': frames of an effective batch have the same labels and number of field directions; "
        "'mixed': any frames, each kind spread evenly over the batches of an epoch; kinds are then computed apart and "
        "their gradients added.",
    )
    micro_structures: int | None = Field(
        None,
        ge=1,
        description="Most structures that a process computes at once; a larger effective batch is computed in parts, "
        "whose gradients are added. None: no limit.",
    )
    micro_atoms: int | None = Field(None, ge=1, description="Most atoms that a process computes at once.")
    micro_edges: int | None = Field(None, ge=1, description="Most edges that a process computes at once.")
    ema_decay: float | None = Field(
        0.99, gt=0, lt=1, description="Decay of the moving average of the weights that is evaluated; None: no average."
    )
    average_from: int | None = Field(
        None,
        ge=0,
        description="Epochs after which the evaluated average becomes the plain mean over all later steps (stochastic "
        "weight averaging); None: never.",
        json_schema_extra={"unit": "epochs"},
    )
    seed: int = Field(0, ge=0, description="Seed of the weights, of the order of frames and of random directions.")
    position_noise: float = Field(
        0.0,
        ge=0,
        description="Standard deviation of random displacements of the training frames, new in each step, with their "
        "labels kept; smooths what is learned from few frames. Not for energies, forces and stresses.",
        json_schema_extra={"unit": "Å"},
    )
    symmetry: bool = Field(
        True,
        description="Bring each frame with labels of Z* or α to its own space group, where one or two field directions "
        "then determine these tensors in place of three; the loss is that of the whole tensors. Labels stay. Has no "
        "effect with loss.directions: random or with run.position_noise.",
    )
    symprec: float = Field(
        1e-3,
        gt=0,
        description="Tolerance of the space group for run.symmetry; a frame of which an atom or lattice vector would "
        "move by more stays as it is.",
        json_schema_extra={"unit": "Å"},
    )
    dtype: Literal["float32", "float64"] = Field("float32", description="Precision of the network.")
    device: str = Field("cpu", description="'cpu' or 'cuda'.")
    threads: int | None = Field(None, ge=1, description="Threads of torch; None leaves torch's own choice.")
    eval_interval: int = Field(1, ge=1, description="Epochs between evaluations on the validation frames.")
    patience: int | None = Field(
        None, ge=1, description="Evaluations without improvement of the score before the run stops."
    )
    label_patience: dict[str, int] = Field(
        default_factory=dict,
        description="Observable to evaluations without improvement of its own validation loss; the run stops when all "
        "that are named have gone without for so long.",
    )
    score: dict[str, float] = Field(
        default_factory=dict,
        description="Observable to its weight in the score that chooses the best weights, a sum over parts of the "
        "validation loss; observables left out do not count. Empty: the validation loss.",
    )
    tensorboard: bool = Field(
        False, description="Write scalars for TensorBoard into the run directory (needs fieldflows[tensorboard])."
    )
    ranks_timeout: float = Field(
        1800.0,
        gt=0,
        description="Several processes: wait for each other no longer than this; then all end with an error.",
        json_schema_extra={"unit": "s"},
    )
    checkpoint_steps: int | None = Field(None, ge=1, description="Steps between checkpoints of the state.")
    checkpoint_seconds: float = Field(
        120.0, gt=0, description="Most wall time between checkpoints of the state.", json_schema_extra={"unit": "s"}
    )


UNCOUNTED: tuple[str, ...] = (
    "max_minutes", "threads", "device", "checkpoint_steps", "checkpoint_seconds", "patience", "label_patience",
    "micro_structures", "micro_atoms", "micro_edges", "tensorboard", "ranks_timeout",
)  # fmt: skip
"""Keys of the section ``run`` that do not decide the result, beyond when it ends and rounding."""


class TrainingConfig(Section):
    """A training run.

    Example:
        >>> config = TrainingConfig(dataset={"path": "built/dielectric"})
        >>> config.model.architecture.channels
        32
    """

    dataset: DatasetSection | None = Field(None, description="Labeled frames; either these or heads.")
    heads: dict[str, HeadSection] = Field(
        default_factory=dict, description="Name to head, for a network with several; the first is the default one."
    )
    model: ModelSection = Field(default_factory=ModelSection, description="The network.")
    loss: LossSection = Field(default_factory=LossSection, description="What is minimized.")
    optimizer: OptimizerSection = Field(default_factory=OptimizerSection, description="How it is minimized.")
    run: RunSection = Field(default_factory=RunSection, description="How long and where.")

    @model_validator(mode="after")
    def _sources(self) -> TrainingConfig:
        if (self.dataset is None) == (not self.heads):
            raise ValueError("give either 'dataset' or 'heads'")
        for name, head in self.heads.items():
            replay = head.replay
            if not name.strip():
                raise ValueError("a head needs a name")
            if head.start_from is not None and self.model.backbone is None:
                raise ValueError(f"heads.{name}.start_from needs model.backbone")
            needed = replay is not None and (replay.labels == "foundation" or replay.selection == "farthest")
            if needed and self.model.backbone is None:
                raise ValueError(f"heads.{name}.replay needs model.backbone for its labels or its selection")
            absent = [key for key in head.labels or () if key not in self.loss.labels]
            if replay is not None and not set(replay.observables) & set(self.loss.labels):
                absent = list(replay.observables)
            if absent:
                raise ValueError(f"heads.{name} asks for {', '.join(absent)}, but loss.terms has no weight for that")
        if self.model.field_blocks == "zero":
            if self.model.backbone is None:
                raise ValueError("model.field_blocks: zero needs model.backbone")
            if not {"polarization", "born_effective_charges"} & set(self.loss.labels):
                raise ValueError(
                    "model.field_blocks: zero needs a loss of polarization or born_effective_charges: α is of second "
                    "order in the blocks, so that they would never leave zero"
                )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.optimizer.schedule == "cosine" and self.optimizer.sized_by == "minutes" and not self.run.max_minutes:
            raise ValueError("optimizer.sized_by: minutes needs run.max_minutes")
        if self.optimizer.element_sharing > 0 and self.model.element_similarity is None:
            raise ValueError("optimizer.element_sharing needs model.element_similarity")
        for name in ("label_patience", "score"):
            for key, value in getattr(self.run, name).items():
                if key not in self.loss.labels:
                    raise ValueError(f"run.{name}: no loss of {key!r}. " + suggestion(key, self.loss.labels))
                if value < (name == "label_patience"):
                    raise ValueError(f"run.{name}: {key} must not be {value}")
        if self.run.score and not any(value > 0 for value in self.run.score.values()):
            raise ValueError("run.score needs a positive weight")
        surface = [key for key in self.loss.labels if key in ENERGY_SURFACE_OBSERVABLES]
        if self.run.position_noise > 0 and surface:
            raise ValueError(f"run.position_noise does not go with a loss of {', '.join(surface)}")
        return self

    @classmethod
    def from_dict(cls, data: Any, origin: str = "the training configuration") -> TrainingConfig:
        """Return the configuration that a mapping describes.

        Raises:
            SettingsError: Names every wrong key with the reason, and the nearest known key.
        """
        if not isinstance(data, dict):
            raise SettingsError(f"{origin} must be a mapping with the key 'dataset', found {type(data).__name__}.")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise SettingsError(f"{origin} is wrong: {_explain(error)}.", "See docs/guides/training.md.") from None

    @classmethod
    def from_yaml(cls, path: str | Path) -> TrainingConfig:
        """Read a YAML file; a relative ``dataset.config`` is taken from the folder of the file.

        Raises:
            SettingsError: If the file is missing, is no YAML or holds a wrong key.
        """
        import yaml

        path = Path(path)
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"Cannot read the training file {path}: {error.strerror}.") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path} is no YAML file: {' '.join(str(error).split())}.") from None
        config = cls.from_dict(data, origin=str(path))
        return config.resolved(path.parent)

    def resolved(self, folder: Path) -> TrainingConfig:
        """Return a copy in which relative paths that exist below ``folder`` are absolute."""
        dataset = None if self.dataset is None else _located(self.dataset, folder, "path", "config")
        heads = {}
        for name, head in self.heads.items():
            inner, replay = head.dataset, head.replay
            if inner is not None:
                inner = _located(inner, folder, "path", "config")
            if replay is not None:
                replay = _located(replay, folder, "path")
                if replay.dataset is not None:
                    where = _located(replay.dataset, folder, "path", "config")
                    replay = replay.model_copy(update={"dataset": where})
            heads[name] = head.model_copy(update={"dataset": inner, "replay": replay})
        model = self.model
        if model.backbone is not None:
            near = folder / expand_path(model.backbone)
            if near.is_file():
                model = model.model_copy(update={"backbone": str(near.resolve())})
        return self.model_copy(update={"dataset": dataset, "heads": heads, "model": model})

    @property
    def symprec(self) -> float | None:
        """Tolerance in Å within which frames are brought to their symmetry; None if that would save nothing."""
        second = {"born_effective_charges", "polarizability"} & set(self.loss.labels)
        useful = self.loss.directions == "all" and self.run.position_noise == 0 and second
        return self.run.symprec if self.run.symmetry and useful else None

    def without_symmetry(self) -> TrainingConfig:
        """Return a copy with ``run.symmetry`` off."""
        return self.model_copy(update={"run": self.run.model_copy(update={"symmetry": False})})

    @property
    def digest(self) -> str:
        """SHA-256 of what decides the result.

        Left out: how long the run may take (``epochs`` only if the schedule does not depend on it), when it is
        saved, and where the files lie.
        """
        data = self.model_dump(mode="json", exclude={"dataset"})
        _leave_out_defaults(data, self)
        for key in UNCOUNTED:
            data["run"].pop(key)
        # options that came later do not count as long as they are off, so that older runs can still be resumed
        later = (
            ("model", "element_similarity"),
            ("model", "composition_polarizability"),
            ("optimizer", "element_sharing"),
            ("run", "position_noise"),
        )
        for section, key in later:
            if not data[section][key]:
                data[section].pop(key)
        if self.model.isotropic_polarizability == "network":
            data["model"].pop("isotropic_polarizability")
        if self.run.batching == "homogeneous":
            data["run"].pop("batching")
        for key in ("score", "average_from"):
            if data["run"][key] in ({}, None):
                data["run"].pop(key)
        if self.symprec is None:
            data["run"].pop("symmetry")
            data["run"].pop("symprec")
        if self.optimizer.schedule != "cosine" or self.optimizer.sized_by == "minutes":
            data["run"].pop("epochs")
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def to_yaml(self) -> str:
        """Return the configuration as YAML text."""
        import yaml

        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _located(section: Any, folder: Path, *keys: str) -> Any:
    """Return a section whose paths have their variables replaced, and are absolute if they exist below a folder."""
    updates = {}
    for key in keys:
        value = getattr(section, key)
        if value is not None:
            expanded = expand_path(value)
            near = folder / expanded
            updates[key] = str(near.resolve() if not expanded.is_absolute() and near.exists() else expanded)
    return section.model_copy(update=updates)


def _leave_out_defaults(data: dict[str, Any], config: TrainingConfig) -> None:
    """Remove what a digest does not count: files of heads, and options of losses and foundations that are off."""
    for head in data["heads"].values():
        section = head["dataset"] or {}
        head["dataset"] = section.get("relaxed")
        if section.get("path_frames"):
            head["path_frames"] = section["path_frames"]
        if head["replay"]:
            head["replay"]["dataset"] = head["replay"]["path"] = None
    if not data["heads"]:
        data.pop("heads")
    for key in ("relaxed", "path_frames"):
        if config.dataset is not None and getattr(config.dataset, key) is not None:
            data[key] = getattr(config.dataset, key)
    for term in data["loss"]["terms"].values():
        for key in ("share", "count_unlabeled"):
            if term[key] == Term.model_fields[key].default:
                term.pop(key)
    data["loss"].pop("variant")  # it is spelled out in the terms
    for section, key in (("loss", "sum_rule_scale"), ("model", "freeze"), ("optimizer", "groups")):
        if not data[section][key]:
            data[section].pop(key)
    if data["model"]["field_blocks"] == "random":
        data["model"].pop("field_blocks")


def _explain(error: ValidationError) -> str:
    """Return the problems of a configuration in one line."""
    parts = []
    for item in error.errors():
        where = ".".join(str(key) for key in item["loc"] if not str(key).startswith(("tuple[", "literal[", "float")))
        if item["type"] == "extra_forbidden":
            parts.append(f"unknown key {where!r} ({_nearest(item['loc'])})")
        else:
            message = item["msg"].removeprefix("Value error, ")
            found = item["input"]
            shown = "" if isinstance(found, dict) else f", found {found!r}"
            parts.append(f"{where or 'top level'}: {message}{shown}")
    return "; ".join(parts)


def _nearest(location: tuple[int | str, ...]) -> str:
    """Return the suggestion for an unknown key at a location."""
    model: Any = TrainingConfig
    for key in location[:-1]:
        # names of heads and observables are no fields: the section stays
        field = model.model_fields.get(str(key))
        model = model if field is None else _section(field.annotation) or model
    return suggestion(str(location[-1]), model.model_fields)


def _section(annotation: Any) -> type[Section] | None:
    """Return the section inside an annotation such as ``dict[str, Term]`` or ``DatasetSection | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section(part)) is not None), None)
