"""The document of a spontaneous polarization: value, branch, path, energy, and what to distrust."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from fieldflows.schemas.common import (
    Document,
    Flag,
    FloatList,
    Matrix3,
    StructureField,
    Vector3,
    VectorList,
    quantity,
)
from fieldflows.schemas.failure import FailureDocument
from fieldflows.schemas.provenance import ModelCard, Provenance, Relaxation

SCHEMA_VERSION = 1

Estimate = Literal["charges", "branch", "difference"]
PolarizationStatus = Literal["ok", "ambiguous", "metal"]
EnergyStatus = Literal["ok", "not_available", "not_requested"]


def _as_integers(value: Any) -> Any:
    return tuple(round(float(item)) for item in value)


IntegerVector = Annotated[tuple[int, int, int], BeforeValidator(_as_integers)]


class IndependentEstimate(Document):
    """P_s of the same path by Born charges of another model."""

    model: ModelCard = Field(description="The other model.")
    ps: Vector3 = quantity("µC/cm²", "(1/Ω) Σ ½ [Z*(polar) + Z*(nonpolar)]·Δu, frame of `structure`.")
    ps_norm: float = quantity("µC/cm²", "Its norm.")
    distance: float = quantity("µC/cm²", "Distance from the estimate by the charges of `provenance.model`.")


class ProposedRecord(Document):
    """A nonpolar crystal that the symmetry of the polar one proposes."""

    spacegroup_symbol: str = Field(description="International symbol.")
    spacegroup_number: int = quantity("1", "International number.")
    route: Literal["tolerance", "pseudosymmetry"] = Field(
        description="By a search of the space group with a larger tolerance, or by an operation that was added."
    )
    largest_displacement: float = quantity("Å", "Largest displacement of an atom.")
    largest_strain: float = quantity("1", "Largest relative change of a length.")
    cost: float = quantity("Å", "Size of the distortion, displacements and strain together.")


class SpontaneousPolarizationDocument(Document):
    """Spontaneous polarization of one crystal, relative to a nonpolar one."""

    latest_version: ClassVar[int | None] = SCHEMA_VERSION

    schema_version: int = quantity("1", "Version of this schema.", SCHEMA_VERSION)
    task: Literal["spontaneous_polarization"] = Field("spontaneous_polarization", description="Name of the property.")
    key: str = Field(description="uuid5 of task, input structure, model, settings and schema version.")

    material_id: str | None = Field(None, description="Identifier of the material, if one was given.")
    source: str | None = Field(None, description="File or database entry that the structure came from.")
    formula_pretty: str = Field(description="Reduced formula.")
    chemsys: str = Field(description="Elements in alphabetical order, joined by dashes.")
    elements: tuple[str, ...] = Field(description="Elements in alphabetical order.")
    nelements: int = quantity("1", "Number of elements.")
    nsites: int = quantity("1", "Number of atoms in the cell.")
    volume: float = quantity("Å³", "Volume of the cell.")
    spacegroup_symbol: str = Field(description="International symbol of the polar end.")
    spacegroup_number: int = quantity("1", "International number of the polar end.")
    point_group: str = Field(description="Point group of the polar end, international symbol.")
    structure: StructureField = Field(description="The polar crystal (pymatgen); vectors refer to its frame.")

    nonpolar: StructureField = Field(description="The nonpolar end, atom by atom in the frame of `structure`.")
    nonpolar_id: str | None = Field(None, description="Identifier of the nonpolar material, if one was given.")
    nonpolar_spacegroup_symbol: str = Field(description="International symbol of the nonpolar end.")
    nonpolar_spacegroup_number: int = quantity("1", "International number of the nonpolar end.")
    subgroup_index: int | None = quantity(
        "1", "Index of the polar group in the nonpolar one, if it is a subgroup.", None
    )
    nonpolar_origin: Literal["given", "proposed by symmetry"] = Field(description="Where the nonpolar end comes from.")
    proposals: tuple[ProposedRecord, ...] = Field(
        (), description="References that symmetry proposes, the smallest distortion first; the first one was taken."
    )
    largest_displacement: float = quantity("Å", "Largest displacement of an atom from the nonpolar end.")
    rms_displacement: float = quantity("Å", "Root mean square of the displacements.")
    largest_strain: float = quantity("1", "Largest relative change of a length.")
    n_frames: int = quantity("1", "Frames of the path, both ends included.")

    ps: Vector3 | None = quantity("µC/cm²", "P_s by the way that `ps_estimate` names; null for a metal.", None)
    ps_norm: float | None = quantity("µC/cm²", "Norm of `ps`.", None)
    ps_estimate: Estimate = Field(
        description="'charges': from Z* of both ends; 'branch': the difference of P on the branch nearest to that; "
        "'difference': the difference of P as it is."
    )
    ps_charges: Vector3 = quantity("µC/cm²", "(1/Ω) Σ ½ [Z*(polar) + Z*(nonpolar)]·Δu.")
    ps_charges_norm: float = quantity("µC/cm²", "Its norm.")
    charges_spread: float = quantity("µC/cm²", "Half the distance of the estimates by Z* of one end alone.")
    ps_branch: Vector3 = quantity(
        "µC/cm²", "`ps_difference` and the whole quanta that bring it nearest to `ps_charges`."
    )
    ps_branch_norm: float = quantity("µC/cm²", "Its norm.")
    ps_difference: Vector3 = quantity("µC/cm²", "Σ [f(polar) − f(nonpolar)] a/Ω with f of the model's P.")
    ps_difference_norm: float = quantity("µC/cm²", "Its norm.")
    ps_integral: Vector3 | None = quantity("µC/cm²", "∫ Z*·du and strain along the path; equals `ps_difference`.", None)
    ps_strain: Vector3 | None = quantity("µC/cm²", "The share of the strain in `ps_integral`.", None)
    integral_error: float | None = quantity("µC/cm²", "Distance of `ps_integral` from `ps_difference`.", None)
    independent: tuple[IndependentEstimate, ...] = Field((), description="Estimates by Born charges of other models.")
    uncertainty: float | None = quantity(
        "µC/cm²",
        "Root mean square distance of the estimates by charges, of this and other models, from their mean; null "
        "without another model.",
        None,
    )
    band_low: float = quantity(
        "µC/cm²", "Smallest |P_s| of `ps_charges`, either end alone, `ps_branch`, and other models."
    )
    band_high: float = quantity("µC/cm²", "Largest |P_s| of the same.")

    quanta: Matrix3 = quantity("µC/cm²", "Rows e a_k/Ω of the polar end.")
    branch: IntegerVector = quantity("1", "Whole quanta from `ps_difference` to `ps_branch`.")
    branch_margin: float = quantity(
        "1", "How far, in quanta, `ps_charges` may move before another branch of the model's P is the nearest."
    )
    nonpolar_fractions: Vector3 | None = quantity(
        "1",
        "P of the nonpolar end in quanta, modulo 1, of formal ionic charges; null if they cannot be assigned.",
        None,
    )
    fractions: VectorList = quantity("1", "P of each frame in quanta of its own cell, less that of the nonpolar end.")
    path_coordinate: FloatList = quantity("1", "0 at the nonpolar end, 1 at the polar one.")
    polarization_along: FloatList = quantity(
        "µC/cm²", "P of each frame along the direction of `ps`, nonpolar end zero."
    )
    max_step: float = quantity("1", "Largest change of P from frame to frame, in quanta.")
    max_second_difference: float = quantity("1", "Largest second difference of P along the path, in quanta.")
    ambiguous_steps: tuple[int, ...] = quantity("1", "Frames from which a step starts that is too large.", ())

    energies: FloatList | None = quantity("eV", "Energy of each frame per formula unit, nonpolar end zero.", None)
    energy_difference: float | None = quantity(
        "eV", "Energy of the polar end less the nonpolar one, per formula unit.", None
    )
    barrier: float | None = quantity(
        "eV", "Highest energy on the path less that of the polar end, per formula unit; an upper bound.", None
    )
    status_energy: EnergyStatus = Field(description="'ok', 'not_available' (no energy surface), or 'not_requested'.")

    status: PolarizationStatus = Field(
        description="'ok'; 'ambiguous' (the ways to P_s, or the models, disagree, or the branch is open); 'metal'."
    )
    flags: tuple[Flag, ...] = Field((), description="What a reader must know before using the numbers.")
    insulating: Literal["yes", "no", "unknown"] = Field(
        "unknown", description="Whether the crystal has a band gap; a potential cannot know."
    )
    band_gap: float | None = quantity("eV", "Band gap as given with the input.", None)

    relaxation: Relaxation | None = Field(None, description="How the polar crystal was relaxed first, if it was.")
    nonpolar_relaxation: Relaxation | None = Field(None, description="The same of the nonpolar one.")
    provenance: Provenance = Field(description="Model, code, settings and time.")


class FerroelectricScreeningDocument(Document):
    """Spontaneous polarizations of many crystals, and the crystals for which there is none."""

    latest_version: ClassVar[int | None] = SCHEMA_VERSION

    schema_version: int = quantity("1", "Version of this schema.", SCHEMA_VERSION)
    task: Literal["ferroelectric_screening"] = Field("ferroelectric_screening", description="Name of the task.")
    results: tuple[SpontaneousPolarizationDocument, ...] = Field((), description="One per polar crystal.")
    failures: tuple[FailureDocument, ...] = Field((), description="One per crystal that failed.")
    n_structures: int = quantity("1", "Crystals that were given.")
    n_not_polar: int = quantity("1", "Of these, crystals whose point group allows no polarization.")
    n_computed: int = quantity("1", "Results that are new.")
    n_reused: int = quantity("1", "Results that were stored before.")
    n_duplicates: int = quantity("1", "Crystals equal to an earlier one.")
    code_version: str = Field(description="Version of fieldflows.")


class PublishedPath(Document):
    """One published path: its P_s, and what a model says of it."""

    path: str = Field(description="Identifier of the workflow that computed it.")
    formula: str = Field(description="Reduced formula.")
    polar_id: str = Field("", description="Identifier of the polar crystal.")
    nonpolar_id: str = Field("", description="Identifier of the nonpolar crystal.")
    seen: Literal["train", "valid", "no", "unknown"] = Field(
        description="Whether the model was trained on, or selected by, crystals of this formula."
    )
    rejected: bool = Field(description="Whether the published path jumps, so that it is not counted.")
    label_flags: tuple[str, ...] = Field((), description="What is doubtful about the label.")
    label: Vector3 = quantity("µC/cm²", "Published P_s, frame of the polar end.")
    label_norm: float = quantity("µC/cm²", "Its norm, from the published polarizations.")
    published_norm: float | None = quantity("µC/cm²", "The norm as published.", None)
    nonpolar_fractions: Vector3 = quantity("1", "Published P of the nonpolar end in quanta.")
    predicted: SpontaneousPolarizationDocument = Field(description="P_s of the model for the same path.")
    label_along: VectorList = quantity("µC/cm²", "Published P of each frame in its own cell, less the nonpolar end's.")
    predicted_along: VectorList = quantity("µC/cm²", "The same of the model.")


class PathErrors(Document):
    """Errors over a group of paths."""

    group: str = Field(description="Which paths.")
    n_paths: int = quantity("1", "Paths.")
    n_formulas: int = quantity("1", "Reduced formulas.")
    compared: str = Field(description="What is compared.")
    mae: float = quantity("µC/cm²", "Mean absolute error.")
    rmse: float = quantity("µC/cm²", "Root mean square error.")
    zero_mae: float = quantity("µC/cm²", "Mean absolute error of predicting zero.")
    zero_rmse: float = quantity("µC/cm²", "Root mean square error of predicting zero.")
    r2: float | None = quantity("1", "Coefficient of determination.", None)


class PublishedPathsDocument(Document):
    """A model against published polarization paths."""

    latest_version: ClassVar[int | None] = SCHEMA_VERSION

    schema_version: int = quantity("1", "Version of this schema.", SCHEMA_VERSION)
    task: Literal["published_paths"] = Field("published_paths", description="Name of the task.")
    file_sha256: str = Field(description="Hash of the file of paths.")
    model: ModelCard = Field(description="The model.")
    others: tuple[ModelCard, ...] = Field((), description="Models that were asked for an independent estimate.")
    paths: tuple[PublishedPath, ...] = Field(description="All paths.")
    errors: tuple[PathErrors, ...] = Field(description="Errors by group and quantity; rejected paths do not count.")
    failures: tuple[FailureDocument, ...] = Field((), description="Paths that failed.")
    largest_norm_error: float = quantity("µC/cm²", "Largest distance of a norm, recomputed, from the published one.")
    wall_time: float = quantity("s", "Wall time.")
    code_version: str = Field(description="Version of fieldflows.")
