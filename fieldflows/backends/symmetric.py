"""Responses by symmetry: the same tensors from the primitive cell and a few directions, for any model.

A crystal is brought to its own symmetry (:mod:`fieldflows.physics.crystal`), reduced to its primitive cell,
evaluated along the few directions that determine Z*, α and the Hessian (:mod:`fieldflows.physics.directions`), and
the answer is given for the atoms of the original, in its frame.  The result is that of the symmetrized crystal to
rounding; how far that lies from the original is part of the answer, and where it lies too far nothing is done.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field

from fieldflows.backends.base import (
    DirectionalModel,
    Directions,
    FieldModel,
    FloatArray,
    ModelInfo,
    Response,
    SymmetryUse,
)
from fieldflows.errors import EvaluationError, FieldflowsError, InputError
from fieldflows.observables import ELECTRONIC_OBSERVABLES, check_observables
from fieldflows.physics import directions as cyclic
from fieldflows.physics.crystal import SymmetricCrystal, primitive_crystal, symmetrize_crystal
from fieldflows.structures import as_atoms, check_structure

if TYPE_CHECKING:
    from ase import Atoms

    from fieldflows.structures import StructureLike

logger = logging.getLogger(__name__)

UNNOTICED = 1e-5
"""Shifts in Å (or strains) below this change forces by less than any tolerance: no forces are compared."""


class SymmetrySettings(BaseModel):
    """When symmetry is used, and how close a crystal must be to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    symprec: float = Field(
        1e-3, gt=0, description="Tolerance of the search for operations.", json_schema_extra={"unit": "Å"}
    )
    max_shift: float = Field(
        1e-3,
        ge=0,
        description="Symmetry is not used if it would move an atom by more than this.",
        json_schema_extra={"unit": "Å"},
    )
    max_strain: float = Field(
        1e-3, ge=0, description="Symmetry is not used if it would strain the cell by more than this."
    )
    force_tolerance: float = Field(
        0.01,
        gt=0,
        description="Symmetry is not used if it would change a force component by more than this.",
        json_schema_extra={"unit": "eV/Å"},
    )


class SymmetricModel:
    """A model that uses the symmetry of each crystal; in all else the one that it wraps.

    ``evaluate`` gives the responses of the structures as they are asked for; ``response.symmetry`` says what was
    used, or is None where the crystal was too far from its symmetry.  A crystal in P1 has one operation, the identity.

    Args:
        model: Any model.
        settings: How close a crystal must be to its symmetry.

    Example:
        >>> from ase.build import bulk
        >>> from fieldflows import load_model
        >>> response = SymmetricModel(load_model("dielectric")).evaluate(bulk("MgO", "rocksalt", a=4.21, cubic=True))
        >>> response.symmetry.space_group, len(response.symmetry.representatives)
        (225, 2)
    """

    def __init__(self, model: FieldModel, settings: SymmetrySettings | None = None) -> None:
        self.model = model
        self.settings = settings or SymmetrySettings()

    @property
    def info(self) -> ModelInfo:
        """The card of the model."""
        return self.model.info

    @property
    def device(self) -> str:
        """Where the model is evaluated."""
        return str(getattr(self.model, "device", "cpu"))

    def evaluate(  # type: ignore[no-untyped-def]
        self,
        structures,
        fields: ArrayLike | None = None,
        observables: Sequence[str] = ELECTRONIC_OBSERVABLES,
    ):
        """Return the response of one structure, or a list of them (see :class:`FieldModel`)."""
        single = not isinstance(structures, list | tuple)
        outcomes = evaluate_each(self.model, [structures] if single else structures, fields, observables, self.settings)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return outcomes[0] if single else outcomes


@dataclass(frozen=True)
class _Reduced:
    """A structure on its way: the cell to evaluate, with its operations and directions."""

    crystal: SymmetricCrystal
    rotations: FloatArray
    permutations: Any
    field: FloatArray
    displacements: cyclic.DisplacementDirections | None

    @property
    def atoms(self) -> Atoms:
        from ase import Atoms

        return Atoms(numbers=self.crystal.numbers, positions=self.crystal.positions, cell=self.crystal.cell, pbc=True)

    @property
    def directions(self) -> Directions:
        return Directions(self.field, None if self.displacements is None else self.displacements.vectors)


def evaluate_each(
    model: FieldModel,
    structures: Sequence[StructureLike],
    fields: ArrayLike | None = None,
    observables: Sequence[str] = ELECTRONIC_OBSERVABLES,
    symmetry: SymmetrySettings | None = None,
    primitive_hessian: bool = False,
) -> list[Response | Exception]:
    """Return a response or an error for each structure; one that fails does not touch the others.

    Args:
        model: Any model; one that takes directions (:class:`DirectionalModel`) gains most from symmetry.
        structures: Crystals.
        fields: (3,) for all or (len(structures), 3), in V/Å; zero by default.
        observables: Names.
        symmetry: Use symmetry where a crystal is close enough to it; None: never.
        primitive_hessian: Give the Hessian of the primitive cell, ``response.symmetry.representatives``, where
            symmetry is used.
    """
    names = check_observables(observables)
    applied = _per_structure(fields, len(structures))
    outcomes: dict[int, Response | Exception] = {}
    reduced: dict[int, _Reduced] = {}
    if symmetry is not None:
        whole = "hessian" in names and not primitive_hessian
        for index, structure in enumerate(structures):
            try:
                atoms = as_atoms(structure)
                check_structure(atoms)
                found = _reduce(atoms, applied[index], names, symmetry, whole)
            except EvaluationError:
                continue  # no group was found: evaluated as it is
            except FieldflowsError as error:
                outcomes[index] = error
                continue
            except Exception as error:  # symmetry is an economy: whatever is wrong with it, the rest goes on
                logger.warning("symmetry is not used for structure %d: %s: %s", index, type(error).__name__, error)
                continue
            if found is not None:
                reduced[index] = found
    products = isinstance(model, DirectionalModel)
    changes = _force_changes(model, structures, applied, reduced)
    for index, change in changes.items():
        if isinstance(change, Exception) or not change <= symmetry.force_tolerance:  # type: ignore[union-attr]
            del reduced[index]
    places = list(reduced)
    items = [reduced[i] for i in places]
    for index, item, outcome in zip(places, items, _along(model, items, applied[places], names), strict=True):
        outcomes[index] = (
            outcome if isinstance(outcome, Exception) else _completed(outcome, item, changes.get(index), products)
        )
    rest = [i for i in range(len(structures)) if i not in outcomes]
    outcomes.update(zip(rest, _plain(model, [structures[i] for i in rest], applied[rest], names), strict=True))
    return [outcomes[i] for i in range(len(structures))]


def _reduce(
    atoms: Atoms, field: FloatArray, names: tuple[str, ...], settings: SymmetrySettings, whole: bool
) -> _Reduced | None:
    """Return what to evaluate instead of a crystal, or None if it is too far from any symmetry.

    Raises:
        EvaluationError: If no group is found.
    """
    search = symmetrize_crystal if whole else primitive_crystal
    crystal = search(atoms.cell[:], atoms.positions, atoms.numbers, settings.symprec)
    if crystal.max_shift > settings.max_shift or crystal.strain > settings.max_strain:
        return None
    kept = cyclic.invariant_operations(crystal.rotations, field)
    rotations, permutations = crystal.rotations[kept], crystal.permutations[kept]
    displacements = cyclic.displacement_directions(rotations, permutations) if "hessian" in names else None
    return _Reduced(crystal, rotations, permutations, cyclic.field_directions(rotations), displacements)


def _force_changes(
    model: FieldModel, structures: Sequence[StructureLike], fields: FloatArray, reduced: dict[int, _Reduced]
) -> dict[int, float | Exception]:
    """Return by how much symmetrization changes the forces, for the crystals that it moves noticeably, in eV/Å."""
    moved = [i for i, item in reduced.items() if max(item.crystal.max_shift, item.crystal.strain) > UNNOTICED]
    before = _plain(model, [structures[i] for i in moved], fields[moved], ("forces",))
    after = _plain(model, [reduced[i].atoms for i in moved], fields[moved], ("forces",))
    return {
        index: _force_change(old, new, reduced[index].crystal.mapping)
        for index, old, new in zip(moved, before, after, strict=True)
    }


def _force_change(old: Response | Exception, new: Response | Exception, mapping: Any) -> float | Exception:
    if isinstance(old, Exception):
        return old
    if isinstance(new, Exception):
        return new
    if old.forces is None or new.forces is None:
        return EvaluationError("The model gave no forces.")
    return float(np.abs(old.forces - new.forces[mapping]).max())


def _along(
    model: FieldModel, items: Sequence[_Reduced], fields: FloatArray, names: tuple[str, ...]
) -> list[Response | Exception]:
    """Return the responses of the reduced cells: products with the directions, or full tensors."""
    if not items:
        return []
    crystals = [item.atoms for item in items]
    if isinstance(model, DirectionalModel):
        return model.evaluate_along(crystals, fields, names, [item.directions for item in items])
    return _plain(model, crystals, fields, names)


def _plain(
    model: FieldModel, structures: Sequence[StructureLike], fields: FloatArray, names: tuple[str, ...]
) -> list[Response | Exception]:
    """Return responses or errors without symmetry; a batch that fails is halved down to single structures."""
    if not len(structures):
        return []
    if isinstance(model, DirectionalModel):
        return model.evaluate_along(structures, fields, names)
    try:
        responses = model.evaluate(list(structures), fields=fields, observables=names)
        if len(responses) != len(structures):
            raise EvaluationError(f"The model returned {len(responses)} responses for {len(structures)} structures.")
    except Exception as error:
        if len(structures) == 1:
            return [error]
        middle = len(structures) // 2
        return [
            *_plain(model, structures[:middle], fields[:middle], names),
            *_plain(model, structures[middle:], fields[middle:], names),
        ]
    return list(responses)


def _completed(response: Response, item: _Reduced, force_change: float | Exception | None, products: bool) -> Response:
    """Return the response of the original structure from that of the reduced cell.

    Args:
        response: Of the reduced cell.
        item: The reduced cell.
        force_change: As in :class:`SymmetryUse`.
        products: Whether second derivatives are products with the directions, rather than full tensors.
    """
    crystal, group, permutations = item.crystal, item.rotations, item.permutations
    values: dict[str, Any] = {}
    if response.energy is not None:
        values["energy"] = response.energy * crystal.multiplicity
    if response.forces is not None:
        values["forces"] = response.forces[crystal.mapping]
    charges = response.born_effective_charges
    if charges is not None:
        if products:
            charges = cyclic.complete_born_charges(charges, item.field, group, permutations)
        values["born_effective_charges"] = charges[crystal.mapping]
    if response.polarizability is not None and products:
        values["polarizability"] = cyclic.complete_polarizability(response.polarizability, item.field, group)
    if response.hessian is not None and products and item.displacements is not None:
        values["hessian"] = cyclic.complete_hessian(response.hessian, item.displacements, group, permutations)
    use = SymmetryUse(
        space_group=crystal.space_group,
        n_operations=len(group),
        n_field_directions=len(item.field) if products else 3,
        n_displacements=_count(response, item, products),
        max_shift=crystal.max_shift,
        strain=crystal.strain,
        force_change=None if isinstance(force_change, Exception) else force_change,
        representatives=crystal.representatives,
        mapping=crystal.mapping,
        cell=crystal.cell,
        positions=crystal.positions,
    )
    return replace(response, **values, symmetry=use)


def _count(response: Response, item: _Reduced, products: bool) -> int:
    """Return how many products the Hessian took."""
    if response.hessian is None:
        return 0
    return len(response.hessian) if products else 3 * len(item.crystal.numbers)


def _per_structure(fields: ArrayLike | None, count: int) -> FloatArray:
    """Return fields of shape (count, 3) in V/Å."""
    if fields is None:
        return np.zeros((count, 3))
    array = np.asarray(fields, dtype=float)
    if array.shape not in ((3,), (count, 3)) or not np.isfinite(array).all():
        raise InputError(
            f"fields must be finite numbers of shape (3,) or ({count}, 3), found shape {array.shape}.",
            "Give V/Å, x, y, z.",
        )
    return np.broadcast_to(array, (count, 3)).copy()
