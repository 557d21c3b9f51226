"""Where labels come from, as a configuration says it: datasets, heads, replay."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fieldflows.errors import suggestion
from fieldflows.training.loss_config import TRAINABLE_LABELS
from fieldflows.training.section import Section


class DatasetSection(Section):
    """Where the labels come from.  Exactly one of the three keys."""

    path: str | None = Field(
        None,
        description="Directory of a built dataset; environment variables and ~ are replaced.",
        json_schema_extra={"unit": "path"},
    )
    config: str | None = Field(
        None,
        description="YAML file that describes how the dataset is built; relative to the training file.",
        json_schema_extra={"unit": "path"},
    )

    digest: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="Digest of a dataset that was kept as an artifact; found on this machine, in the store of the job "
        "or where FIELDFLOWS_ARTIFACT_SOURCES says.",
    )
    relaxed: Literal["stated"] | tuple[str, ...] | None = Field(
        None,
        description="Frames at rest, which get forces and stress of zero as labels where they have none and the loss "
        "has a term: 'stated', those that the dataset says are relaxed; or the names of sources of which all are, "
        "never a trajectory or path; None: none.",
    )
    path_frames: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description="Frames of each polarization path that are trained on, 0 (nonpolar) to 9 (polar); neighbors are "
        "much alike. Frames to select and test by, and those of no path, all stay. None: all.",
    )

    @model_validator(mode="after")
    def _one_of_three(self) -> DatasetSection:
        if sum(value is not None for value in (self.path, self.config, self.digest)) != 1:
            raise ValueError(
                "give exactly one of 'path' (a built dataset), 'config' (a dataset YAML file) and 'digest' (one that "
                "was kept)"
            )
        return self


class ReplaySection(Section):
    """Structures that a fine-tuned network has to go on describing.  Exactly one of the first three keys."""

    path: str | None = Field(
        None,
        description="Extended XYZ file of structures; relative to the training file.",
        json_schema_extra={"unit": "path"},
    )
    dataset: DatasetSection | None = Field(None, description="A built dataset, or how it is built.")
    from_heads: bool = Field(False, description="The training structures of the other heads, without their labels.")
    labels: Literal["file", "foundation"] = Field(
        "foundation",
        description="'file': energies (eV), forces (eV/Å) and stresses (eV/Å³, ASE sign) of the file or dataset; "
        "'foundation': what the backbone says at the start, computed once and kept in the run directory.",
    )
    observables: tuple[Literal["energy", "forces", "stress"], ...] = Field(
        ("energy", "forces", "stress"),
        min_length=1,
        description="Labels to keep the network at, those of them that the loss has a term for.",
    )
    frames: int | None = Field(None, ge=1, description="Structures to take; None takes all.")
    selection: Literal["random", "farthest"] = Field(
        "random",
        description="Which to take: at random with the seed of the run, or each time the one farthest from those taken "
        "in the space of the backbone's invariant features.",
    )
    valid_fraction: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Part of the formulas, by hash, that go to validation; formulas of other heads go where those are.",
        json_schema_extra={"unit": "1"},
    )

    @model_validator(mode="after")
    def _consistent(self) -> ReplaySection:
        if (self.path is not None) + (self.dataset is not None) + self.from_heads != 1:
            raise ValueError("give exactly one of 'path', 'dataset' and 'from_heads: true'")
        if self.from_heads and self.labels == "file":
            raise ValueError("from_heads takes structures without labels: labels must be 'foundation'")
        return self


class HeadSection(Section):
    """One head of a network with several: its frames, and what they count.  Either a dataset or a replay."""

    dataset: DatasetSection | None = Field(None, description="Labeled frames.")
    replay: ReplaySection | None = Field(None, description="Structures that the backbone was trained on, or like them.")
    weight: float = Field(1.0, gt=0, description="Weight of its frames in the loss.", json_schema_extra={"unit": "1"})
    labels: dict[str, float] | None = Field(
        None,
        description="Observables that its frames are trained on, each with a factor on the weight of the frames; None: "
        "all that the loss has a term for and the frames a label of.",
    )
    start_from: str | None = Field(
        None, description="Head of the backbone that it starts as; its first one by default. None from scratch."
    )
    atomic_energies: Literal["foundation", "least squares", "zero"] | None = Field(
        None,
        description="Atomic baselines: those of the head that it starts as; least squares over the energies of its "
        "training frames, less the interaction energies of a backbone; or zero. By default 'foundation' with a "
        "backbone, else as model.atomic_energies.",
        json_schema_extra={"unit": "eV"},
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> HeadSection:
        if (self.dataset is None) == (self.replay is None):
            raise ValueError("give exactly one of 'dataset' and 'replay'")
        for name, value in (self.labels or {}).items():
            if name not in TRAINABLE_LABELS:
                raise ValueError(f"no loss for {name!r}. " + suggestion(name, TRAINABLE_LABELS))
            if value <= 0:
                raise ValueError(f"the factor of {name} must be positive; leave the label out instead")
        if self.labels == {}:
            raise ValueError("'labels' is empty")
        return self
