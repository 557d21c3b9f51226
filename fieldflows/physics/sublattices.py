"""Lattices that are one but for a small stretch: integer combinations of vectors that fit a given cell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import polar

FloatArray = NDArray[np.float64]

_EDGES = ((0, 1), (0, 2), (1, 2))


def stretch_of(start: FloatArray, end: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return Q and S with end = start Qᵀ S: rotation of the start, then a symmetric stretch; cells are rows."""
    rotation, stretch = polar(np.linalg.solve(start, end), side="right")
    return rotation.T, stretch


def strain_norm(strain: FloatArray) -> float:
    """Return √tr (S − 1)²."""
    return float(np.linalg.norm(strain))


def candidate_cells(reference: FloatArray, target: FloatArray, multiple: int, largest: float) -> list[FloatArray]:
    """Return all integer matrices H, det ±multiple, for which H·reference is the target but for a small stretch.

    Every principal stretch lies between 1/(1 + largest) and 1 + largest, and handedness is kept.  Sorted by strain.

    Args:
        reference: (3, 3) primitive reduced cell, rows, in Å.
        target: (3, 3) reduced cell, rows, in Å.
        multiple: Number of reference cells in the target.
        largest: Largest strain.
    """
    points, vectors, lengths = _lattice_points(reference, np.linalg.norm(target, axis=1).max() * (1 + largest))
    shells = []
    for length in np.linalg.norm(target, axis=1):
        ratio = lengths / length
        shells.append(np.flatnonzero((ratio <= 1 + largest + 1e-9) & (ratio >= 1 / (1 + largest) - 1e-9)))
    units = vectors / lengths[:, None]
    # a stretch that changes lengths by 1 + e turns no two vectors by more than this against each other
    angle = 4 * (np.arctan(1 + largest) - np.pi / 4)
    goal = multiple * np.sign(np.linalg.det(target) * np.linalg.det(reference))
    corners = [_angle_fits(units[shells[i]], units[shells[j]], target[i], target[j], angle) for i, j in _EDGES]
    found: list[FloatArray] = []
    for first, second in np.argwhere(corners[0]):
        third = shells[2][corners[1][first] & corners[2][second]]
        area = np.cross(points[shells[0][first]], points[shells[1][second]])
        third = third[np.rint(points[third] @ area) == goal]
        if len(third):
            pair = np.broadcast_to(points[[shells[0][first], shells[1][second]]], (len(third), 2, 3))
            found.append(np.concatenate([pair, points[third][:, None, :]], axis=1))
    if not found:
        return []
    matrices = np.concatenate(found)
    stretches = np.linalg.svd(np.linalg.solve(matrices @ reference, target[None]), compute_uv=False)
    small = (stretches.max(axis=1) <= 1 + largest) & (stretches.min(axis=1) >= 1 / (1 + largest))
    matrices, norms = matrices[small], np.linalg.norm(stretches[small] - 1, axis=1).round(10)
    order = np.lexsort((*matrices.reshape(-1, 9).T[::-1], norms))
    return list(matrices[order])


def _lattice_points(cell: FloatArray, radius: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return integer coordinates, vectors in Å and lengths of the points of a lattice around the origin, without it."""
    extent = np.floor(radius * np.linalg.norm(np.linalg.inv(cell), axis=0) + 1e-9).astype(int)
    axes = [np.arange(-n, n + 1) for n in extent]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3).astype(float)
    lengths = np.linalg.norm(points @ cell, axis=1)
    near = (lengths > 1e-6) & (lengths <= radius + 1e-9)
    return points[near], points[near] @ cell, lengths[near]


def _angle_fits(
    first: FloatArray, second: FloatArray, one: FloatArray, other: FloatArray, tolerance: float
) -> NDArray[np.bool_]:
    """Return (n, m) whether unit vectors enclose the angle of two vectors, within a tolerance in radians."""
    wanted = np.arccos(np.clip(one @ other / np.linalg.norm(one) / np.linalg.norm(other), -1, 1))
    return np.abs(np.arccos(np.clip(first @ second.T, -1, 1)) - wanted) <= tolerance + 1e-9


def distinct_cells(cells: list[FloatArray], rotations: FloatArray) -> list[FloatArray]:
    """Return one of those cells that differ by a proper rotation of the reference crystal; the first stays.

    Args:
        cells: Integer matrices H.
        rotations: (s, 3, 3) proper rotations W of the reference in its own basis (columns of coordinates).
    """
    proper = np.rint(rotations).transpose(0, 2, 1)
    seen: set[bytes] = set()
    result = []
    for matrix in cells:
        if matrix.astype(np.int64).tobytes() in seen:
            continue
        result.append(matrix)
        seen.update(item.tobytes() for item in np.rint(matrix @ proper).astype(np.int64))
    return result
