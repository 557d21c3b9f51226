"""The dielectric document: permittivities, refractive index, Born charges and infrared modes of one crystal.

Field names and orientation of ``total``, ``ionic``, ``electronic``, ``e_*`` and ``n`` are those of emmet's
``DielectricDoc``, so that predictions and Materials Project entries compare field by field.  Everything else is
in the Cartesian frame of the stored structure.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from fieldflows.schemas.common import (
    Document,
    Flag,
    FloatList,
    Matrix3,
    MatrixList,
    StructureField,
    Vector3,
    VectorList,
    quantity,
)
from fieldflows.schemas.provenance import Provenance, Relaxation

SCHEMA_VERSION = 2
"""Version 2 added `reference`; its keys no longer depend on whether the ionic part was asked for."""

ElectronicStatus = Literal["ok", "invalid"]
IonicStatus = Literal["ok", "not_requested", "no_energy_surface", "unstable", "unstable_summed", "soft", "invalid"]


class DielectricReference(Document):
    """What a database says of the same material, beside the prediction; never an input of it."""

    source: str = Field(description="The database.")
    material_id: str = Field(description="Identifier there.")
    version: str | None = Field(None, description="Version of the database.")
    energy_above_hull: float | None = quantity("eV/atom", "Energy above the convex hull.", None)
    n: float | None = quantity("1", "Refractive index.", None)
    e_electronic: float | None = quantity("1", "Mean of the diagonal of ε∞.", None)
    e_ionic: float | None = quantity("1", "Mean of the diagonal of ε_ion.", None)
    e_total: float | None = quantity("1", "Mean of the diagonal of ε_tot.", None)
    electronic: Matrix3 | None = quantity("1", "ε∞, symmetrized, IEEE orientation.", None)
    ionic: Matrix3 | None = quantity("1", "ε_ion, symmetrized, IEEE orientation.", None)
    total: Matrix3 | None = quantity("1", "ε_tot, symmetrized, IEEE orientation.", None)


class ModeSet(Document):
    """The 3n − 3 optical modes at Γ (transverse), softest first; translations are projected out."""

    frequencies_thz: FloatList = quantity("THz", "ω/2π; imaginary frequencies as negative numbers.")
    frequencies_inverse_cm: FloatList = quantity("cm⁻¹", "Wave numbers; imaginary ones as negative numbers.")
    mode_effective_charges: VectorList = quantity("e/√amu", "Σ_κj Z*_κ,ij e_m,κj/√M_κ for each mode.")
    oscillator_strengths: FloatList = quantity("e²/amu", "Squared norm of the mode effective charge.")
    oscillator_strengths_debye: FloatList = quantity("(D/Å)²/amu", "The same in the unit of infrared spectra.")
    ir_active: tuple[bool, ...] = Field(description="Whether the mode, with its degenerate partners, absorbs light.")
    eigenvectors: tuple[VectorList, ...] | None = quantity(
        "1", "Mass-weighted orthonormal eigenvectors (mode, atom, component); stored on request.", None
    )


class SymmetryRecord(Document):
    """How symmetry was used: the numbers are those of the symmetrized crystal, this far from the one given."""

    space_group_number: int = quantity("1", "International number of the group that was used.")
    n_operations: int = quantity("1", "Operations on the primitive cell.")
    n_field_directions: int = quantity("1", "Field directions that were differentiated, of 3.")
    n_displacements: int = quantity("1", "Displacements that were differentiated, of three per atom.")
    max_shift: float = quantity("Å", "Largest displacement of an atom by the symmetrization.")
    strain: float = quantity("1", "Largest component of the strain of the cell by the symmetrization.")
    force_change: float | None = quantity(
        "eV/Å", "Largest change of a force component by it; None where the change is too small to look.", None
    )
    primitive_atoms: tuple[int, ...] = Field(
        description="Indices of the atoms of `structure` that form the primitive cell; modes refer to these."
    )
    primitive_cell: Matrix3 = quantity("Å", "Lattice vectors of the primitive cell as rows, frame of `structure`.")


class DielectricDocument(Document):
    """Dielectric response of one crystal."""

    latest_version: ClassVar[int | None] = SCHEMA_VERSION

    schema_version: int = quantity("1", "Version of this schema.", SCHEMA_VERSION)
    task: Literal["dielectric"] = Field("dielectric", description="Name of the property.")
    key: str = Field(
        description="uuid5 of task, input structure, model, settings and schema version; the same with and without the "
        "ionic part, which is added to the document when it is asked for."
    )

    material_id: str | None = Field(None, description="Identifier of the material, if one was given.")
    source: str | None = Field(None, description="File or database entry that the structure came from.")
    formula_pretty: str = Field(description="Reduced formula.")
    chemsys: str = Field(description="Elements in alphabetical order, joined by dashes.")
    elements: tuple[str, ...] = Field(description="Elements in alphabetical order.")
    nelements: int = quantity("1", "Number of elements.")
    nsites: int = quantity("1", "Number of atoms in the cell.")
    volume: float = quantity("Å³", "Volume of the cell.")
    spacegroup_symbol: str | None = Field(None, description="International symbol.")
    spacegroup_number: int | None = quantity("1", "International number.", None)
    crystal_system: str | None = Field(None, description="Crystal system, in lower case.")
    point_group: str | None = Field(None, description="Point group, international symbol.")
    structure: StructureField = Field(description="The structure that was computed (pymatgen).")

    total: Matrix3 | None = quantity("1", "ε_tot = ε∞ + ε_ion, symmetrized, IEEE orientation.", None)
    ionic: Matrix3 | None = quantity("1", "ε_ion, symmetrized, IEEE orientation.", None)
    electronic: Matrix3 | None = quantity("1", "ε∞, symmetrized, IEEE orientation.", None)
    e_total: float | None = quantity("1", "Mean of the diagonal of ε_tot.", None)
    e_ionic: float | None = quantity("1", "Mean of the diagonal of ε_ion.", None)
    e_electronic: float | None = quantity("1", "Mean of the diagonal of ε∞.", None)
    n: float | None = quantity("1", "Refractive index √(tr ε∞/3).", None)

    epsilon_total: Matrix3 | None = quantity("1", "ε∞ + ε_ion in the frame of `structure`, as computed.", None)
    epsilon_ionic: Matrix3 | None = quantity("1", "ε_ion in the frame of `structure`, as computed.", None)
    epsilon_electronic: Matrix3 = quantity("1", "ε∞ = I + α/ε_vac in the frame of `structure`, as computed.")
    epsilon_electronic_principal: Vector3 = quantity("1", "Eigenvalues of ε∞, ascending.")
    refractive_index_principal: Vector3 | None = quantity("1", "Square roots of the eigenvalues of ε∞.", None)
    polarizability: Matrix3 = quantity("e/(V·Å)", "α = ∂P/∂𝓔 per volume.")
    polarization: Vector3 = quantity("e/Å²", "P of the model at zero field; one of the crystal's branches.")

    born_effective_charges: MatrixList = quantity(
        "e", "Z*[κ, i, j] = Ω ∂P_i/∂u_κj as computed (first index polarization, second displacement)."
    )
    born_charge_min: float = quantity("e", "Smallest tr Z*/3 of the atoms, sum rule enforced.")
    born_charge_max: float = quantity("e", "Largest tr Z*/3 of the atoms, sum rule enforced.")
    born_charge_sum_max: float = quantity("e", "Largest component of |Σ Z*|, before the sum rule is enforced.")

    modes: ModeSet | None = Field(
        None, description="Optical modes at Γ; of the primitive cell if `symmetry_used` is there, else of `structure`."
    )
    symmetry_used: SymmetryRecord | None = Field(
        None, description="How symmetry was used; None: the cell as given was evaluated in full."
    )
    max_force: float | None = quantity("eV/Å", "Largest force on an atom.", None)

    status_electronic: ElectronicStatus = Field(description="'ok', or 'invalid' if an eigenvalue of ε∞ is below 1.")
    status_ionic: IonicStatus = Field(
        description="'ok'; 'not_requested'; 'no_energy_surface' (the model cannot give it); 'unstable' (imaginary "
        "modes); 'unstable_summed' (imaginary modes, summed on request); 'soft' (a mode within numerical noise of "
        "zero); 'invalid'."
    )
    flags: tuple[Flag, ...] = Field((), description="What a reader must know before using the numbers.")
    insulating: Literal["yes", "no", "unknown"] = Field(
        "unknown", description="Whether the crystal has a band gap; a potential cannot know."
    )
    band_gap: float | None = quantity("eV", "Band gap as given with the input.", None)

    reference: DielectricReference | None = Field(
        None, description="What a database says of this material, side by side with the prediction."
    )
    relaxation: Relaxation | None = Field(None, description="How the structure was relaxed first, if it was.")
    provenance: Provenance = Field(description="Model, code, settings and time.")
