"""Documents of the Materials Project as numbers: tensors, structures and Born charges, with the field that is wrong.

Nothing is decoded into objects.  Fields and their meaning: ``emmet.core.polar.DielectricDoc``,
``emmet.core.tasks.CoreTaskDoc`` and ``emmet.core.phonon.PhononBSDOSTask``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from fieldflows.datasets.extxyz import RawFrame
from fieldflows.errors import EvaluationError
from fieldflows.physics.born_charges import site_symmetry_violation
from fieldflows.physics.symmetry import SYMPREC, SymmetryOperations, symmetry_operations

FloatArray = NDArray[np.float64]

DIELECTRIC_TASKS = ("dfpt", "dielectric")
"""Words of which the type of a task that computes dielectric tensors holds one."""


class FieldProblem(ValueError):
    """A field of a document is missing or malformed.

    Args:
        field: Its name.
        reason: What is wrong with it.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"field {field!r} {reason}")
        self.field, self.reason = field, reason


def read_tensor(document: Mapping[str, Any], field: str) -> FloatArray:
    """Return a (3, 3) tensor.

    Raises:
        FieldProblem: If the field is missing, or no 3x3 tensor of finite numbers.
    """
    tensor = _numbers(document, field)
    if tensor.shape != (3, 3):
        raise FieldProblem(field, f"is no 3x3 tensor: its shape is {tensor.shape}")
    return tensor


def read_number(document: Mapping[str, Any], field: str) -> float | None:
    """Return a number, or None if the field is missing or empty.

    Raises:
        FieldProblem: If it is no finite number.
    """
    if document.get(field) is None:
        return None
    value = _numbers(document, field)
    if value.shape != ():
        raise FieldProblem(field, "is no number")
    return float(value)


def _numbers(document: Mapping[str, Any], field: str) -> FloatArray:
    if field not in document:
        raise FieldProblem(field, "is missing")
    if document[field] is None:
        raise FieldProblem(field, "is empty")
    try:
        values = np.asarray(document[field], dtype=float)
    except (TypeError, ValueError):
        raise FieldProblem(field, f"holds no numbers: {str(document[field])[:60]!r}") from None
    if not np.isfinite(values).all():
        raise FieldProblem(field, "is not finite")
    return values


def read_structure(document: Mapping[str, Any], index: int, field: str = "structure") -> RawFrame:
    """Return a serialized pymatgen structure as a frame, from its numbers alone.

    Raises:
        FieldProblem: If it is missing or malformed, or a site is partially occupied or holds no element.
    """
    data = document.get(field)
    if not data:
        raise FieldProblem(field, "is missing")
    try:
        cell = np.asarray(data["lattice"]["matrix"], dtype=float).reshape(3, 3)
        numbers, scaled = [], []
        for site in data["sites"]:
            (species,) = site["species"]
            symbol = str(species["element"])
            if float(species.get("occu", 1)) != 1 or symbol not in atomic_numbers:
                raise FieldProblem(field, f"has the site {species!r}, which is no fully occupied element")
            numbers.append(atomic_numbers[symbol])
            scaled.append(site["abc"])
        fractional = np.asarray(scaled, dtype=float).reshape(-1, 3)
    except FieldProblem:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise FieldProblem(field, f"cannot be read ({type(error).__name__}: {error})") from None
    if not numbers or len(fractional) != len(numbers):
        raise FieldProblem(field, "has no sites")
    if not (np.isfinite(cell).all() and np.isfinite(fractional).all()) or abs(np.linalg.det(cell)) < 1e-3:
        raise FieldProblem(field, "has a cell without volume, or numbers that are not finite")
    return RawFrame(np.array(numbers, dtype=np.int64), fractional @ cell, cell, np.ones(3, dtype=bool), index=index)


def symmetry_of(raw: RawFrame, symprec: float) -> SymmetryOperations:
    """Return the operations of a frame.

    Args:
        raw: The frame.
        symprec: Tolerance in Å: 0.1 where pymatgen's ``Tensor.fit_to_structure`` is followed, 0.01 for Born charges.

    Raises:
        EvaluationError: If no space group is found.
    """
    return symmetry_operations(raw.cell, raw.positions, raw.numbers, symprec)


def origin_task(document: Mapping[str, Any]) -> str | None:
    """Return the id of the task that a dielectric document comes from, or None."""
    origins = document.get("origins")
    if not isinstance(origins, Sequence) or isinstance(origins, str):
        return None
    items = [item for item in origins if isinstance(item, Mapping) and item.get("task_id")]
    named = [item for item in items if item.get("name") == "dielectric"]
    return str((named or items)[0]["task_id"]) if items else None


def task_type(task: Mapping[str, Any]) -> str:
    """Return the type of a task; empty if the document does not say."""
    return str(task.get("task_type") or task.get("calc_type") or "")


def is_dielectric_task(task: Mapping[str, Any]) -> bool:
    """Return whether a task computed dielectric tensors, as far as its document says."""
    kind = task_type(task).lower()
    return not kind or any(word in kind for word in DIELECTRIC_TASKS)


def task_born_charges(task: Mapping[str, Any], n_atoms: int) -> FloatArray | None:
    """Return the Born charges of a task, (n, 3, 3) in e, or None if it has none.

    They are those of VASP's OUTCAR: one tensor per site of the task's structure and in its frame, first index
    polarization (field), second displacement.  Places: ``output.dielectric_properties.born_charges``, and
    ``calcs_reversed[0].output.outcar.born`` of older documents.

    Raises:
        FieldProblem: If they are malformed.
    """
    for path in (
        ("output", "dielectric_properties", "born_charges"),
        ("calcs_reversed", 0, "output", "outcar", "born"),
    ):
        values = _follow(task, path)
        if values is not None:
            return _charges(values, ".".join(map(str, path)), n_atoms)
    return None


def task_permittivity(task: Mapping[str, Any]) -> FloatArray | None:
    """Return ε∞ of a task as computed, (3, 3) in the frame of its structure, or None if it has none.

    Raises:
        FieldProblem: If it is malformed.
    """
    for path in (("output", "epsilon_static"), ("calcs_reversed", 0, "output", "epsilon_static")):
        values = _follow(task, path)
        if values is not None:
            return read_tensor({"epsilon_static": values}, "epsilon_static")
    return None


def phonon_born_charges(document: Mapping[str, Any], raw: RawFrame) -> FloatArray | None:
    """Return the Born charges of a phonon document, (n, 3, 3) in e, or None if it has none.

    The field may hold one tensor per site, or one per set of equivalent sites (phonopy's order: by the first site of
    each set); those are brought to all sites as Z*_s(κ) = R_s Z*_κ R_sᵀ.

    Args:
        document: Of ``materials.phonon``.
        raw: Its structure.

    Raises:
        FieldProblem: If they are malformed, or of another number of sites.
    """
    if document.get("born") is None:
        return None
    count = len(raw)
    values = _charges(document["born"], "born", None)
    if len(values) == count:
        return values
    try:
        operations = symmetry_of(raw, SYMPREC)
    except EvaluationError as error:
        raise FieldProblem("born", f"has {len(values)} tensors for {count} sites ({error.message})") from None
    first = operations.permutations.min(axis=0)  # the first site of each one's set
    sites = np.unique(first)
    if len(sites) != len(values):
        raise FieldProblem("born", f"has {len(values)} tensors for {count} sites, {len(sites)} of them inequivalent")
    result = np.zeros((count, 3, 3))
    for site, tensor in zip(sites, values, strict=True):
        for atom in np.flatnonzero(first == site):
            moving = operations.permutations[:, site] == atom
            rotations = operations.rotations[moving]
            result[atom] = np.einsum("sia,ab,sjb->ij", rotations, tensor, rotations) / len(rotations)
    return result


def charges_look_rotated(charges: FloatArray, operations: SymmetryOperations, ieee: FloatArray, limit: float) -> bool:
    """Return whether charges break the symmetry of their crystal as given, but obey it in IEEE orientation.

    Each tensor is a tensor of its site, so that one in another frame shows up here.  An exchange of the two indices
    does not: R Zᵀ Rᵀ = (R Z Rᵀ)ᵀ.

    Args:
        charges: (n, 3, 3) in e.
        operations: Of the crystal, in its own frame.
        ieee: Rotation to the IEEE orientation.
        limit: Largest violation in e that counts as obeying.
    """
    if site_symmetry_violation(charges, operations) <= limit:
        return False
    return site_symmetry_violation(ieee.T @ charges @ ieee, operations) <= limit


def _follow(document: Any, path: Sequence[str | int]) -> Any | None:
    for step in path:
        if isinstance(step, int):
            document = document[step] if isinstance(document, list) and len(document) > step else None
        else:
            document = document.get(step) if isinstance(document, Mapping) else None
    return document


def _charges(values: Any, field: str, n_atoms: int | None) -> FloatArray:
    charges = _numbers({field: values}, field)
    if charges.ndim != 3 or charges.shape[1:] != (3, 3):
        raise FieldProblem(field, f"holds no 3x3 tensors: its shape is {charges.shape}")
    if n_atoms is not None and len(charges) != n_atoms:
        raise FieldProblem(field, f"has {len(charges)} tensors for {n_atoms} sites")
    return charges
