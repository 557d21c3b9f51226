"""How far labels break the symmetry of their crystal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class SiteSymmetry:
    """Operations of a space group in the frame of a crystal.

    Attributes:
        number: International number, 1 to 230; 0 if none was found.
        rotations: (g, 3, 3) Cartesian, orthogonal.
        permutations: (g, n); operation g maps atom k onto atom ``permutations[g, k]``.
    """

    number: int
    rotations: FloatArray
    permutations: NDArray[np.int64]


def site_symmetry(
    cell: FloatArray, positions: FloatArray, numbers: NDArray[np.int64], symprec: float = 0.01
) -> SiteSymmetry:
    """Return the space-group operations of a crystal by spglib.

    Args:
        cell: (3, 3) rows are lattice vectors, Å.
        positions: (n, 3) Cartesian, Å.
        numbers: (n,) atomic numbers.
        symprec: Tolerance in Å.
    """
    import spglib

    n = len(numbers)
    identity = SiteSymmetry(0, np.eye(3)[None], np.arange(n)[None])
    fractional = positions @ np.linalg.inv(cell)
    try:
        dataset = spglib.get_symmetry_dataset((cell, fractional, numbers), symprec=symprec)
    except spglib.SpglibError:
        return identity
    if dataset is None:
        return identity
    # Rotations act on columns of fractional coordinates: r = cellᵀ f, so that R = cellᵀ W cell⁻ᵀ.
    inverse = np.linalg.inv(cell.T)
    rotations = np.einsum("ij,gjk,kl->gil", cell.T, dataset.rotations, inverse)
    permutations = np.empty((len(rotations), n), dtype=np.int64)
    for g, (rotation, translation) in enumerate(zip(dataset.rotations, dataset.translations, strict=True)):
        images = fractional @ rotation.T + translation
        difference = images[:, None, :] - fractional[None, :, :]
        difference -= np.round(difference)
        squared = np.einsum("abi,abi->ab", difference @ cell, difference @ cell)
        squared[numbers[:, None] != numbers[None, :]] = np.inf
        permutations[g] = squared.argmin(axis=1)
    return SiteSymmetry(int(dataset.number), rotations, permutations)


def charge_violation(charges: FloatArray, symmetry: SiteSymmetry) -> float:
    """Return max |Z*(gκ) − R Z*(κ) Rᵀ| in e over all operations, atoms and components.

    Args:
        charges: (n, 3, 3) Born effective charges in e.
        symmetry: Operations of the crystal.
    """
    worst = 0.0
    for rotation, permutation in zip(symmetry.rotations, symmetry.permutations, strict=True):
        rotated = rotation @ charges @ rotation.T
        worst = max(worst, float(np.abs(charges[permutation] - rotated).max()))
    return worst


def tensor_violation(tensor: FloatArray, symmetry: SiteSymmetry) -> float:
    """Return max |T − R T Rᵀ| over all operations and components, in the tensor's unit.

    Args:
        tensor: (3, 3) property of the whole crystal.
        symmetry: Operations of the crystal.
    """
    rotated = np.einsum("gij,jk,glk->gil", symmetry.rotations, tensor, symmetry.rotations)
    return float(np.abs(rotated - tensor).max())
