"""The spontaneous polarization: a path from a nonpolar crystal, P and Born charges along it, the branch, the energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fieldflows.backends.base import ModelInfo, Response
from fieldflows.backends.symmetric import SymmetrySettings
from fieldflows.errors import EvaluationError, SettingsError
from fieldflows.physics import branches, composition, formal_charges, path_flags, path_integral
from fieldflows.physics.crystal import primitive_crystal
from fieldflows.physics.distortion import DistortionLimits, PathWarning
from fieldflows.physics.paths import DistortionPath, build_path
from fieldflows.physics.polarization import to_microcoulomb_per_cm2
from fieldflows.physics.polarization_ways import Ways, integrated, strained_cells, ways_to_polarization
from fieldflows.physics.references import ProposedReference, propose_references
from fieldflows.physics.symmetry import SYMPREC
from fieldflows.properties.base import Context, Evaluation, Plan, PropertyInput, provenance_of, result_key
from fieldflows.schemas.common import Flag, make_flag, quantity
from fieldflows.schemas.ferroelectric import (
    SCHEMA_VERSION,
    Estimate,
    PolarizationStatus,
    SpontaneousPolarizationDocument,
)
from fieldflows.schemas.ferroelectric_fields import (
    crystal_facts,
    energy_facts,
    norm_of,
    path_facts,
    polarization_along,
    way_facts,
)
from fieldflows.schemas.identity import structure_hash
from fieldflows.schemas.provenance import Relaxation
from fieldflows.structures import as_atoms, check_structure

if TYPE_CHECKING:
    from ase import Atoms

    from fieldflows.structures import StructureLike

FloatArray = NDArray[np.float64]

DOUBTFUL = frozenset(
    {"large_step", "broken_branch", "branch_margin", "disagreement", "antiparallel", "integral", "charges_change"}
)
"""Flags that make the status 'ambiguous'."""
WAYS = ("polarization", "born_effective_charges")
"""Observables that P_s follows from."""
MOST_READY = 1000
"""Paths that are kept between plan and analysis."""


class SpontaneousPolarizationSettings(BaseModel):
    """Settings of the spontaneous polarization; every default is stored with the result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_frames: int = quantity("1", "Frames of the path, both ends included.", 10, ge=2)
    match: Literal["search", "given"] = Field(
        "search", description="Whether cells and sites of two ends are matched, or taken in the order given."
    )
    max_displacement: float = quantity("Å", "Largest displacement of an atom.", 1.5, gt=0)
    max_strain: float = quantity("1", "Largest relative change of a length.", 0.25, gt=0)
    unrelated: bool = Field(False, description="Accept ends whose space groups are unrelated, and flag it.")
    symprec: float = quantity("Å", "Tolerance of space groups.", SYMPREC, gt=0)
    estimate: Estimate = Field("charges", description="The way to P_s that `ps` gives; all are stored.")
    consistency: bool = Field(
        True, description="Evaluate Z* in every frame and the slope of P by strain, and integrate: ∫ Z*·du against ΔP."
    )
    energy: bool | Literal["auto"] = Field(
        "auto", description="Whether to evaluate energies along the path; 'auto' does if a model has them."
    )
    strain_step: float = quantity("1", "Step of λ for the slope of P by strain.", 1e-3, gt=0, le=0.1)
    integral_threshold: float = quantity(
        "1", "Integrals off ΔP by more than this part of |ΔP| are flagged.", 0.02, gt=0
    )
    max_step: float = quantity("1", "Larger steps of P are ambiguous, in quanta.", branches.AMBIGUOUS_STEP, gt=0)
    max_second_difference: float = quantity(
        "1", "Larger ones break the branch, in quanta.", branches.BROKEN_BRANCH, gt=0
    )
    min_margin: float = quantity(
        "1", "Smaller distances from another branch are flagged, in quanta.", 0.1, ge=0, le=0.5
    )
    max_disagreement: float = quantity("1", "Ways to P_s that differ by more than this part are flagged.", 0.25, gt=0)
    least_disagreement: float = quantity("µC/cm²", "Smaller differences never are.", 3.0, ge=0)
    max_spread: float = quantity(
        "1", "Larger changes of Z* between the ends are flagged: their part of |P_s|.", 0.5, gt=0
    )
    small_polarization: float = quantity("µC/cm²", "Smaller |P_s| are flagged.", 0.1, ge=0)
    use_symmetry: bool = Field(True, description="Evaluate primitive cells along few directions; the same numbers.")
    symmetrization: SymmetrySettings = Field(
        default_factory=SymmetrySettings, description="How close a frame must be to its symmetry for that."
    )

    @property
    def limits(self) -> DistortionLimits:
        """How far the ends may be apart."""
        return DistortionLimits(displacement=self.max_displacement, strain=self.max_strain)

    @property
    def doubts(self) -> path_flags.PathDoubts:
        """What is beyond doubt."""
        return path_flags.PathDoubts(
            self.max_step, self.max_second_difference, self.min_margin, self.max_disagreement,
            self.least_disagreement, self.max_spread, self.small_polarization,
        )  # fmt: skip


@dataclass(frozen=True)
class Nonpolar:
    """The nonpolar end, if it is given.

    Attributes:
        structure: The crystal.
        identifier: Identifier of the material.
        given: The crystal before a relaxation; the key of the document is made from it.
        relaxation: How it was relaxed.
    """

    structure: StructureLike
    identifier: str | None = None
    given: StructureLike | None = None
    relaxation: Relaxation | None = None


@dataclass(frozen=True)
class _Ready:
    """A path, and where its nonpolar end comes from."""

    path: DistortionPath
    proposals: tuple[ProposedReference, ...] = ()


@dataclass(frozen=True)
class SpontaneousPolarizationProperty:
    """Plan and analysis of the spontaneous polarization of a polar crystal.

    With the frames of :func:`fieldflows.physics.paths.build_path`, fractions f of the quanta in each frame's own cell
    and Δu of the fractional coordinates,

        difference:  P_s = Σ_i [f_i(polar) − f_i(nonpolar)] e a_i/Ω,       charges:  P_s = (1/Ω) Σ ½ [Z*(0) + Z*(1)]·Δu

    and *branch* the former with the whole quanta that bring it nearest to the latter.  A single-valued P cannot follow
    the branches of a crystal, Born charges have none: *charges* is what ``ps`` gives unless another way is asked for.
    Without a nonpolar crystal the nearest one that symmetry proposes is taken.

    Attributes:
        settings: Settings.
        nonpolar: The nonpolar end; None to have it proposed by symmetry.
        surface: Which model gives energies; decided by :meth:`bind`.
    """

    settings: SpontaneousPolarizationSettings = field(default_factory=SpontaneousPolarizationSettings)
    nonpolar: Nonpolar | None = None
    surface: Literal["none", "field", "hessian"] | None = None
    _ready: dict[str, _Ready] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """Name of the task."""
        return "spontaneous_polarization"

    @property
    def document(self) -> type[SpontaneousPolarizationDocument]:
        """Class of the documents."""
        return SpontaneousPolarizationDocument

    @property
    def schema_version(self) -> int:
        """Version of the documents."""
        return SCHEMA_VERSION

    def settings_dict(self) -> dict[str, Any]:
        """Return all settings in JSON types, with ``energy`` as decided and the hash of the nonpolar end as given."""
        settings = self.settings.model_dump(mode="json")
        if self.surface is not None:
            settings["energy"] = self.surface != "none"
        end = self.nonpolar
        settings["nonpolar"] = None if end is None else structure_hash(end.given or end.structure)
        return settings

    def bind(self, model: ModelInfo, hessian_model: ModelInfo | None = None) -> SpontaneousPolarizationProperty:
        """Return the property for these models, with "auto" decided.

        Raises:
            CapabilityError: If the model knows no field response, if energies are asked for that no model has, or if
                the ``hessian_model`` has none.
        """
        model.require(WAYS, "the spontaneous polarization")
        surface: Literal["none", "field", "hessian"] = "field" if model.has_energy_surface else "none"
        if hessian_model is not None:
            hessian_model.require(("energy",), "as hessian_model")
            surface = "hessian"
        if self.settings.energy is True and surface == "none":
            model.require(("energy",), "double well along the path")
        return replace(self, surface="none" if self.settings.energy is False else surface, _ready={})

    def path(self, structure: StructureLike) -> DistortionPath:
        """Return the path whose polar end is a crystal.

        Raises:
            PathError: If the crystal is not polar, or there is no nonpolar one near it.
            StructureError: If it cannot be computed.
        """
        return self._build(structure).path

    def _build(self, structure: StructureLike) -> _Ready:
        settings = self.settings
        polar = as_atoms(structure)
        proposals: list[ProposedReference] = []
        start, match = None, settings.match
        if self.nonpolar is not None:
            start = self.nonpolar.structure
        else:
            proposals = propose_references(polar, settings.limits, settings.symprec, rounds=1)
            start, match = proposals[0].structure, "given" if proposals[0].same_cell else "search"
        found = build_path(
            start, polar, settings.n_frames, match, limits=settings.limits, symprec=settings.symprec,
            relation="warn" if settings.unrelated else "require",
        )  # fmt: skip
        return _Ready(found, tuple(proposals))

    def plan(self, structure: StructureLike) -> Plan:
        """Return the evaluations for one polar crystal: frame by frame P and Z*, its slopes by strain, energies.

        Raises:
            SettingsError: If the property was not bound to models.
            PathError: If there is no path.
            StructureError: If the structure cannot be computed.
        """
        if self.surface is None:
            raise SettingsError("The spontaneous polarization is not bound to a model.", "Call bind(model.info) first.")
        check_structure(structure)
        ready = self._build(structure)
        self._ready[structure_hash(structure)] = ready
        while len(self._ready) > MOST_READY:  # of crystals that failed since; a path can be built again
            self._ready.pop(next(iter(self._ready)))
        symmetry = self.settings.symmetrization if self.settings.use_symmetry else None
        frames = [as_atoms(frame) for frame in ready.path.frames]
        last = len(frames) - 1
        evaluations = []
        for k, frame in enumerate(frames):
            wanted = WAYS if self.settings.consistency or k in (0, last) else WAYS[:1]
            evaluations.append(Evaluation(frame, wanted, symmetry=symmetry))
        for frame in self._strained(frames):
            evaluations.append(Evaluation(frame, WAYS[:1], symmetry=symmetry))
        if self.surface != "none":
            role: Literal["field", "hessian"] = self.surface
            evaluations += [Evaluation(frame, ("energy",), role=role, symmetry=symmetry) for frame in frames]
        return Plan(tuple(evaluations))

    def _strained(self, frames: Sequence[Atoms]) -> list[Atoms]:
        """Return each frame with the cells a step of λ before and after it, at its fractional coordinates."""
        line = _line(frames)
        if not self.settings.consistency or not line.is_strained:
            return []
        moved = []
        for frame, cells in zip(frames, strained_cells(line, self.settings.strain_step), strict=True):
            for cell in cells:
                other = frame.copy()
                other.set_cell(cell, scale_atoms=True)
                moved.append(other)
        return moved

    def analyse(
        self, structure: StructureLike, responses: Sequence[Response], context: Context
    ) -> SpontaneousPolarizationDocument:
        """Return the document of one polar crystal from the responses to its plan.

        Raises:
            EvaluationError: If a response lacks what was planned.
        """
        ready = self._ready.pop(structure_hash(structure), None) or self._build(structure)
        frames = [as_atoms(frame) for frame in ready.path.frames]
        ways = self._ways(frames, responses)
        energies = self._energies(responses, len(frames), ready.path)
        formal = formal_charges.formal_fractions(frames[0].numbers, frames[0].get_scaled_positions(wrap=False))
        flags = self._flags(ready, ways, energies, formal, context)
        insulating = _insulating(context.subject, frames[-1], flags)
        status: PolarizationStatus = "ambiguous" if DOUBTFUL & {flag.code for flag in flags} else "ok"
        status = "metal" if insulating == "no" else status
        chosen = ways.of(self.settings.estimate)
        subject = context.subject
        original = structure if subject.input_structure is None else subject.input_structure
        return SpontaneousPolarizationDocument(
            key=result_key(self, original, context.model, context.hessian_model, context.extra_settings),
            material_id=subject.material_id,
            source=subject.source,
            **crystal_facts(structure),
            **path_facts(ready.path, ready.proposals, self.nonpolar is not None),
            **way_facts(ways, frames),
            nonpolar_id=None if self.nonpolar is None else self.nonpolar.identifier,
            ps=None if status == "metal" else to_microcoulomb_per_cm2(chosen),
            ps_norm=None if status == "metal" else norm_of(chosen),
            ps_estimate=self.settings.estimate,
            nonpolar_fractions=formal,
            polarization_along=polarization_along(ways, frames, chosen),
            ambiguous_steps=ways.branch.large_steps(self.settings.max_step),
            **energy_facts(energies, self.settings.energy is not False),
            status=status,
            flags=tuple(flags),
            insulating=insulating,
            band_gap=subject.band_gap,
            relaxation=subject.relaxation,
            nonpolar_relaxation=None if self.nonpolar is None else self.nonpolar.relaxation,
            provenance=provenance_of(self, structure, context),
        )

    def _ways(self, frames: Sequence[Atoms], responses: Sequence[Response]) -> Ways:
        """Return P_s in all ways from the responses, frames first, then strained frames."""
        count, line, step = len(frames), _line(frames), self.settings.strain_step
        values = [response.get("polarization") for response in responses[:count]]
        ends = [responses[k].get("born_effective_charges") for k in (0, count - 1)]
        ways = ways_to_polarization(line, values, ends)
        if not self.settings.consistency:
            return ways
        charges = [response.get("born_effective_charges") for response in responses[:count]]
        strained = None
        if line.is_strained:
            moved = [response.get("polarization") for response in responses[count : 3 * count]]
            strained = np.reshape(moved, (count, 2, 3))
        integral, strain = integrated(line, values, charges, strained, step)
        return replace(ways, integral=integral, strain=strain)

    def _energies(self, responses: Sequence[Response], count: int, path: DistortionPath) -> FloatArray | None:
        """Return energies of the frames in eV per formula unit, the nonpolar end zero."""
        if self.surface == "none":
            return None
        values = np.array([float(response.get("energy")) for response in responses[-count:]])
        return (values - values[0]) / path.polar.composition.get_reduced_formula_and_factor()[1]

    def _flags(
        self, ready: _Ready, ways: Ways, energies: FloatArray | None, formal: FloatArray | None, context: Context
    ) -> list[Flag]:
        doubts = self.settings.doubts
        path = ready.path
        found: list[PathWarning] = [*path.warnings, *path_flags.reference_offset(formal), *doubts.branch(ways.branch)]
        found += doubts.agreement(ways.charges, ways.on_branch, ways.added, ways.margin)
        found += doubts.spread_of(norm_of(ways.charges), float(to_microcoulomb_per_cm2(ways.spread)))
        found += doubts.size(norm_of(ways.of(self.settings.estimate)))
        found += path_flags.antiparallel(
            ways.mean_charges, path.distortion.displacements, _copies(path, self.settings.symprec), ways.charges
        )
        if energies is not None:
            found += path_flags.polar_end_higher(float(energies[-1]))
        flags = [make_flag(item.code, f"{item.message[0].upper()}{item.message[1:]}.", item.value, item.threshold)
                 for item in found]  # fmt: skip
        if ways.integral is not None:
            apart = norm_of(ways.integral - ways.difference)
            limit = max(0.1, self.settings.integral_threshold * norm_of(ways.difference))
            if apart > limit:
                message = (
                    f"∫ Z*·du and the difference of P, an identity, are {apart:.2f} µC/cm² apart: take more frames."
                )
                flags.append(make_flag("integral", message, apart, limit))
        if ready.proposals:
            first = ready.proposals[0]
            message = (
                f"The nonpolar end, {first.group.symbol}, was proposed by symmetry, the smallest distortion of "
                f"{len(ready.proposals)}; no calculation or measurement says that it is the paraelectric phase."
            )
            flags.append(make_flag("proposed_reference", message, len(ready.proposals)))
        if path.relation.polar.number == 1:
            flags.append(make_flag("no_symmetry", "The polar end is in P1: no symmetry confirms its polar axis.", 1.0))
        missing = [name for name in WAYS if name not in context.model.trained_labels]
        if missing:
            text = f"The model was not trained on {' and '.join(missing)}; these follow from other labels only."
            flags.append(make_flag("untrained_observable", text))
        return flags


def _line(frames: Sequence[Atoms]) -> path_integral.LinearPath:
    return path_integral.LinearPath(
        np.array([frame.cell[:] for frame in frames]),
        np.array([frame.get_scaled_positions(wrap=False) for frame in frames]),
    )


def _copies(path: DistortionPath, symprec: float) -> NDArray[np.intp]:
    """Return for each atom the atom of the nonpolar primitive cell that it is a copy of, (n,)."""
    nonpolar = as_atoms(path.nonpolar)
    try:
        return primitive_crystal(nonpolar.cell[:], nonpolar.positions, nonpolar.numbers, symprec).mapping
    except EvaluationError:
        return path.mapping.sites


def _insulating(subject: PropertyInput, atoms: Atoms, flags: list[Flag]) -> Literal["yes", "no", "unknown"]:
    if subject.band_gap is not None:
        if subject.band_gap > 0.0:
            return "yes"
        flags.append(make_flag("metal", "The band gap given is zero: a metal has no polarization.", 0.0, 0.0))
        return "no"
    if composition.is_all_metal(atoms.get_chemical_symbols()):
        text = "All elements are metals, and a potential cannot know the band gap: this is probably no insulator."
        flags.append(make_flag("all_metal_composition", text))
    return "unknown"
