"""Rigid shifts of one crystal against another for which the symmetry operations of the one are those of the other.

A target has the operations x → W x + w.  A reference crystal with lattice Λ that is shifted by δ has such an operation
too if it has one with the same W, x → W x + w − v, and

    (1 − W) δ = v + T,     T ∈ Λ.

The component of δ along directions that all W leave as they are is free; a polar group has such a direction.
"""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import null_space

from fieldflows.physics.bare import BareCrystal, shortest_differences

FloatArray = NDArray[np.float64]

TOLERANCE = 0.1
"""Largest distance in Å by which an operation may miss atoms of the reference."""
STEPS = np.array(list(product((-1, 0, 1), repeat=3)), dtype=float)


def symmetric_shifts(
    reference: BareCrystal, matrix: FloatArray, rotations: FloatArray, translations: FloatArray, starts: FloatArray
) -> FloatArray:
    """Return shifts (k, 3), fractional in the cell of the target, near which the operations of the target hold.

    Args:
        reference: Primitive.
        matrix: H, integer: the cell of the target is H · reference.cell but for the stretch.
        rotations: (s, 3, 3) W of the target, for columns of fractional coordinates.
        translations: (s, 3) w of the target.
        starts: (m, 3) shifts from which the free component is taken.
    """
    inverse = np.linalg.inv(matrix)
    # in the basis of the reference its lattice is that of the integers; rows are multiplied from the right
    first = np.unique(rotations.reshape(-1, 9), axis=0, return_index=True)[1]
    operations = [(inverse @ rotations[s].T @ matrix, translations[s] @ matrix) for s in sorted(first)]
    operations = [item for item in operations if np.abs(item[0] - np.eye(3)).max() > 1e-6]
    offsets = [_offset(reference, action, move) for action, move in operations]
    if not operations or any(offset is None for offset in offsets):
        return np.zeros((0, 3))
    chosen = _generators([action for action, _ in operations])
    system = np.vstack([(np.eye(3) - operations[i][0]).T for i in chosen])
    steps = np.array([np.concatenate(item) for item in product(STEPS, repeat=len(chosen))])
    wanted = np.concatenate([offsets[i] for i in chosen])[None, :] + steps
    shifts = wanted @ np.linalg.pinv(system).T
    exact = np.abs(shifts @ system.T - wanted).max(axis=1) * np.linalg.norm(reference.cell, axis=1).max() < TOLERANCE
    free = null_space(system, rcond=1e-6)
    fixed = shifts[exact] - shifts[exact] @ free @ free.T
    starts = starts @ matrix
    candidates = [shift + (start - shift) @ free @ free.T for shift in _distinct(fixed, reference) for start in starts]
    return _distinct(np.array(candidates).reshape(-1, 3), reference) @ inverse


def _distinct(shifts: FloatArray, reference: BareCrystal) -> FloatArray:
    """Return shifts of which no two are the same modulo the lattice, within 0.02 Å."""
    found = np.zeros((0, 3))
    for shift in shifts:
        gaps = found - shift
        if not (np.linalg.norm((gaps - np.round(gaps)) @ reference.cell, axis=1) < 0.02).any():
            found = np.vstack([found, shift])
    return found


def _offset(reference: BareCrystal, action: FloatArray, move: FloatArray) -> FloatArray | None:
    """Return v for which x → x·action + move − v maps the reference on itself; None if there is none."""
    if np.abs(action - np.round(action)).max() > 1e-6:
        return None
    images = reference.fractional @ action + move
    kinds, counts = np.unique(reference.numbers, return_counts=True)
    rarest = reference.fractional[reference.numbers == kinds[counts.argmin()]]
    first = images[reference.numbers == kinds[counts.argmin()]][0]
    for offset in first - rarest:
        if all(
            np.linalg.norm(
                shortest_differences(
                    reference.cell, images[reference.numbers == kind] - offset,
                    reference.fractional[reference.numbers == kind],
                ),
                axis=2,
            ).min(axis=1).max() < TOLERANCE
            for kind in kinds
        ):  # fmt: skip
            return np.asarray(offset - np.round(offset))
    return None


def _generators(actions: list[FloatArray]) -> list[int]:
    """Return the places of one or two operations that generate all."""
    for count in (1, 2):
        for chosen in combinations(range(len(actions)), count):
            if _order([actions[i] for i in chosen]) >= len(actions) + 1:
                return list(chosen)
    return list(range(min(2, len(actions))))


def _order(generators: list[FloatArray]) -> int:
    """Return the number of operations that some generate; at most 48 rotations are possible."""
    group = [np.eye(3)]
    for element in group:
        for generator in generators:
            new = element @ generator
            if len(group) <= 48 and not any(np.abs(new - known).max() < 1e-6 for known in group):
                group.append(new)
    return len(group)
