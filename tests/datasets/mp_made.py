"""Documents of the Materials Project made from closed forms, by emmet's own models where they exist."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from emmet.core.phonon import PhononBSDOSTask
from emmet.core.polar import DielectricDoc
from emmet.core.tasks import CoreTaskDoc
from scipy.spatial.transform import Rotation

from fieldflows.structures import as_structure

EPSILON = {"ZnO": (3.6, 3.8), "GaN": (5.3, 5.5), "BeO": (2.9, 3.0)}
"""ε∞ across and along the axis."""
CHARGES = {"ZnO": (2.1, 2.2), "GaN": (2.6, 2.8), "BeO": (1.8, 1.9)}
"""Z* of the cation in e, across and along the axis."""
IDS = {"ZnO": "mp-2133", "GaN": "mp-804", "BeO": "mp-2542"}
TASKS = {"ZnO": "mp-1010", "GaN": "mp-1020", "BeO": "mp-1030"}
DATE = "2020-01-01T00:00:00Z"


def axial(across: float, along: float, axis: np.ndarray) -> np.ndarray:
    return across * np.eye(3) + (along - across) * np.outer(axis, axis)


def crystal(name: str):
    """A wurtzite crystal whose axis points in a general direction, its ε∞ and its Z*."""
    atoms = bulk(name, "wurtzite", a=3.2, c=5.2, u=0.38)
    rotation = Rotation.from_euler("xyz", [30, 50, 70], degrees=True).as_matrix()
    atoms.set_cell(atoms.cell[:] @ rotation.T, scale_atoms=True)
    axis = rotation @ [0, 0, 1]
    cation = axial(*CHARGES[name], axis)
    signs = np.where(atoms.numbers == atoms.numbers[0], 1.0, -1.0)
    return atoms, axial(*EPSILON[name], axis), signs[:, None, None] * cation


def dielectric(name: str, **changes: Any) -> dict[str, Any]:
    """What the Materials Project's builder makes of a crystal."""
    atoms, epsilon, _ = crystal(name)
    document = DielectricDoc.from_ionic_and_electronic(
        (2 * epsilon).tolist(), epsilon.tolist(), as_structure(atoms), material_id=IDS[name],
        origins=[{"name": "dielectric", "task_id": TASKS[name], "last_updated": DATE}], deprecated=False,
        last_updated=DATE,
    )  # fmt: skip
    return document.model_dump(mode="json") | changes


def summary(name: str, **changes: Any) -> dict[str, Any]:
    structure = as_structure(crystal(name)[0])
    return {
        "material_id": IDS[name],
        "formula_pretty": name,
        "chemsys": "-".join(sorted(str(element) for element in structure.elements)),
        "volume": structure.volume,
        "deprecated": False,
        "structure": structure.as_dict(),
        "n": float(np.sqrt(np.mean([EPSILON[name][0]] * 2 + [EPSILON[name][1]]))),
    } | changes


def task(name: str, charges: Any = None, epsilon: Any = None, **changes: Any) -> dict[str, Any]:
    """A document of materials.tasks, checked by emmet's model."""
    atoms, raw, born = crystal(name)
    document = {
        "task_id": TASKS[name],
        "task_type": "DFPT Dielectric",
        "calc_type": "GGA DFPT Dielectric",
        "last_updated": DATE,
        "completed_at": None,
        "structure": as_structure(atoms).as_dict(),
        "output": {
            "dielectric_properties": {"born_charges": np.asarray(born if charges is None else charges).tolist()},
            "epsilon_static": np.asarray(raw if epsilon is None else epsilon).tolist(),
        },
    } | changes
    CoreTaskDoc.model_validate(document)
    return document


def phonon(atoms: Atoms, born: Any, **more: Any) -> dict[str, Any]:
    """A document of materials.phonon, checked by emmet's model."""
    document = {
        "identifier": "mp-7777",
        "phonon_method": "dfpt",
        "last_updated": DATE,
        "structure": as_structure(atoms).as_dict(),
        "born": np.asarray(born).tolist(),
    } | more
    PhononBSDOSTask.model_validate(document)
    return document


def documents(**more: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {"dielectric": [dielectric(name) for name in IDS], "summary": [summary(name) for name in IDS]} | more
