"""Identity of results: the same crystal, model and settings always give the same key."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldflows.errors import StructureError

if TYPE_CHECKING:
    from fieldflows.structures import StructureLike

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://github.com/fieldflows/fieldflows")
"""Name space of all document keys."""

RESOLUTION = 1e-8
"""Lattice components (Å) and fractional coordinates are compared to this accuracy."""


def structure_hash(structure: StructureLike) -> str:
    """Return the sha256 of a crystal: atomic numbers, lattice and wrapped fractional coordinates, in their order.

    Invariant under moving atoms by lattice vectors; not under rotation, reordering or a change of cell, because
    the stored tensors and per-atom charges are not either.

    Raises:
        StructureError: If coordinates are not finite or the cell has no volume.

    Example:
        >>> from ase.build import bulk
        >>> structure_hash(bulk("MgO", "rocksalt", 4.21)) == structure_hash(bulk("MgO", "rocksalt", 4.22))
        False
    """
    from fieldflows.structures import as_atoms

    atoms = as_atoms(structure)
    if not (np.isfinite(atoms.positions).all() and abs(np.linalg.det(atoms.cell[:])) > 0.0):
        raise StructureError("A crystal with coordinates that are not finite or without volume has no hash.")
    lattice = np.rint(np.asarray(atoms.cell[:], dtype=float) / RESOLUTION).astype("<i8")
    steps = round(1.0 / RESOLUTION)
    fractional = np.rint(atoms.cell.scaled_positions(atoms.positions) / RESOLUTION).astype("<i8") % steps
    digest = hashlib.sha256(b"fieldflows.structure.1")
    for array in (np.asarray(atoms.numbers).astype("<i8"), lattice, fractional.astype("<i8")):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Return the sha256 of settings given in JSON types; the order of keys does not matter.

    Raises:
        TypeError: If a value is no JSON type.
        ValueError: If a number is not finite.
    """
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def document_key(task: str, structure_digest: str, model_sha256: str, settings_digest: str, schema_version: int) -> str:
    """Return the deterministic uuid5 under which a result is stored, so that a rerun replaces and never repeats."""
    return str(
        uuid.uuid5(NAMESPACE, "|".join((task, structure_digest, model_sha256, settings_digest, str(schema_version))))
    )


def failure_key(
    *,
    key: str | None = None,
    source: str | None = None,
    index: int | None = None,
    material_id: str | None = None,
    formula: str | None = None,
    task: str | None = None,
    extent: str | None = None,
) -> str:
    """Return the deterministic uuid5 under which a failure is stored, so that trying again replaces and never repeats.

    The structure is told by the first of these that is known: the key that its result would have had; the place in
    its source; the identifier of the material; the formula and the position in the input.  The task and its part
    belong to the identity too.

    Args:
        key: Key that the result would have had.
        source: File or database entry that the structure came from.
        index: Position in the input, from 0.
        material_id: Identifier of the material.
        formula: Reduced formula.
        task: Property that was asked for.
        extent: Part of the task.
    """
    subject: tuple[Any, ...] = ("formula", formula, index)
    if key:
        subject = ("key", key)
    elif source:
        subject = ("source", source, index)
    elif material_id:
        subject = ("material", material_id)
    return str(uuid.uuid5(NAMESPACE, "failure|" + json.dumps([*subject, task, extent])))
