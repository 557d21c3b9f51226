"""A path from the attachment of a published workflow: ten structures with energies, forces, stresses, polarizations.

The attachment is the document that atomate's ferroelectric workflow writes (``PolarizationToDb``; Smidt et al., Sci.
Data 7, 72 (2020)).  Confirmed on recorded answers: ``structures``, ``energies``, ``energies_per_atom``,
``same_branch_polarization``, ``polarization_quanta``, ``polarization_change_norm``, ``workflow_status``.  Built from
the schema, without a recorded example: ``forces`` in eV/Å, ``stresses`` in kbar with VASP's sign, ``bandgaps`` in eV.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldflows.datasets.extxyz import RawFrame
from fieldflows.datasets.frame import LABEL_UNITS
from fieldflows.datasets.labels import convert, get_convention
from fieldflows.datasets.mp_documents import FieldProblem, read_structure
from fieldflows.datasets.mpcontribs import ATTACHMENT, stated_status, unpack, workflow_attachments
from fieldflows.datasets.paths import N_FRAMES, NORM_KEY, POLARIZATION_KEY, QUANTA_KEY
from fieldflows.errors import DataError, LabelError
from fieldflows.schemas.dataset import Finding

FloatArray = NDArray[np.float64]

ENERGY_TOLERANCE = 1e-4
"""How far ``energies`` and ``energies_per_atom`` may contradict each other, in eV per atom."""

LARGEST_LENGTH = 1e4
"""Longest lattice vector and coordinate in Å that counts as one."""

LARGEST_LABEL = {"forces": 1e3, "stress": 1e2}
"""Largest component that counts as a label, in eV/Å and eV/Å³."""

UNCONFIRMED = {"forces": ("forces", "eV_per_angstrom"), "stress": ("stresses", "vasp_kbar")}
"""Labels whose field and convention follow the schema: {label: (field, convention)}."""

_CATEGORIES = {"unsmooth": "not_smooth"}  # as the companion site calls it


class _Refused(Exception):
    """A contribution that is no path, with the finding that says why."""

    def __init__(self, code: str, message: str, value: float | None = None, threshold: float | None = None,
                 unit: str = "") -> None:  # fmt: skip
        super().__init__(message)
        self.finding = Finding(code=code, value=value, threshold=threshold, unit=unit, message=message)


def contribution_frames(
    contribution: Mapping[str, Any], attachments: Mapping[str, Any], number: int, optional: Sequence[str] = ()
) -> list[RawFrame] | Finding:
    """Return the ten frames of a contribution, nonpolar end first, or the reason why it has none.

    Frames carry what :func:`fieldflows.datasets.paths.read_paths` asks for, ``energy_per_atom_eV``, and labels in
    internal units under ``label_forces`` (n, 3) and ``label_stress`` (9,).

    Args:
        contribution: As ``/contributions/`` gives it.
        attachments: Attachments by id.
        number: Place of the contribution in its file; frame k has index 10·number + k.
        optional: Labels to take as well: of "energy", "forces", "stress".
    """
    name = str(contribution.get("identifier") or contribution.get("id"))
    try:
        status = stated_status(contribution)
        if status not in (None, "COMPLETED"):
            raise _Refused("path_incomplete", f"the workflow is {status}, not COMPLETED")
        workflow, origin = _workflow(contribution, attachments)
        return _frames(contribution, workflow, origin, number, optional)
    except _Refused as refused:
        return refused.finding.model_copy(update={"message": f"{name}: {refused.finding.message}"})


def _workflow(contribution: Mapping[str, Any], attachments: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """Return the content of the one attachment that holds a path, and what to call it."""
    if not isinstance(contribution.get("identifier"), str):
        raise _Refused("malformed", "the contribution has no field 'identifier'")
    listed = contribution.get("attachments")
    if not isinstance(listed, list):
        known = ", ".join(sorted(map(str, contribution)))
        raise _Refused("malformed", f"the contribution has no list 'attachments'; it has {known}")
    entries = workflow_attachments(contribution)
    if len(entries) != 1:
        names = [str(item.get("name")) for item in listed if isinstance(item, dict)]
        structures = contribution.get("structures")
        count = len(structures) if isinstance(structures, list) else 0
        raise _Refused(
            "attachment",
            f"there is no path: of {', '.join(names) or 'no attachments'} and {count} structures, {len(entries)} are "
            f"called {ATTACHMENT}",
        )
    identifier = entries[0]["id"]
    attachment = attachments.get(identifier)
    if not isinstance(attachment, dict):
        raise _Refused("attachment", f"attachment {identifier} ({ATTACHMENT}) is not among the answers")
    try:
        workflow = unpack(attachment)
    except DataError as error:
        raise _Refused("attachment", error.message) from None
    origin = f"attachment {identifier}"
    if not isinstance(workflow, dict):
        raise _Refused("malformed", f"{origin} holds a {type(workflow).__name__} in place of an object")
    owner = workflow.get("wfid")
    if owner is not None and owner != contribution["identifier"]:
        raise _Refused("malformed", f"field 'wfid' of {origin} is {str(owner)[:40]!r}: it is of another contribution")
    return workflow, origin


def _frames(
    contribution: Mapping[str, Any], workflow: Mapping[str, Any], origin: str, number: int, optional: Sequence[str]
) -> list[RawFrame]:
    status = workflow.get("workflow_status")
    if status is not None and status != "COMPLETED":
        raise _Refused("path_incomplete", f"the workflow is {status}, not COMPLETED")
    structures = _series(workflow, "structures", origin)
    _refuse_metals(workflow, origin)
    polarizations = _vectors(workflow, "same_branch_polarization", origin)
    quanta = _vectors(workflow, "polarization_quanta", origin)
    shared = {
        "wfid": contribution["identifier"],
        "workflow_status": "COMPLETED",
        "category": _category(contribution),
        "nonpolar_mpid": str(workflow.get("nonpolar_id") or _nested(contribution, "data", "nonpolar", "mpid") or ""),
        "polar_mpid": str(workflow.get("polar_id") or _nested(contribution, "data", "polar", "mpid") or ""),
    }
    norm = workflow.get("polarization_change_norm")
    if isinstance(norm, int | float) and not isinstance(norm, bool):
        shared[NORM_KEY] = float(norm)
    frames = []
    for k in range(N_FRAMES):
        try:
            with np.errstate(all="ignore"):
                raw = read_structure({"structures": structures[k]}, N_FRAMES * number + k, "structures")
        except (FieldProblem, OverflowError) as problem:
            raise _Refused("malformed", f"of frame {k} in {origin}, {problem}") from None
        if not max(np.abs(raw.cell).max(), np.abs(raw.positions).max()) < LARGEST_LENGTH:
            raise _Refused("malformed", f"of frame {k} in {origin}, field 'structures' has lengths that are none")
        raw.info.update(shared, path_index=k, **{POLARIZATION_KEY: polarizations[k], QUANTA_KEY: quanta[k]})
        frames.append(raw)
    if "energy" in optional:
        _add_energies(frames, workflow, origin)
    for label, (field, convention) in UNCONFIRMED.items():
        if label in optional and workflow.get(field) is not None:
            _add_label(frames, label, field, convention, workflow, origin)
    return frames


def _series(workflow: Mapping[str, Any], field: str, origin: str) -> list[Any]:
    """Return a field that holds one value per frame."""
    if field not in workflow:
        known = ", ".join(sorted(map(str, workflow))) or "nothing"
        raise _Refused("malformed", f"{origin} has no field {field!r}; it has {known}")
    values = workflow[field]
    if not isinstance(values, list):
        raise _Refused("malformed", f"field {field!r} of {origin} is a {type(values).__name__} in place of a list")
    if len(values) != N_FRAMES:
        raise _Refused(
            "path_incomplete", f"field {field!r} of {origin} has {len(values)} frames", len(values), N_FRAMES, "frames"
        )
    missing = [k for k, value in enumerate(values) if value is None]
    if missing:
        raise _Refused("path_incomplete", f"field {field!r} of {origin} is empty for frame {missing[0]}")
    return values


def _vectors(workflow: Mapping[str, Any], field: str, origin: str) -> FloatArray:
    """Return a field of three numbers per frame, (10, 3)."""
    values = _series(workflow, field, origin)
    for k, value in enumerate(values):
        array = _numbers(value)
        if array is None or array.shape != (3,):
            raise _Refused("malformed", f"field {field!r} of {origin} holds no three numbers for frame {k}")
        if not np.isfinite(array).all():
            raise _Refused("path_incomplete", f"field {field!r} of {origin} is not finite for frame {k}")
    return np.array(values, dtype=float)


def _numbers(value: Any) -> FloatArray | None:
    """Return numbers as an array, NaN for null; None if there is anything else."""
    try:
        array = np.asarray(value)
        return None if array.dtype.kind in "USb" else np.asarray(value, dtype=float)
    except (TypeError, ValueError, OverflowError):
        return None


def _refuse_metals(workflow: Mapping[str, Any], origin: str) -> None:
    """Refuse a path with a frame that has no gap: its polarization is not defined."""
    gaps = workflow.get("bandgaps")
    if gaps is None:
        return
    array = _numbers(gaps)
    if array is None or array.ndim != 1:
        raise _Refused("malformed", f"field 'bandgaps' of {origin} is no list of numbers")
    for k, gap in enumerate(array):
        if np.isfinite(gap) and gap <= 0:
            message = f"frame {k} is metallic: its gap in {origin} is {gap:g} eV, and it has no polarization"
            raise _Refused("path_metallic", message, float(gap), 0.0, "eV")


def _add_energies(frames: Sequence[RawFrame], workflow: Mapping[str, Any], origin: str) -> None:
    """Put energies per atom on the frames; totals and energies per atom must agree if both are there."""
    n = len(frames[0])
    found = {}
    for field, factor in (("energies_per_atom", 1.0), ("energies", 1.0 / n)):
        if workflow.get(field) is None:
            continue
        array = _numbers(_series(workflow, field, origin))
        if array is None or array.shape != (N_FRAMES,) or not np.isfinite(array).all():
            raise _Refused("malformed", f"field {field!r} of {origin} holds no ten finite numbers")
        found[field] = array * factor
    if not found:
        raise _Refused("malformed", f"{origin} has no field 'energies'")
    first, *rest = found.values()
    last = rest[-1] if rest else first
    difference = float(np.abs(first - last).max())
    if difference > ENERGY_TOLERANCE:
        message = f"fields 'energies' and 'energies_per_atom' of {origin} contradict each other for {n} atoms"
        raise _Refused("malformed", message, difference, ENERGY_TOLERANCE, "eV per atom")
    for raw, energy in zip(frames, first, strict=True):
        raw.info["energy_per_atom_eV"] = float(energy)


def _add_label(
    frames: Sequence[RawFrame], label: str, field: str, convention: str, workflow: Mapping[str, Any], origin: str
) -> None:
    """Put a label in internal units on the frames."""
    rule = get_convention(label, convention)
    shape = (3, 3) if label == "stress" else (len(frames[0]), 3)
    for k, (raw, value) in enumerate(zip(frames, _series(workflow, field, origin), strict=True)):
        array = _numbers(value)
        if array is None or array.shape != shape:
            found = "no numbers" if array is None else f"shape {array.shape}"
            message = f"field {field!r} of {origin} has {found} for frame {k}, expected shape {shape}"
            raise _Refused("malformed", f"{message} (set {field}: false to do without it)")
        probe = RawFrame(raw.numbers, raw.positions, raw.cell, raw.pbc, info={field: array}, index=raw.index)
        try:
            raw.info[f"label_{label}"] = convert(probe, field, rule)
        except LabelError as error:
            raise _Refused("malformed", f"of {origin}, {error.message}") from None
        largest = float(np.abs(raw.info[f"label_{label}"]).max())
        if largest > LARGEST_LABEL[label]:
            message = f"field {field!r} of {origin} holds {largest:.3g} {LABEL_UNITS[label]} for frame {k}"
            raise _Refused("malformed", message, largest, LARGEST_LABEL[label], LABEL_UNITS[label])


def _category(contribution: Mapping[str, Any]) -> str:
    category = str(_nested(contribution, "data", "workflow", "category") or "")
    return _CATEGORIES.get(category, category)


def _nested(document: Any, *keys: str) -> Any:
    """Return a nested value, or None if any level lacks it."""
    for key in keys:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document
