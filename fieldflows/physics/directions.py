"""Few directions that determine a response tensor, and the tensor from its products with them.

A tensor of a crystal commutes with the operations D_s of its space group, so that a product with one vector tells
the products with all its images.  Vectors v_k whose images span the space (cyclic vectors) determine the tensor::

    y_k = T v_k,      G = (1/s) Σ_s Σ_k (D_s v_k)(D_s v_k)ᵀ,      T = [(1/s) Σ_s Σ_k (D_s y_k)(D_s v_k)ᵀ] G⁻¹

One field direction is enough for orthorhombic and higher symmetry, two for monoclinic, three for triclinic; for the
Hessian it takes max over the irreducible representations of ⌈multiplicity/dimension⌉ displacements of the whole
cell.  Since G commutes with every D_s, replacing v by G^(−1/2) v makes G the identity: the reconstruction amplifies
no rounding error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

SEED = 1
"""Of the random vectors; any generic ones do, and the same crystal always gets the same."""
LEAST_EIGENVALUE = 1e-4
"""Of G, relative to the greatest, below which displacements do not count as cyclic."""
ATTEMPTS = 6
"""Draws of as many displacements as could do before there is one more: a draw is cheap, a product is not."""
SINGULAR = 1e-10
"""Relative eigenvalue of G that is zero but for rounding: so few displacements never do."""
LEAST_FIELD_EIGENVALUE = 1e-2
"""The same for field directions, of which the best of several draws is taken."""
DRAWS = 16
"""Sets of field directions to choose from."""


def field_directions(rotations: ArrayLike) -> FloatArray:
    """Return the least number of field directions that determine Z* and α, (k, 3) with G = I.

    Args:
        rotations: (s, 3, 3) orthogonal matrices of the point group, repetitions allowed.  With a finite field they
            must leave it invariant (see :func:`invariant_operations`).
    """
    group = np.asarray(rotations, dtype=float)
    random = np.random.default_rng(SEED)
    for count in (1, 2):
        draws = random.normal(size=(DRAWS, count, 3))
        images = np.einsum("sij,dkj->dski", group, draws)
        gram = np.einsum("dski,dskj->dij", images, images) / len(group)
        values, vectors = np.linalg.eigh(gram)
        quality = values[:, 0] / values[:, 2]
        best = int(quality.argmax())
        if quality[best] > LEAST_FIELD_EIGENVALUE:
            root = (vectors[best] / np.sqrt(values[best])) @ vectors[best].T
            return draws[best] @ root
    return np.eye(3)


def complete_polarizability(products: ArrayLike, directions: ArrayLike, rotations: ArrayLike) -> FloatArray:
    """Return α (3, 3) from products α·v_k (k, 3)."""
    group = np.asarray(rotations, dtype=float)
    images = np.einsum("sij,kj->ski", group, np.asarray(directions, dtype=float))
    gram = np.einsum("ski,skj->ij", images, images)
    values = np.einsum("sij,kj->ski", group, np.asarray(products, dtype=float))
    return np.linalg.solve(gram, np.einsum("ski,skj->ij", images, values))


def complete_born_charges(
    products: ArrayLike, directions: ArrayLike, rotations: ArrayLike, permutations: ArrayLike
) -> FloatArray:
    """Return Z* (n, 3, 3) as [atom, polarization, displacement] from products v_k·Z* of shape (n, k, 3).

    Z*_{p(κ)} = R Z*_κ Rᵀ, where the operation brings atom κ on p(κ).
    """
    group = np.asarray(rotations, dtype=float)
    source = np.argsort(np.asarray(permutations), axis=1)
    values = np.asarray(products, dtype=float)
    images = np.einsum("sij,kj->ski", group, np.asarray(directions, dtype=float))
    gram = np.einsum("ski,skj->ij", images, images)
    turned = np.einsum("snkb,sjb->snkj", values[source], group)
    return np.einsum("il,nlj->nij", np.linalg.inv(gram), np.einsum("ski,snkj->nij", images, turned))


@dataclass(frozen=True)
class DisplacementDirections:
    """Displacements that determine the Hessian.

    Attributes:
        vectors: (m, n, 3) without a translational part.
        gram: (3n, 3n) matrix G, the projector on all but the translations up to rounding.
    """

    vectors: FloatArray
    gram: FloatArray


def displacement_directions(rotations: ArrayLike, permutations: ArrayLike) -> DisplacementDirections:
    """Return displacements of all atoms whose images under the space group span all but the translations.

    Args:
        rotations: (s, 3, 3) orthogonal matrices in the Cartesian frame.
        permutations: (s, n) atom on which operation s brings each atom.
    """
    group, permuted = np.asarray(rotations, dtype=float), np.asarray(permutations)
    operations, n = permuted.shape
    space = 3 * (n - 1)
    translations = np.kron(np.full((n, n), 1.0 / n), np.eye(3))
    if space == 0:
        return DisplacementDirections(np.zeros((0, n, 3)), np.zeros((3, 3)))
    random = np.random.default_rng(SEED)
    count = -(-space // operations)
    while count < space:
        for _ in range(ATTEMPTS):
            vectors = random.normal(size=(count, n, 3))
            vectors -= vectors.mean(axis=1, keepdims=True)
            gram = _gram(vectors, group, permuted)
            if not _is_definite(gram + translations * np.trace(gram) / space):
                break
            values, basis = np.linalg.eigh(gram)
            if values[3] > LEAST_EIGENVALUE * values[-1]:
                root = (basis[:, 3:] / np.sqrt(values[3:])) @ basis[:, 3:].T
                vectors = (vectors.reshape(count, -1) @ root).reshape(count, n, 3)
                return DisplacementDirections(vectors, _gram(vectors, group, permuted))
            if values[3] < SINGULAR * values[-1]:
                break
        count += 1
    return DisplacementDirections(_relative_displacements(n), np.eye(3 * n) - translations)


def complete_hessian(
    products: ArrayLike, directions: DisplacementDirections, rotations: ArrayLike, permutations: ArrayLike
) -> FloatArray:
    """Return the Hessian (3n, 3n), symmetrized, from its products with the displacements, (m, n, 3).

    Translations, which no crystal resists, complete the space: H T = 0.
    """
    group, permuted = np.asarray(rotations, dtype=float), np.asarray(permutations)
    n = permuted.shape[1]
    if n == 1:
        return np.zeros((3, 3))
    if len(directions.vectors) == 3 * (n - 1):
        group, permuted = np.eye(3)[None], np.arange(n)[None]
    images = _images(directions.vectors, group, permuted)
    moment = images.T @ _images(np.asarray(products, dtype=float), group, permuted) / len(group)
    # G is the identity up to rounding: one step of Newton's iteration inverts it
    hessian = 2.0 * moment - directions.gram @ moment
    return 0.5 * (hessian + hessian.T)


def invariant_operations(rotations: ArrayLike, field: ArrayLike) -> NDArray[np.bool_]:
    """Return which operations leave a field (3,) invariant, R 𝓔 = 𝓔; all of them at zero field."""
    vector = np.asarray(field, dtype=float)
    change = np.abs(np.asarray(rotations) @ vector - vector).max(axis=1)
    return change <= 1e-9 * np.linalg.norm(vector)


def _images(vectors: FloatArray, rotations: FloatArray, permutations: NDArray[np.intp]) -> FloatArray:
    """Return all D_s v_k as rows, (s·k, 3n)."""
    operations, n = permutations.shape
    source = np.argsort(permutations, axis=1)
    moved = vectors[:, source].transpose(1, 0, 2, 3).reshape(operations, -1, 3)
    return (moved @ rotations.transpose(0, 2, 1)).reshape(-1, 3 * n)


def _gram(vectors: FloatArray, rotations: FloatArray, permutations: NDArray[np.intp]) -> FloatArray:
    images = _images(vectors, rotations, permutations)
    return images.T @ images / len(rotations)


def _is_definite(matrix: FloatArray) -> bool:
    """Return whether a Cholesky factorization goes through, a cheap look before the eigenvalues."""
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return False
    return True


def _relative_displacements(n: int) -> FloatArray:
    """Return 3(n − 1) orthonormal displacements without translation: atom i + 1 against the mean of those before."""
    helmert = np.zeros((n - 1, n))
    for row in range(1, n):
        helmert[row - 1, :row] = 1.0
        helmert[row - 1, row] = -row
        helmert[row - 1] /= np.sqrt(row * (row + 1))
    return np.einsum("rn,ij->rinj", helmert, np.eye(3)).reshape(3 * (n - 1), n, 3)
