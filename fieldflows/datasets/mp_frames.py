"""From documents of the Materials Project to frames: the structure that a tensor belongs to, its frame, its charges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldflows.datasets.extxyz import RawFrame
from fieldflows.datasets.frame import reduced_formula
from fieldflows.datasets.materials_project import identity, plain_id
from fieldflows.datasets.mp_documents import (
    FieldProblem,
    charges_look_rotated,
    is_dielectric_task,
    origin_task,
    phonon_born_charges,
    read_number,
    read_structure,
    read_tensor,
    symmetry_of,
    task_born_charges,
    task_permittivity,
    task_type,
)
from fieldflows.errors import DataError, EvaluationError
from fieldflows.physics.born_charges import site_symmetry_violation
from fieldflows.physics.symmetry import FIT_SYMPREC, SYMPREC, SymmetryOperations, ieee_rotation, rotate_tensor
from fieldflows.schemas.dataset import Finding

FloatArray = NDArray[np.float64]

VOLUME_TOLERANCE = 1e-3
"""Largest relative difference between the document's volume and the structure's: above it they are not of one task."""
CONSISTENCY_TOLERANCE = 1e-3
"""Largest relative difference between the numbers of one document that follow from each other."""
TASK_TOLERANCE = 0.02
"""Largest difference between ε∞ of a document and of its task, relative to the largest component."""
CHARGE_TOLERANCE = 0.1
"""Violation of the site symmetry in e up to which Born charges count as obeying it."""

REQUIRED = ("material_id", "electronic", "ionic")
"""Fields without which no dielectric document can be used."""


def problem(code: str, message: str, value: float | None = None, threshold: float | None = None) -> Finding:
    """Return a finding about a document."""
    return Finding(code=code, value=value, threshold=threshold, unit="" if value is None else "1", message=message)


def check_schema(documents: list[dict[str, Any]], required: Iterable[str], route: str) -> None:
    """Raise if a field is missing from all documents of a route: then the service changed, not a document.

    Raises:
        DataError: Names field and document.
    """
    for field in required:
        if documents and not any(item.get(field) is not None for item in documents):
            first = documents[0]
            name = first.get("material_id") or first.get("task_id") or first.get("formula_pretty") or "number 0"
            raise DataError(
                f"Field {field!r} is missing from all {len(documents)} documents of materials/{route}, such as {name}; "
                f"it has {', '.join(sorted(first)[:20]) or 'nothing'}.",
                "The schema of the service changed: update mp-api and fieldflows.",
            )


class FrameReader:
    """Makes frames of documents.

    Args:
        summaries: Documents of ``materials.summary``.
        tasks: Documents of ``materials.tasks``.
        deprecated: Whether deprecated documents are taken.

    Attributes:
        flags: What is noteworthy about frames that are taken, by their number.
        n_charges: Frames with Born charges.
    """

    def __init__(
        self, summaries: Iterable[Mapping[str, Any]], tasks: Iterable[Mapping[str, Any]], deprecated: bool
    ) -> None:
        self.summaries = _by_identity(summaries, "material_id")
        self.tasks = {number: item for (_, number), item in _by_identity(tasks, "task_id").items()}
        self.deprecated = deprecated
        self.flags: dict[int, list[Finding]] = {}
        self.n_charges = 0

    def dielectric(self, index: int, document: Mapping[str, Any]) -> RawFrame | Finding:
        """Return a dielectric document as a frame, or the reason why it cannot be one.

        ``electronic`` and ``ionic`` are in the frame of the structure; ``born`` is there if the task has charges.
        """
        if document.get("deprecated") and not self.deprecated:
            reasons = ", ".join(map(str, document.get("deprecation_reasons") or ()))
            return problem("deprecated", "the document is marked deprecated" + (f": {reasons}" if reasons else ""))
        try:
            key = identity(document.get("material_id"))
        except ValueError:
            return problem("malformed", f"field 'material_id' is no id: {document.get('material_id')!r}")
        task = self._task(document)
        if task is not None and not is_dielectric_task(task):
            return problem("wrong_task", f"its task is a {task_type(task)!r}, which computes no dielectric tensor")
        try:
            tensors = {field: read_tensor(document, field) for field in ("electronic", "ionic")}
            stated = read_number(document, "volume")
            _check_consistency(document, tensors)
            raw = self._structure(index, stated, self.summaries.get(key), task)
            if isinstance(raw, RawFrame):
                _check_formula(document, raw)
        except FieldProblem as error:
            return problem("malformed", str(error))
        if isinstance(raw, Finding):
            return raw
        raw.info["material_id"] = plain_id(document["material_id"])
        try:
            operations = symmetry_of(raw, FIT_SYMPREC)
            rotation = ieee_rotation(raw.cell, raw.positions, raw.numbers)
        except EvaluationError as error:
            return problem("no_symmetry", error.message)
        for field, tensor in tensors.items():
            raw.info[field] = rotate_tensor(tensor, rotation.T).ravel()
        electronic = raw.info["electronic"].reshape(3, 3)
        raw.info["ieee_residual"] = float(np.abs(electronic - operations.symmetrize(electronic)).max())
        wrong = None if task is None else self._compare_with_task(raw, electronic, task, operations, rotation)
        return raw if wrong is None else wrong

    def phonon(self, index: int, document: Mapping[str, Any]) -> RawFrame | Finding | None:
        """Return a phonon document as a frame of its own structure, a reason against it, or None without charges.

        ε∞ is ``epsilon_electronic``, or ``epsilon_static`` where that is all there is.
        """
        if document.get("born") is None:
            return None
        try:
            raw = read_structure(document, index)
            charges = phonon_born_charges(document, raw)
            field = next((f for f in ("epsilon_electronic", "epsilon_static") if document.get(f) is not None), None)
            if field is not None:
                raw.info["electronic"] = read_tensor(document, field).ravel()
        except FieldProblem as error:
            return problem("malformed", f"phonon document {document.get('identifier')}: {error}")
        raw.info |= {"task_id": _text(document.get("identifier")), "structure_from": "phonon"}
        try:
            self._add_charges(raw, charges, ieee_rotation(raw.cell, raw.positions, raw.numbers))
        except EvaluationError as error:
            return problem("no_symmetry", error.message)
        return raw

    def _task(self, document: Mapping[str, Any]) -> Mapping[str, Any] | None:
        name = origin_task(document)
        try:
            return None if name is None else self.tasks.get(identity(name)[1])
        except ValueError:
            return None

    def _structure(
        self, index: int, stated: float | None, summary: Mapping[str, Any] | None, task: Mapping[str, Any] | None
    ) -> RawFrame | Finding:
        """Return the structure of the task, else of the summary, if its volume is the document's.

        Raises:
            FieldProblem: If the last one that is there cannot be read.
        """
        reason: Finding | FieldProblem = problem("no_structure", "no structure came with it")
        for name, holder in (("task", task), ("summary", summary)):
            if holder is None or not holder.get("structure"):
                continue
            try:
                raw = read_structure(holder, index)
            except FieldProblem as error:
                reason = error
                continue
            volume = abs(float(np.linalg.det(raw.cell)))
            difference = abs(volume / stated - 1) if stated else 0.0
            if difference <= VOLUME_TOLERANCE:
                raw.info["structure_from"] = name
                if task is not None:
                    raw.info["task_id"] = _text(task.get("task_id"))
                return raw
            message = f"the structure has {volume:.3f} Å³, the document {stated:.3f}: not of one task"
            reason = problem("other_structure", message, difference, VOLUME_TOLERANCE)
        if isinstance(reason, FieldProblem):
            raise reason
        return reason

    def _compare_with_task(
        self,
        raw: RawFrame,
        electronic: FloatArray,
        task: Mapping[str, Any],
        operations: SymmetryOperations,
        rotation: FloatArray,
    ) -> Finding | None:
        """Check ε∞ against the task's, store what symmetrizing removed, and take its charges."""
        if raw.info["structure_from"] != "task":
            return None
        try:
            computed = task_permittivity(task)
            charges = task_born_charges(task, len(raw))
        except FieldProblem as error:
            self.flags.setdefault(raw.index, []).append(problem("task_field", f"task {task.get('task_id')}: {error}"))
            return None
        if computed is not None:
            symmetrized = operations.symmetrize(computed)
            raw.info["symmetrization_residual"] = float(np.abs(computed - symmetrized).max())
            difference = float(np.abs(symmetrized - electronic).max() / np.abs(electronic).max())
            if difference > TASK_TOLERANCE:
                message = f"ε∞ of task {task.get('task_id')} is another one: it differs by {100 * difference:.2g} %"
                return problem("wrong_task", message, difference, TASK_TOLERANCE)
        try:
            self._add_charges(raw, charges, rotation)
        except EvaluationError as error:
            return problem("no_symmetry", error.message)
        return None

    def _add_charges(self, raw: RawFrame, charges: FloatArray | None, rotation: FloatArray) -> None:
        """Give a frame its charges, unless they have the symmetry of another orientation.

        Raises:
            EvaluationError: If no space group is found.
        """
        if charges is None:
            return
        operations = symmetry_of(raw, SYMPREC)
        violation = site_symmetry_violation(charges, operations)
        if charges_look_rotated(charges, operations, rotation, CHARGE_TOLERANCE):
            message = f"Z* obey the site symmetry in IEEE orientation only ({violation:.2g} e off as given): left out"
            self.flags.setdefault(raw.index, []).append(
                Finding(code="charges_rotated", value=violation, threshold=CHARGE_TOLERANCE, unit="e", message=message)
            )
            return
        raw.arrays["born"] = charges.reshape(len(raw), 9)
        raw.info["charge_symmetry_residual"] = violation
        self.n_charges += 1


def _check_consistency(document: Mapping[str, Any], tensors: Mapping[str, FloatArray]) -> None:
    """Raise if the numbers of a document contradict each other: n² = e_electronic = tr ε∞/3, total = sum.

    Raises:
        FieldProblem: Names the field.
    """
    traces = {name: float(np.trace(tensor)) / 3 for name, tensor in tensors.items()}
    expected = {
        "n": float(np.sqrt(max(traces["electronic"], 0.0))),
        "e_electronic": traces["electronic"],
        "e_ionic": traces["ionic"],
        "e_total": traces["electronic"] + traces["ionic"],
    }
    for field, value in expected.items():
        found = read_number(document, field)
        if found is not None and abs(found - value) > CONSISTENCY_TOLERANCE * max(1.0, abs(value)):
            raise FieldProblem(field, f"is {found:.6g}, but the tensors give {value:.6g}")


def _check_formula(document: Mapping[str, Any], raw: RawFrame) -> None:
    """Raise if the structure is of another compound than the document.

    Raises:
        FieldProblem: Names both.
    """
    found, stated = reduced_formula(raw.numbers), document.get("formula_pretty")
    if stated and stated != found:
        raise FieldProblem("formula_pretty", f"is {stated}, but the structure is {found}")


def _by_identity(documents: Iterable[Mapping[str, Any]], field: str) -> dict[tuple[str, int], Mapping[str, Any]]:
    found: dict[tuple[str, int], Mapping[str, Any]] = {}
    for document in documents:
        try:
            found.setdefault(identity(document.get(field)), document)
        except ValueError:
            continue
    return found


def _text(identifier: object) -> str:
    """Return an id in one spelling; never text that a reader takes for a number."""
    try:
        return plain_id(identifier)
    except ValueError:
        return f"id {identifier}"
