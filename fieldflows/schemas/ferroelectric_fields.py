"""From the physics of a path to the fields of its document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fieldflows.physics.branches import polarization_of
from fieldflows.physics.paths import DistortionPath
from fieldflows.physics.polarization import polarization_quantum, to_microcoulomb_per_cm2
from fieldflows.physics.polarization_ways import Ways
from fieldflows.physics.references import ProposedReference
from fieldflows.schemas.ferroelectric import EnergyStatus, ProposedRecord
from fieldflows.structures import as_structure

if TYPE_CHECKING:
    from ase import Atoms

    from fieldflows.structures import StructureLike

FloatArray = NDArray[np.float64]


def norm_of(polarization: FloatArray) -> float:
    """Return |P| in µC/cm², given e/Å²."""
    return float(np.linalg.norm(to_microcoulomb_per_cm2(polarization)))


def polarization_along(ways: Ways, frames: Sequence[Atoms], chosen: FloatArray) -> FloatArray:
    """Return P of each frame along a direction in µC/cm², the nonpolar end zero."""
    length = float(np.linalg.norm(chosen))
    unit = chosen / length if length > 1e-12 else np.zeros(3)
    values = [polarization_of(f, frame.cell[:]) @ unit for f, frame in
              zip(ways.branch.changes, frames, strict=True)]  # fmt: skip
    return to_microcoulomb_per_cm2(values)


def crystal_facts(structure: StructureLike) -> dict[str, Any]:
    """Return what a document says of a crystal itself, which comes without site properties."""
    bare = as_structure(structure).copy()
    bare.remove_oxidation_states()
    for name in list(bare.site_properties):
        bare.remove_site_property(name)
    return {
        "formula_pretty": bare.composition.reduced_formula,
        "chemsys": bare.composition.chemical_system,
        "elements": tuple(sorted(element.symbol for element in bare.composition)),
        "nelements": len(bare.composition),
        "nsites": len(bare),
        "volume": bare.volume,
        "structure": bare,
    }


def path_facts(path: DistortionPath, proposals: Sequence[ProposedReference], given: bool) -> dict[str, Any]:
    """Return what a document says of a path and of its nonpolar end."""
    relation, distortion = path.relation, path.distortion
    return {
        "spacegroup_symbol": relation.polar.symbol,
        "spacegroup_number": relation.polar.number,
        "point_group": relation.polar.point_group,
        "nonpolar": path.nonpolar,
        "nonpolar_spacegroup_symbol": relation.nonpolar.symbol,
        "nonpolar_spacegroup_number": relation.nonpolar.number,
        "subgroup_index": relation.index,
        "nonpolar_origin": "given" if given else "proposed by symmetry",
        "proposals": tuple(_record(item) for item in proposals),
        "largest_displacement": distortion.largest,
        "rms_displacement": distortion.root_mean_square,
        "largest_strain": distortion.largest_strain,
        "n_frames": len(path),
        "path_coordinate": np.linspace(0.0, 1.0, len(path)),
    }


def _record(item: ProposedReference) -> ProposedRecord:
    return ProposedRecord(
        spacegroup_symbol=item.group.symbol,
        spacegroup_number=item.group.number,
        route=item.route,
        largest_displacement=item.distortion.largest,
        largest_strain=item.distortion.largest_strain,
        cost=item.cost,
    )


def way_facts(ways: Ways, frames: Sequence[Atoms]) -> dict[str, Any]:
    """Return P_s in all ways, in µC/cm², and the branch."""
    facts: dict[str, Any] = {}
    for name, value in (("charges", ways.charges), ("branch", ways.on_branch), ("difference", ways.difference)):
        facts[f"ps_{name}"] = to_microcoulomb_per_cm2(value)
        facts[f"ps_{name}_norm"] = norm_of(value)
    if ways.integral is not None and ways.strain is not None:
        facts["ps_integral"] = to_microcoulomb_per_cm2(ways.integral)
        facts["ps_strain"] = to_microcoulomb_per_cm2(ways.strain)
        facts["integral_error"] = norm_of(ways.integral - ways.difference)
    norms = [norm_of(value) for value in (ways.charges, ways.on_branch, *ways.by_end)]
    return facts | {
        "charges_spread": float(to_microcoulomb_per_cm2(ways.spread)),
        "band_low": min(norms),
        "band_high": max(norms),
        "quanta": to_microcoulomb_per_cm2(polarization_quantum(frames[-1].cell[:])),
        "branch": ways.added,
        "branch_margin": ways.margin,
        "fractions": ways.branch.changes,
        "max_step": ways.branch.max_step,
        "max_second_difference": ways.branch.max_second_difference,
    }


def energy_facts(energies: FloatArray | None, asked: bool) -> dict[str, Any]:
    """Return the double well, from energies in eV per formula unit with the nonpolar end zero."""
    if energies is None:
        status: EnergyStatus = "not_available" if asked else "not_requested"
        return {"status_energy": status}
    return {
        "energies": energies,
        "energy_difference": float(energies[-1]),
        "barrier": float(energies.max() - energies[-1]),
        "status_energy": "ok",
    }
