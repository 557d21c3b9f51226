"""Frames brought to their own symmetry: primitive cells, and Z* and α from products with one or two field directions.

The operations D_s = (R_s, permutation) of a crystal leave the network's function invariant, so that the products
y_k = α·v_k and z_k = v_k·Z* with few directions v_k tell the whole tensors (:mod:`fieldflows.physics.directions`)::

    α_ij = Σ_sk (R_s y_k)_i (G⁻¹ R_s v_k)_j          Z*_p[i, j] = Σ_sk (G⁻¹ R_s v_k)_i (R_s z_kκ)_j  with D_s κ = p

    G = Σ_sk (R_s v_k)(R_s v_k)ᵀ

Both are linear with coefficients of the crystal alone, computed once.  A loss of the completed tensors, of whatever
form, is the loss of the full computation, and so is its gradient by the weights: it is the same function of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from ase import Atoms
from numpy.typing import ArrayLike, NDArray

from fieldflows.errors import EvaluationError
from fieldflows.physics.crystal import SymmetricCrystal, primitive_crystal
from fieldflows.physics.directions import field_directions

FloatArray = NDArray[np.float64]

SECOND_DERIVATIVES: tuple[str, ...] = ("born_effective_charges", "polarizability")
"""Labels that need a derivative per field direction."""


@dataclass(frozen=True)
class Reduction:
    """Field directions of a batch of primitive cells, and the linear maps to the observables of the frames.

    Attributes:
        directions: (k, g, 3), zero where a frame needs fewer than others.
        polarizability: (g, 9, 3k) map from the products (k, 3) of a frame to α.
        sources: (p,) atoms whose products contribute,
        targets: (p,) to the Z* of which atoms,
        born_charges: (p, 9, 3k) by which maps.
        multiplicity: (g,) number of primitive cells in the cell of each frame.
        mapping: (N,) for each atom of the frames, the atom of the graph that it is an image of.
    """

    directions: torch.Tensor
    polarizability: torch.Tensor
    sources: torch.Tensor
    targets: torch.Tensor
    born_charges: torch.Tensor
    multiplicity: torch.Tensor
    mapping: torch.Tensor

    @property
    def count(self) -> int:
        """Number of directions k."""
        return len(self.directions)

    def complete(self, products: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the observables of the frames, differentiable.

        Args:
            products: Of :func:`~fieldflows.backends.mace_field.derivatives.respond` on the graph along the
                directions: energy (g,), forces (n, 3), born_effective_charges (n, k, 3), polarizability (g, k, 3), and
                stress and polarization, which stay.
        """
        results = dict(products)
        if "energy" in products:
            results["energy"] = products["energy"] * self.multiplicity
        if "forces" in products:
            results["forces"] = products["forces"].index_select(0, self.mapping)
        if "polarizability" in products:
            rows = products["polarizability"].flatten(1).unsqueeze(2)
            results["polarizability"] = torch.bmm(self.polarizability, rows).view(-1, 3, 3)
        if "born_effective_charges" in products:
            rows = products["born_effective_charges"].flatten(1)
            parts = torch.bmm(self.born_charges, rows.index_select(0, self.sources).unsqueeze(2)).squeeze(2)
            sums = parts.new_zeros(len(rows), 9).index_add(0, self.targets, parts)
            results["born_effective_charges"] = sums.index_select(0, self.mapping).view(-1, 3, 3)
        return results


@dataclass(frozen=True)
class FrameSymmetry:
    """The same for one frame, in float64.

    Attributes:
        directions: (k, 3).
        polarizability: (9, 3k).
        sources: (p,).
        targets: (p,).
        born_charges: (p, 9, 3k).
        mapping: (N,) for each atom of the frame, the atom of the primitive cell that it is an image of.
        n_atoms: Atoms of the primitive cell.
    """

    directions: FloatArray
    polarizability: FloatArray
    sources: NDArray[np.intp]
    targets: NDArray[np.intp]
    born_charges: FloatArray
    mapping: NDArray[np.intp]
    n_atoms: int

    @property
    def count(self) -> int:
        """Number of directions k."""
        return len(self.directions)

    @property
    def multiplicity(self) -> int:
        """Number of primitive cells in the cell of the frame."""
        return len(self.mapping) // self.n_atoms

    @classmethod
    def of(
        cls, directions: ArrayLike, rotations: ArrayLike, permutations: ArrayLike, mapping: ArrayLike | None = None
    ) -> FrameSymmetry:
        """Return the maps for some directions and a space group.

        Args:
            directions: (k, 3) whose images under the rotations span space.
            rotations: (s, 3, 3) orthogonal matrices in the Cartesian frame.
            permutations: (s, n) atom on which operation s brings each atom.
            mapping: (N,) as above; every atom for itself by default.
        """
        vectors, group = np.asarray(directions, dtype=float), np.asarray(rotations, dtype=float)
        target = np.asarray(permutations)
        operations, n = target.shape
        width = 3 * len(vectors)
        images = np.einsum("sij,kj->ski", group, vectors)
        gram = np.einsum("ski,skj->ij", images, images)
        dual = images @ np.linalg.inv(gram)
        alpha = np.einsum("sib,skj->ijkb", group, dual).reshape(9, width)
        maps = np.einsum("ski,sjb->sijkb", dual, group).reshape(operations, 9, width)
        pairs, place = np.unique(target * n + np.arange(n), return_inverse=True)
        born = np.zeros((len(pairs), 9, width))
        np.add.at(born, place.reshape(target.shape), maps[:, None])
        images_of = np.arange(n) if mapping is None else np.asarray(mapping, dtype=np.intp)
        return cls(vectors, alpha, pairs % n, pairs // n, born, images_of, n)

    @classmethod
    def axes(cls, n_atoms: int) -> FrameSymmetry:
        """Return the maps of a crystal of so many atoms without symmetry, along the three axes."""
        return cls.of(np.eye(3), np.eye(3)[None], np.arange(n_atoms)[None])

    @classmethod
    def nothing(cls, n_atoms: int) -> FrameSymmetry:
        """Return the maps of a frame whose Z* and α nobody asks for: no direction, zeros as result."""
        no_atom = np.zeros(0, dtype=np.intp)
        no_map = np.zeros((0, 9, 0))
        return cls(np.zeros((0, 3)), np.zeros((9, 0)), no_atom, no_atom, no_map, np.arange(n_atoms), n_atoms)


@dataclass(frozen=True)
class Outcome:
    """What became of a frame.

    Attributes:
        kind: "reduced" (brought to its symmetry), "unsymmetric" (three directions are needed), "too far" (its atoms
            would have moved by more than the tolerance), "failed" (no space group was found) or "not needed" (no
            label asks for second derivatives); the last four stay as they are.
        moved: Largest displacement of an atom, or strain times the longest lattice vector if that is more, in Å; made
            ("reduced") or refused ("too far").
        symmetry: How to complete the tensors, if reduced or not needed.
    """

    kind: Literal["reduced", "unsymmetric", "too far", "failed", "not needed"]
    moved: float = 0.0
    symmetry: FrameSymmetry | None = None


def bring_to_symmetry(atoms: Atoms, symprec: float) -> tuple[Atoms, Outcome]:
    """Return the primitive cell of a crystal at its own symmetry if that saves field directions, else the crystal.

    Args:
        atoms: The crystal; neither turned nor shifted.
        symprec: Tolerance of the search in Å, and the farthest that anything may move.
    """
    if not atoms.pbc.all():
        return atoms, Outcome("unsymmetric")
    try:
        found = primitive_crystal(atoms.cell[:], atoms.positions, atoms.numbers, symprec)
    except (EvaluationError, np.linalg.LinAlgError):
        return atoms, Outcome("failed")
    directions = field_directions(found.rotations)
    if len(directions) == 3:
        return atoms, Outcome("unsymmetric")
    moved = _displacement(atoms, found)
    if moved > symprec:
        return atoms, Outcome("too far", moved)
    symmetry = FrameSymmetry.of(directions, found.rotations, found.permutations, found.mapping)
    primitive = Atoms(found.numbers, positions=found.positions, cell=found.cell, pbc=True)
    return primitive, Outcome("reduced", moved, symmetry)


def _displacement(atoms: Atoms, found: SymmetricCrystal) -> float:
    return float(max(found.max_shift, found.strain * atoms.cell.lengths().max()))


def summarize(outcomes: Sequence[Outcome | None]) -> dict[str, Any]:
    """Return how many frames need how many directions and how far they were moved, in JSON types; empty if none was.

    Args:
        outcomes: By frame; None where nothing was asked for.
    """
    found = [item for item in outcomes if item is not None and item.kind != "not needed"]
    if not found:
        return {}
    reduced = [item.symmetry for item in found if item.symmetry is not None]
    moved = [item.moved for item in found if item.symmetry is not None]
    left = Counter(item.kind for item in found if item.symmetry is None)
    directions = Counter(3 if item.symmetry is None else item.symmetry.count for item in found)
    return {
        "frames": len(found),
        "directions": {str(count): directions[count] for count in (1, 2, 3)},
        "left_as_they_are": {kind: left[kind] for kind in ("unsymmetric", "too far", "failed")},
        "atoms_of_reduced": sum(len(symmetry.mapping) for symmetry in reduced),
        "atoms_in_primitive_cells": sum(symmetry.n_atoms for symmetry in reduced),
        "moved_median": float(np.median(moved)) if moved else 0.0,
        "moved_max": max(moved, default=0.0),
        "unit": "Å",
    }


def describe(summary: Mapping[str, Any]) -> str:
    """Return such a summary in one sentence."""
    one, two, three = (summary["directions"][count] for count in "123")
    left = summary["left_as_they_are"]
    return (
        f"{summary['frames']} frames at their own symmetry: {one} need one field direction, {two} two, {three} three "
        f"(too far {left['too far']}, failed {left['failed']}); "
        f"{summary['atoms_in_primitive_cells']} atoms in primitive cells in place of {summary['atoms_of_reduced']}; "
        f"moved by {summary['moved_median']:.1e} Å (median), {summary['moved_max']:.1e} Å (most)"
    )


def join(
    symmetries: Sequence[FrameSymmetry | None], sizes: Sequence[int], dtype: torch.dtype, device: torch.device | str
) -> Reduction | None:
    """Return the reduction of a batch; None if it has none, so that tensors are taken along the axes.

    Args:
        symmetries: By frame; None for the three axes.
        sizes: Atoms of each frame.
        dtype: Precision of the predictions.
        device: Where the batch is.
    """
    if not any(item is not None and item.count for item in symmetries):
        return None
    members = [FrameSymmetry.axes(n) if item is None else item for item, n in zip(symmetries, sizes, strict=True)]
    count = max(item.count for item in members)
    starts = np.cumsum([0, *(item.n_atoms for item in members)])[:-1]
    directions = np.zeros((count, len(members), 3))
    for g, item in enumerate(members):
        directions[: item.count, g] = item.directions

    def real(array: ArrayLike) -> torch.Tensor:
        return torch.as_tensor(array, dtype=dtype, device=device)

    def index(arrays: list[NDArray[np.intp]]) -> torch.Tensor:
        moved = [array + start for array, start in zip(arrays, starts, strict=True)]
        return torch.as_tensor(np.concatenate(moved), dtype=torch.int64, device=device)

    return Reduction(
        directions=real(directions),
        polarizability=real(np.concatenate([_widened(item.polarizability[None], 3 * count) for item in members])),
        sources=index([item.sources for item in members]),
        targets=index([item.targets for item in members]),
        born_charges=real(np.concatenate([_widened(item.born_charges, 3 * count) for item in members])),
        multiplicity=real([item.multiplicity for item in members]),
        mapping=index([item.mapping for item in members]),
    )


def _widened(maps: FloatArray, width: int) -> FloatArray:
    """Return maps (..., 9, 3k) with columns of zeros for the directions that a frame does not need."""
    return np.pad(maps, ((0, 0), (0, 0), (0, width - maps.shape[2])))
