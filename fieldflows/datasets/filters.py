"""The cleaning recipe: what is rejected, what is only flagged, and the acoustic sum rule that is then enforced.

Every finding carries its code, the number found, and the threshold that it passed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fieldflows.datasets.frame import LABEL_UNITS, LabeledFrame
from fieldflows.errors import EvaluationError
from fieldflows.physics.born_charges import site_symmetry_violation
from fieldflows.physics.polarization import fold_polarization
from fieldflows.physics.symmetry import SymmetryOperations, symmetry_operations
from fieldflows.schemas.dataset import Finding
from fieldflows.structures import closest_pair
from fieldflows.units import E_PER_A2_TO_UC_PER_CM2, EPSILON_VACUUM

FloatArray = NDArray[np.float64]


ABSURD = 1e12
"""No label and no coordinate is that large in any unit; squares of such numbers may overflow."""


def _threshold(default: float, unit: str, description: str, **bounds: Any) -> Any:
    return Field(default=default, description=description, json_schema_extra={"unit": unit}, **bounds)


class CleaningConfig(BaseModel):
    """Thresholds of the cleaning recipe; ``reject_*`` throws a frame out, ``flag_*`` only marks it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reject_distance: float = _threshold(0.5, "Å", "Reject when two atoms are closer.", ge=0)
    reject_alpha_asymmetry: float = _threshold(0.01, "1", "Reject when max|α − αᵀ|/max|α| is larger.", gt=0)
    reject_chi: float = _threshold(0.02, "1", "Reject when an eigenvalue of ε∞ − 1 is not larger.")
    reject_epsilon_ionic: float = _threshold(-0.05, "1", "Reject when an eigenvalue of ε_ion is smaller.")
    reject_sum_rule: float = _threshold(0.5, "e", "Reject when max|Σ Z*| is larger.", gt=0)
    reject_sum_rule_per_atom: float = _threshold(0.05, "e", "Reject when max|Σ Z*|/n is larger.", gt=0)
    reject_charge_symmetry: float = _threshold(
        1.0, "e", "Reject when Z* of symmetry-equivalent atoms, rotated, differ by more.", gt=0
    )
    flag_sum_rule: float = _threshold(0.1, "e", "Flag when max|Σ Z*| is larger.", gt=0)
    flag_sum_rule_per_atom: float = _threshold(0.01, "e", "Flag when max|Σ Z*|/n is larger.", gt=0)
    flag_charge_symmetry: float = _threshold(0.1, "e", "Flag when Z* of equivalent atoms differ by more.", gt=0)
    flag_epsilon_symmetry: float = _threshold(0.05, "1", "Flag when ε∞ is off its point group by more.", gt=0)
    flag_epsilon_symmetry_relative: float = _threshold(
        0.02, "1", "Flag only when it is also off by more than this fraction of max|ε∞|.", ge=0
    )
    flag_refractive_index: float = _threshold(6.0, "1", "Flag when n is larger.", gt=0)
    flag_epsilon_ionic: float = _threshold(100.0, "1", "Flag when an eigenvalue of ε_ion is larger.", gt=0)
    flag_charge: float = _threshold(10.0, "e", "Flag when a component |Z*| is larger.", gt=0)
    flag_polarization_symmetry: float = _threshold(
        1.0, "µC/cm²", "Flag when P is off its point group (modulo a quantum) by more.", gt=0
    )
    flag_force: float = _threshold(100.0, "eV/Å", "Flag when a component |F| is larger.", gt=0)
    flag_stress: float = _threshold(0.5, "eV/Å³", "Flag when a component |σ| is larger (80 GPa).", gt=0)
    symprec: float = _threshold(0.01, "Å", "Tolerance of the symmetry search.", gt=0)
    enforce_sum_rule: bool = Field(
        default=True, description="Subtract the mean of Z* over the atoms and store it as the residual."
    )


def _finding(code: str, value: float, threshold: float, unit: str, message: str) -> Finding:
    # Values that are not finite have no JSON form: they are named in the message instead.
    return Finding(code=code, value=value if np.isfinite(value) else None, threshold=threshold, unit=unit,
                   message=message)  # fmt: skip


def clean(frame: LabeledFrame, config: CleaningConfig) -> tuple[LabeledFrame, list[Finding], list[Finding]]:
    """Return the frame with the sum rule enforced, the reasons to reject it, and the flags.

    A frame with any reason to reject comes back unchanged.  α and ε_ion are symmetrized; the mean of Z* over the
    atoms, (3, 3) in e, is kept in ``frame.extra["sum_rule_residual"]``.

    Args:
        frame: Labels in internal units.
        config: Thresholds.
    """
    atoms = frame.atoms
    values = frame.labels | {"structure": np.vstack([atoms.positions, atoms.cell[:]])}
    bad = [name for name, value in values.items() if not np.abs(value).max(initial=0.0) < ABSURD]
    if bad:
        message = f"not finite, or above {ABSURD:g}: {', '.join(bad)}"
        return frame, [_finding("not_finite", np.nan, ABSURD, "", message)], []
    volume = abs(float(np.linalg.det(atoms.cell[:])))
    if volume < 1e-3:
        return frame, [_finding("volume", volume, 1e-3, "Å³", "the cell has no volume")], []
    if not atoms.pbc.all():
        message = f"periodic directions are {atoms.pbc.tolist()}; response per volume needs three"
        return frame, [_finding("not_periodic", float(atoms.pbc.sum()), 3, "directions", message)], []
    rejects: list[Finding] = []
    flags: list[Finding] = []
    distance, _ = closest_pair(atoms)
    if distance < config.reject_distance:
        message = f"two atoms are {distance:.3f} Å apart"
        rejects.append(_finding("distance", distance, config.reject_distance, "Å", message))
        return frame, rejects, flags
    labels = dict(frame.labels)
    extra = dict(frame.extra)
    alpha, charges = labels.get("polarizability"), labels.get("born_effective_charges")
    symmetry = _operations(frame, config.symprec, flags)
    if alpha is not None:
        _check_alpha(alpha, config, rejects, flags)
        violation = tensor_violation(alpha, symmetry) / EPSILON_VACUUM
        scale = 1 + float(np.abs(np.linalg.eigvalsh(_symmetric(alpha))).max()) / EPSILON_VACUUM
        threshold = max(config.flag_epsilon_symmetry, config.flag_epsilon_symmetry_relative * scale)
        if violation > threshold:
            message = f"ε∞ is off its point group by {violation:.3f}"
            flags.append(_finding("epsilon_symmetry", violation, threshold, "1", message))
        labels["polarizability"] = _symmetric(alpha)
    if "epsilon_ionic" in labels:
        labels["epsilon_ionic"] = _symmetric(labels["epsilon_ionic"])
        _check_ionic(labels["epsilon_ionic"], config, rejects, flags)
    if charges is not None:
        _check_sum_rule(charges, config, rejects, flags)
        violation = site_symmetry_violation(charges, symmetry)
        _grade("charge_symmetry", violation, config.reject_charge_symmetry, config.flag_charge_symmetry, "e",
               f"Z* of equivalent atoms differ by {violation:.3f} e", rejects, flags)  # fmt: skip
        largest = float(np.abs(charges).max())
        if largest > config.flag_charge:
            message = f"a component of Z* is {largest:.2f} e"
            flags.append(_finding("large_charge", largest, config.flag_charge, "e", message))
        if config.enforce_sum_rule:
            residual = charges.mean(axis=0)
            labels["born_effective_charges"] = charges - residual
            extra["sum_rule_residual"] = residual
    if "polarization" in labels:
        violation = polarization_violation(labels["polarization"], np.array(atoms.cell[:]), symmetry)
        if violation > config.flag_polarization_symmetry:
            message = f"P is off its point group by {violation:.2f} µC/cm²"
            flags.append(
                _finding("polarization_symmetry", violation, config.flag_polarization_symmetry, "µC/cm²", message)
            )
    for name, code, threshold in (("forces", "force", config.flag_force), ("stress", "stress", config.flag_stress)):
        largest = float(np.abs(labels[name]).max()) if name in labels else 0.0
        if largest > threshold:
            message = f"a component of the {name} is {largest:.3g}: is it in the declared unit?"
            flags.append(_finding(f"large_{code}", largest, threshold, LABEL_UNITS[name], message))
    if rejects:
        return frame, rejects, flags
    return frame.with_(labels=labels, extra=extra, flags=tuple(f.code for f in flags)), rejects, flags


def _operations(frame: LabeledFrame, symprec: float, flags: list[Finding]) -> SymmetryOperations:
    """Return the operations of a crystal; the identity alone, and a flag, if spglib finds none."""
    atoms = frame.atoms
    try:
        return symmetry_operations(atoms.cell[:], atoms.positions, atoms.numbers, symprec)
    except EvaluationError as error:
        flags.append(_finding("no_symmetry", np.nan, symprec, "Å", error.message))
        return SymmetryOperations(np.eye(3)[None], np.arange(len(atoms))[None])


def tensor_violation(tensor: FloatArray, operations: SymmetryOperations) -> float:
    """Return max |T − R T Rᵀ| over all operations and components, in the unit of the (3, 3) tensor."""
    images = np.einsum("sia,ab,sjb->sij", operations.rotations, tensor, operations.rotations)
    return float(np.abs(images - tensor).max())


def polarization_violation(polarization: FloatArray, cell: FloatArray, operations: SymmetryOperations) -> float:
    """Return the largest component in µC/cm² of R P − P, folded to the nearest branch, over all operations.

    A polarization in lattice components that is taken for a Cartesian one shows up here.

    Args:
        polarization: (3,) in e/Å².
        cell: (3, 3) lattice vectors as rows, in Å.
        operations: Of the same crystal.
    """
    difference = operations.rotations @ polarization - polarization
    return float(np.abs(fold_polarization(difference, cell)).max()) * E_PER_A2_TO_UC_PER_CM2


def _symmetric(tensor: FloatArray) -> FloatArray:
    return 0.5 * (tensor + tensor.T)


def _grade(
    code: str,
    value: float,
    reject: float,
    flag: float,
    unit: str,
    message: str,
    rejects: list[Finding],
    flags: list[Finding],
) -> None:
    """Reject above one threshold, else flag above the other."""
    if value > reject:
        rejects.append(_finding(code, value, reject, unit, message))
    elif value > flag:
        flags.append(_finding(code, value, flag, unit, message))


def _check_alpha(alpha: FloatArray, config: CleaningConfig, rejects: list[Finding], flags: list[Finding]) -> None:
    scale = float(np.abs(alpha).max())
    asymmetry = float(np.abs(alpha - alpha.T).max()) / scale if scale else 0.0
    if asymmetry > config.reject_alpha_asymmetry:
        message = f"α is asymmetric by {100 * asymmetry:.2g} %"
        rejects.append(_finding("alpha_asymmetry", asymmetry, config.reject_alpha_asymmetry, "1", message))
    chi = np.linalg.eigvalsh(_symmetric(alpha)) / EPSILON_VACUUM
    if chi[0] <= config.reject_chi:
        message = f"an eigenvalue of ε∞ − 1 is {chi[0]:.3f}"
        rejects.append(_finding("chi", float(chi[0]), config.reject_chi, "1", message))
    index = float(np.sqrt(max(1 + chi.mean(), 0)))
    if index > config.flag_refractive_index:
        flags.append(_finding("large_n", index, config.flag_refractive_index, "1", f"n is {index:.2f}"))


def _check_ionic(ionic: FloatArray, config: CleaningConfig, rejects: list[Finding], flags: list[Finding]) -> None:
    values = np.linalg.eigvalsh(ionic)
    low, high = float(values[0]), float(values[-1])
    if low < config.reject_epsilon_ionic:
        message = f"an eigenvalue of ε_ion is {low:.3f}"
        rejects.append(_finding("epsilon_ionic", low, config.reject_epsilon_ionic, "1", message))
    if high > config.flag_epsilon_ionic:
        message = f"an eigenvalue of ε_ion is {high:.1f}"
        flags.append(_finding("large_epsilon_ionic", high, config.flag_epsilon_ionic, "1", message))


def _check_sum_rule(charges: FloatArray, config: CleaningConfig, rejects: list[Finding], flags: list[Finding]) -> None:
    total = float(np.abs(charges.sum(axis=0)).max())
    per_atom = total / len(charges)
    message = f"max|Σ Z*| is {total:.3f} e, {per_atom:.4f} e per atom"
    if total > config.reject_sum_rule:
        rejects.append(_finding("sum_rule", total, config.reject_sum_rule, "e", message))
    elif per_atom > config.reject_sum_rule_per_atom:
        rejects.append(_finding("sum_rule", per_atom, config.reject_sum_rule_per_atom, "e per atom", message))
    elif total > config.flag_sum_rule:
        flags.append(_finding("sum_rule", total, config.flag_sum_rule, "e", message))
    elif per_atom > config.flag_sum_rule_per_atom:
        flags.append(_finding("sum_rule", per_atom, config.flag_sum_rule_per_atom, "e per atom", message))
