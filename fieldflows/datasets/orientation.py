"""IEEE orientation, in which the Materials Project gives its dielectric tensors, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fieldflows.physics.symmetry import ieee_rotation, rotate_tensor, symmetrize_tensor
from fieldflows.structures import as_atoms

if TYPE_CHECKING:
    from fieldflows.structures import StructureLike

FloatArray = NDArray[np.float64]


def from_ieee(tensor: ArrayLike, structure: StructureLike) -> FloatArray:
    """Return a tensor in the frame of a structure, given in the IEEE orientation of that structure.

    T = Rᵀ T_ieee R with R from :func:`fieldflows.physics.symmetry.ieee_rotation`, which chooses axes as pymatgen's
    ``Tensor.get_ieee_rotation``.  Tensors of the Materials Project are symmetrized before they are rotated, so that
    the result is the *symmetrized* tensor.

    Args:
        tensor: (3, 3) symmetric or not, any unit.
        structure: The structure of the dielectric task itself: the dielectric document carries none, and another
            setting or cell of the same material gives another frame.

    Raises:
        EvaluationError: If no space group is found.
    """
    atoms = as_atoms(structure)
    rotation = ieee_rotation(atoms.cell[:], atoms.positions, atoms.numbers)
    return rotate_tensor(tensor, rotation.T)


def to_ieee(tensor: ArrayLike, structure: StructureLike) -> FloatArray:
    """Return the symmetrized tensor in the IEEE orientation: R T_sym Rᵀ, as dielectric documents have it.

    In a cell that is distorted within the tolerance, pymatgen symmetrizes with operations that are not quite
    orthogonal; results then differ in the third digit.

    Args:
        tensor: (3, 3) in the frame of the structure.
        structure: The crystal.

    Raises:
        EvaluationError: If no space group is found.
    """
    atoms = as_atoms(structure)
    rotation = ieee_rotation(atoms.cell[:], atoms.positions, atoms.numbers)
    return rotate_tensor(symmetrize_tensor(tensor, atoms.cell[:], atoms.positions, atoms.numbers), rotation)


def symmetrization_residual(tensor: ArrayLike, structure: StructureLike) -> float:
    """Return max |T − T_sym|: what symmetrizing removed from a tensor in the frame of the structure."""
    atoms = as_atoms(structure)
    symmetrized = symmetrize_tensor(tensor, atoms.cell[:], atoms.positions, atoms.numbers)
    return float(np.abs(np.asarray(tensor, dtype=float) - symmetrized).max())
