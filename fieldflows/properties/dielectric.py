"""The dielectric property: ε∞, ε_ion, ε_tot, refractive index, Born charges and infrared modes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fieldflows.backends.base import ModelInfo, Response
from fieldflows.backends.symmetric import SymmetrySettings
from fieldflows.errors import EvaluationError, SettingsError
from fieldflows.observables import ELECTRONIC_OBSERVABLES
from fieldflows.physics import born_charges, composition, dielectric, optics, phonons, symmetry
from fieldflows.properties.base import Context, Evaluation, Plan, provenance_of, result_key
from fieldflows.schemas.common import Flag, make_flag, quantity
from fieldflows.schemas.dielectric import SCHEMA_VERSION, DielectricDocument, IonicStatus, ModeSet, SymmetryRecord
from fieldflows.structures import as_atoms, as_structure, check_structure

if TYPE_CHECKING:
    from ase import Atoms

    from fieldflows.structures import StructureLike

FloatArray = NDArray[np.float64]

SYMMETRY_FRACTION = 0.02
"""Deviations from the point group below this part of the largest component are not flagged."""


class DielectricSettings(BaseModel):
    """Settings of the dielectric property; every default is stored with the result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ionic: bool | Literal["auto"] = Field(
        "auto", description="Whether to compute modes and ε_ion; 'auto' does if a model has an energy surface."
    )
    force_threshold: float = quantity("eV/Å", "Residual forces above this are flagged.", 0.05, gt=0)
    soft_mode_threshold_float64: float = quantity(
        "eV Å⁻² amu⁻¹", "A crystal is unstable if an optical ω² is below minus this (0.16i THz, 5.2i cm⁻¹).", 1e-4, ge=0
    )
    soft_mode_threshold_float32: float = quantity(
        "eV Å⁻² amu⁻¹", "The same for Hessians in single precision (0.49i THz, 16i cm⁻¹).", 1e-3, ge=0
    )
    allow_unstable: bool = Field(
        False, description="Sum over imaginary modes as well, as in arXiv:2508.17870; a formal number, and flagged."
    )
    sum_rule_threshold: float = quantity("e", "Violations of Σ Z* = 0 above this are flagged.", 0.01, gt=0)
    min_chi_eigenvalue: float = quantity("1", "ε∞ is invalid if an eigenvalue of ε∞ − I is below this.", 0.0)
    symmetry_threshold: float = quantity(
        "1", "Deviations of ε from the point group above this are flagged.", 0.05, gt=0
    )
    symprec: float = quantity("Å", "Tolerance of the space group.", symmetry.SYMPREC, gt=0)
    plausible_refractive_index: float = quantity("1", "Larger n is flagged.", 6.0, gt=1)
    plausible_ionic: float = quantity("1", "Larger components of ε_ion are flagged.", 100.0, gt=0)
    store_eigenvectors: bool = Field(False, description="Whether to store the eigenvectors of the modes.")
    use_symmetry: bool = Field(
        True,
        description="Evaluate the primitive cell along the few directions that its space group leaves; the same "
        "result for a crystal that has its symmetry, several times faster. The modes are then those of the primitive "
        "cell.",
    )
    symmetrization: SymmetrySettings = Field(
        default_factory=SymmetrySettings, description="How close a crystal must be to its symmetry for that."
    )


@dataclass(frozen=True)
class _Ionic:
    """Outcome of the ionic part."""

    status: IonicStatus
    epsilon: FloatArray | None = None
    modes: phonons.Modes | None = None


@dataclass(frozen=True)
class DielectricProperty:
    """Plan and analysis of the dielectric response of a crystal.

    The plan is one evaluation of P, Z* and α at zero field, and, if the ionic part is wanted, one of forces and
    Hessian, by the same model or by a separate ``hessian_model``.  The analysis gives

        ε∞ = I + α/ε_vac,   ε_ion = Z* H⁺ Z*ᵀ/(ε_vac Ω),   ε_tot = ε∞ + ε_ion,   n = √(tr ε∞/3)

    and says in status and flags what must not be used.  Nothing that is undefined gets a number: ε_ion at a saddle
    point and n of an ε∞ below 1 are None.
    """

    cover_fields: ClassVar[tuple[str, ...]] = ("status_ionic",)

    settings: DielectricSettings = field(default_factory=DielectricSettings)
    ionic: bool | None = None
    surface: Literal["none", "field", "hessian"] = "none"

    @property
    def name(self) -> str:
        """Name of the task."""
        return "dielectric"

    @property
    def document(self) -> type[DielectricDocument]:
        """Class of the documents."""
        return DielectricDocument

    @property
    def schema_version(self) -> int:
        """Version of the documents."""
        return SCHEMA_VERSION

    def settings_dict(self) -> dict[str, Any]:
        """Return all settings in JSON types, with ``ionic`` as decided by :meth:`bind`."""
        settings = self.settings.model_dump(mode="json")
        if self.ionic is not None:
            settings["ionic"] = self.ionic
        return settings

    @property
    def extent(self) -> str:
        """Part of the document that is asked for: "electronic", or "ionic" for all of it."""
        return "ionic" if self.ionic else "electronic"

    def key_settings(self) -> dict[str, Any]:
        """Return the settings that tell results apart: the ionic part is added under the same key."""
        return {name: value for name, value in self.settings_dict().items() if name != "ionic"}

    def covers(self, row: Mapping[str, Any]) -> bool:
        """Return whether a stored document holds what is asked for; one with the ionic part holds everything."""
        return not self.ionic or row.get("status_ionic") not in (None, "not_requested", "no_energy_surface")

    def bind(self, model: ModelInfo, hessian_model: ModelInfo | None = None) -> DielectricProperty:
        """Return the property for these models, with "auto" decided.

        Raises:
            CapabilityError: If the model knows no field response; if ``ionic=True`` and no model has an energy
                surface; or if the ``hessian_model`` has none.
        """
        model.require(ELECTRONIC_OBSERVABLES, "the dielectric response")
        if hessian_model is not None:
            hessian_model.require(("forces", "hessian"), "as hessian_model")
            surface: Literal["none", "field", "hessian"] = "hessian"
        else:
            surface = "field" if model.has_energy_surface else "none"
        if self.settings.ionic is True and surface == "none":
            model.require(("forces", "hessian"), "ionic part of the permittivity")
        ionic = surface != "none" if self.settings.ionic == "auto" else bool(self.settings.ionic)
        return replace(self, ionic=ionic, surface=surface)

    def plan(self, structure: StructureLike) -> Plan:
        """Return the evaluations for one structure.

        Raises:
            SettingsError: If the property was not bound to models.
            StructureError: If the structure cannot be computed.
        """
        if self.ionic is None:
            raise SettingsError("The dielectric property is not bound to a model.", "Call bind(model.info) first.")
        check_structure(structure)
        mechanical = {"none": (), "field": ("forces",), "hessian": ("forces",) if self.ionic else ()}[self.surface]
        if self.ionic:
            mechanical = (*mechanical, "hessian")
        # isotopes break the symmetry of the modes, which the primitive cell would average away
        usable = self.settings.use_symmetry and not _has_isotopes(as_atoms(structure))
        symmetry = self.settings.symmetrization if usable else None
        if self.surface == "hessian" and mechanical:
            return Plan(
                (
                    Evaluation(structure, ELECTRONIC_OBSERVABLES, symmetry=symmetry),
                    Evaluation(structure, mechanical, role="hessian", symmetry=symmetry),
                )
            )
        return Plan((Evaluation(structure, (*ELECTRONIC_OBSERVABLES, *mechanical), symmetry=symmetry),))

    def analyse(self, structure: StructureLike, responses: Sequence[Response], context: Context) -> DielectricDocument:
        """Return the document of one structure from the responses to its plan.

        Raises:
            EvaluationError: If a response lacks what was planned.
        """
        atoms = as_atoms(structure)
        crystal = as_structure(structure)
        electronic, mechanical = responses[0], responses[-1]
        charges = np.asarray(electronic.get("born_effective_charges"))
        corrected = born_charges.enforce_acoustic_sum(charges)
        epsilon = dielectric.electronic_permittivity(electronic.get("polarizability"))
        principal = optics.principal_permittivities(epsilon)
        flags = _Flags(self.settings)
        valid = flags.electronic(principal, epsilon)
        flags.sum_rule(born_charges.acoustic_sum_residual(charges))
        flags.training(context)
        max_force = None
        if mechanical.forces is not None:
            max_force = float(np.linalg.norm(mechanical.forces, axis=1).max())
            flags.forces(max_force)
        ionic = self._ionic(atoms, corrected, mechanical, context, flags)
        insulating = flags.gap(context.subject.band_gap, crystal.composition.chemical_system.split("-"))
        group, oriented = self._symmetry(atoms, epsilon if valid else None, ionic.epsilon, flags)
        electronic_ieee, ionic_ieee = oriented
        total = epsilon + ionic.epsilon if valid and ionic.epsilon is not None else None
        total_ieee = electronic_ieee + ionic_ieee if electronic_ieee is not None and ionic_ieee is not None else None
        isotropic = born_charges.isotropic_charges(corrected)
        subject = context.subject
        original = structure if subject.input_structure is None else subject.input_structure
        bare = crystal.copy()
        bare.remove_oxidation_states()
        for name in list(bare.site_properties):
            bare.remove_site_property(name)
        return DielectricDocument(
            key=result_key(self, original, context.model, context.hessian_model, context.extra_settings),
            material_id=subject.material_id,
            source=subject.source,
            formula_pretty=bare.composition.reduced_formula,
            chemsys=bare.composition.chemical_system,
            elements=tuple(sorted(element.symbol for element in bare.composition)),
            nelements=len(bare.composition),
            nsites=len(bare),
            volume=bare.volume,
            spacegroup_symbol=group.symbol if group else None,
            spacegroup_number=group.number if group else None,
            crystal_system=group.crystal_system if group else None,
            point_group=group.point_group if group else None,
            structure=bare,
            total=total_ieee,
            ionic=ionic_ieee,
            electronic=electronic_ieee,
            e_total=_mean_diagonal(total),
            e_ionic=_mean_diagonal(ionic.epsilon),
            e_electronic=_mean_diagonal(epsilon) if valid else None,
            n=optics.refractive_index(epsilon) if valid else None,
            epsilon_total=total,
            epsilon_ionic=ionic.epsilon,
            epsilon_electronic=epsilon,
            epsilon_electronic_principal=principal,
            refractive_index_principal=optics.principal_refractive_indices(epsilon) if valid else None,
            polarizability=np.asarray(electronic.get("polarizability")),
            polarization=np.asarray(electronic.get("polarization")),
            born_effective_charges=charges,
            born_charge_min=float(isotropic.min()),
            born_charge_max=float(isotropic.max()),
            born_charge_sum_max=born_charges.acoustic_sum_residual(charges),
            modes=self._mode_set(ionic.modes),
            max_force=max_force,
            status_electronic="ok" if valid else "invalid",
            status_ionic=ionic.status,
            flags=tuple(flags.items),
            insulating=insulating,
            band_gap=subject.band_gap,
            symmetry_used=_symmetry_record(mechanical if self.ionic else electronic),
            reference=subject.reference,
            relaxation=subject.relaxation,
            provenance=provenance_of(self, structure, context),
        )

    def _ionic(self, atoms: Atoms, charges: FloatArray, response: Response, context: Context, flags: _Flags) -> _Ionic:
        if not self.ionic:
            unavailable = self.settings.ionic == "auto" and self.surface == "none"
            return _Ionic("no_energy_surface" if unavailable else "not_requested")
        hessian = np.asarray(response.get("hessian"))
        masses, volume = atoms.get_masses(), atoms.get_volume()
        if response.symmetry is not None:  # the Hessian is that of the primitive cell
            members = response.symmetry.representatives
            charges, masses = charges[members], masses[members]
            volume *= len(members) / len(atoms)
        modes = phonons.gamma_modes(hessian, masses, charges)
        single = (context.hessian_model or context.model).dtype == "float32"
        threshold = self.settings.soft_mode_threshold_float32 if single else self.settings.soft_mode_threshold_float64
        status = flags.stability(modes, threshold)
        if status == "soft" or (status == "unstable" and not self.settings.allow_unstable):
            return _Ionic(status, None, modes)
        try:
            epsilon = dielectric.ionic_permittivity(charges, hessian, volume)
        except EvaluationError as error:
            flags.add("invalid_ionic", str(error))
            return _Ionic("invalid", None, modes)
        flags.ionic(epsilon)
        return _Ionic("unstable_summed" if status == "unstable" else "ok", epsilon, modes)

    def _mode_set(self, modes: phonons.Modes | None) -> ModeSet | None:
        if modes is None:
            return None
        return ModeSet(
            frequencies_thz=modes.frequencies_thz,
            frequencies_inverse_cm=modes.frequencies_inverse_cm,
            mode_effective_charges=modes.mode_effective_charges,
            oscillator_strengths=modes.oscillator_strengths,
            oscillator_strengths_debye=modes.oscillator_strengths_debye,
            ir_active=tuple(modes.ir_active().tolist()),
            eigenvectors=tuple(modes.eigenvectors.tolist()) if self.settings.store_eigenvectors else None,
        )

    def _symmetry(
        self, atoms: Atoms, electronic: FloatArray | None, ionic: FloatArray | None, flags: _Flags
    ) -> tuple[symmetry.SpaceGroup | None, tuple[FloatArray | None, FloatArray | None]]:
        """Return the space group, and the tensors symmetrized and in IEEE orientation."""
        crystal = (atoms.cell[:], atoms.positions, atoms.numbers)
        try:
            group = symmetry.space_group(*crystal, symprec=self.settings.symprec)
            operations = symmetry.symmetry_operations(*crystal)
            rotation = symmetry.ieee_rotation(*crystal)
        except EvaluationError as error:
            flags.add("no_symmetry", f"{error} Tensors in IEEE orientation are therefore missing.")
            return None, (None, None)
        oriented: list[FloatArray | None] = []
        for label, tensor in (("ε∞", electronic), ("ε_ion", ionic)):
            if tensor is None:
                oriented.append(None)
                continue
            fitted = operations.symmetrize(0.5 * (tensor + tensor.T))
            flags.symmetry(label, tensor, float(np.abs(fitted - tensor).max()))
            oriented.append(symmetry.rotate_tensor(fitted, rotation))
        return group, (oriented[0], oriented[1])


class _Flags:
    """Collects what a reader must know, each with the number and the limit that it passed."""

    def __init__(self, settings: DielectricSettings) -> None:
        self.settings = settings
        self.items: list[Flag] = []

    def add(self, code: str, message: str, value: Any = None, threshold: Any = None) -> None:
        self.items.append(make_flag(code, message, value, threshold))

    def electronic(self, principal: FloatArray, epsilon: FloatArray) -> bool:
        limit = self.settings.min_chi_eigenvalue
        chi = float(principal[0]) - 1.0
        if chi < limit:
            self.add(
                "invalid_electronic",
                f"The smallest eigenvalue of ε∞ is {principal[0]:.4g}; at least {1 + limit:g} is physical. "
                "n is not given.",
                principal[0],
                1 + limit,
            )
            return False
        index = optics.refractive_index(epsilon)
        if index > self.settings.plausible_refractive_index:
            self.add(
                "implausible_refractive_index",
                f"n = {index:.3g} is above {self.settings.plausible_refractive_index:g}.",
                index,
                self.settings.plausible_refractive_index,
            )
        return True

    def ionic(self, epsilon: FloatArray) -> None:
        largest = float(np.abs(epsilon).max())
        if largest > self.settings.plausible_ionic:
            self.add(
                "large_ionic",
                f"ε_ion reaches {largest:.4g}, above {self.settings.plausible_ionic:g}: a soft mode dominates it.",
                largest,
                self.settings.plausible_ionic,
            )

    def sum_rule(self, residual: float) -> None:
        limit = self.settings.sum_rule_threshold
        if residual > limit:
            self.add("sum_rule", f"Σ Z* reaches {residual:.3g} e; at most {limit:g} e expected.", residual, limit)

    def forces(self, largest: float) -> None:
        limit = self.settings.force_threshold
        if largest > limit:
            self.add(
                "residual_forces",
                f"The largest force is {largest:.3g} eV/Å, above {limit:g} eV/Å: the structure is not relaxed.",
                largest,
                limit,
            )

    def training(self, context: Context) -> None:
        missing = [
            name for name in ("polarizability", "born_effective_charges") if name not in context.model.trained_labels
        ]
        if missing:
            self.add(
                "untrained_observable",
                f"The model was not trained on {' and '.join(missing)}; these numbers follow from other labels only.",
            )

    def stability(self, modes: phonons.Modes, threshold: float) -> IonicStatus:
        if len(modes.omega_squared) == 0:
            return "ok"
        lowest, softest = float(modes.omega_squared[0]), float(np.abs(modes.omega_squared).min())
        if lowest < -threshold:
            count = int((modes.omega_squared < -threshold).sum())
            kept = " The sum over all modes is given on request; it is a formal number." * self.settings.allow_unstable
            self.add(
                "unstable",
                f"{count} imaginary optical mode(s), the lowest at {modes.frequencies_inverse_cm[0]:.1f} cm⁻¹ "
                f"(ω² = {lowest:.3g} eV Å⁻² amu⁻¹, limit {-threshold:g}): ε_ion is undefined at a saddle point.{kept}",
                lowest,
                -threshold,
            )
            return "unstable"
        if softest <= threshold:
            self.add(
                "soft_mode",
                f"An optical mode has |ω²| = {softest:.2g} eV Å⁻² amu⁻¹, within numerical noise ({threshold:g}) of "
                "zero: ε_ion is not determined.",
                softest,
                threshold,
            )
            return "soft"
        return "ok"

    def symmetry(self, label: str, tensor: FloatArray, residual: float) -> None:
        limit = max(self.settings.symmetry_threshold, SYMMETRY_FRACTION * float(np.abs(tensor).max()))
        if residual > limit:
            self.add(
                "symmetry",
                f"{label} deviates from the point group by {residual:.3g}, more than {limit:.3g}.",
                residual,
                limit,
            )

    def gap(self, band_gap: float | None, elements: Sequence[str]) -> Literal["yes", "no", "unknown"]:
        if band_gap is not None:
            if band_gap > 0.0:
                return "yes"
            self.add("metal", "The band gap given is zero: a metal has no finite ε∞.", band_gap, 0.0)
            return "no"
        if composition.is_all_metal(elements):
            self.add(
                "all_metal_composition",
                "All elements are metals, and a potential cannot know the band gap: this is probably no insulator.",
            )
        return "unknown"


def _has_isotopes(atoms: Atoms) -> bool:
    """Return whether atoms were given other masses than the mean ones of their elements."""
    from ase.data import atomic_masses

    return atoms.has("masses") and not np.allclose(atoms.get_masses(), atomic_masses[atoms.numbers])


def _symmetry_record(response: Response) -> SymmetryRecord | None:
    """Return what the document says about the use of symmetry."""
    use = response.symmetry
    if use is None:
        return None
    return SymmetryRecord(
        space_group_number=use.space_group,
        n_operations=use.n_operations,
        n_field_directions=use.n_field_directions,
        n_displacements=use.n_displacements,
        max_shift=use.max_shift,
        strain=use.strain,
        force_change=use.force_change,
        primitive_atoms=tuple(use.representatives.tolist()),
        primitive_cell=use.cell,
    )


def _mean_diagonal(tensor: FloatArray | None) -> float | None:
    return None if tensor is None else float(np.trace(tensor)) / 3.0
