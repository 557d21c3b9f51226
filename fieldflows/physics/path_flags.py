"""What makes a spontaneous polarization doubtful: numbers against limits, each with its sentence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fieldflows.physics.branches import Branch
from fieldflows.physics.distortion import PathWarning
from fieldflows.physics.polarization import to_microcoulomb_per_cm2

FloatArray = NDArray[np.float64]

HALF_QUANTUM = 0.02
"""Distance of formal fractions from whole numbers above which a nonpolar end counts as being off zero."""
OPPOSED = 0.3
"""Share of the typical contribution that an atom must have, against the others, to count as antiparallel."""


@dataclass(frozen=True)
class PathDoubts:
    """Limits of what is beyond doubt.

    Attributes:
        step: Largest step of P from frame to frame, in quanta.
        second_difference: Largest second difference of P along the path, in quanta.
        margin: Smallest distance of the estimate from the edge between two branches, in quanta.
        disagreement: Largest distance of two ways to P_s, relative to the larger one.
        least_disagreement: The same in µC/cm²; below it no disagreement is flagged.
        spread: Largest half distance between the estimates from the charges of one end, relative to their mean.
        small: Smallest |P_s| in µC/cm² that is no zero.
    """

    step: float = 0.35
    second_difference: float = 0.15
    margin: float = 0.1
    disagreement: float = 0.25
    least_disagreement: float = 3.0
    spread: float = 0.5
    small: float = 0.1

    def branch(self, branch: Branch) -> list[PathWarning]:
        """Return what is doubtful about the branch that was followed."""
        found = []
        if branch.max_step > self.step:
            message = (
                f"a step of {branch.max_step:.3f} quantum from frame {branch.large_steps(self.step)[0]} is too large "
                f"to tell the branch; at most {self.step:g} is beyond doubt"
            )
            found.append(PathWarning("large_step", message, branch.max_step, self.step))
        bend = branch.max_second_difference
        if bend > self.second_difference:
            message = f"the branch is broken: the second difference along the path is {bend:.3f} quantum"
            found.append(PathWarning("broken_branch", message, bend, self.second_difference))
        return found

    def agreement(
        self, from_charges: ArrayLike, on_branch: ArrayLike, added: ArrayLike, margin: float
    ) -> list[PathWarning]:
        """Return what is doubtful about two ways to P_s.

        Args:
            from_charges: (3,) P_s by the Born charges of the ends, e/Å².
            on_branch: (3,) the difference of P on the branch nearest to it, e/Å².
            added: (3,) whole quanta that were added to the difference.
            margin: As in :func:`fieldflows.physics.branches.nearest_branch`.
        """
        found = []
        ways = to_microcoulomb_per_cm2(np.array([from_charges, on_branch], dtype=float))
        quanta = np.asarray(added)
        if quanta.any():
            message = (
                f"the model's P ends on another branch than its Born charges say, {quanta.astype(int).tolist()} quanta "
                "away: its difference alone is not P_s"
            )
            found.append(PathWarning("branch_by_charges", message, float(np.abs(quanta).max()), 0.0))
        if margin < self.margin:
            message = f"the Born charges lie {margin:.3f} quantum from the edge between two branches of the model's P"
            found.append(PathWarning("branch_margin", message, margin, self.margin))
        apart = float(np.linalg.norm(ways[0] - ways[1]))
        limit = max(self.least_disagreement, self.disagreement * float(np.linalg.norm(ways, axis=1).max()))
        if apart > limit:
            message = f"P_s from Born charges and from P on their branch are {apart:.1f} µC/cm² apart"
            found.append(PathWarning("disagreement", message, apart, limit))
        return found

    def spread_of(self, norm: float, spread: float) -> list[PathWarning]:
        """Return a warning if the Born charges change too much between the ends for their mean, both in µC/cm²."""
        limit = max(self.least_disagreement, self.spread * norm)
        if spread <= limit:
            return []
        message = f"the Born charges change along the path: those of either end give {spread:.1f} µC/cm² more or less"
        return [PathWarning("charges_change", message, spread, limit)]

    def size(self, norm: float) -> list[PathWarning]:
        """Return a warning if |P_s|, in µC/cm², is nothing."""
        if norm >= self.small:
            return []
        message = f"|P_s| is {norm:.2g} µC/cm²: the distortion carries no polarization"
        return [PathWarning("small_polarization", message, norm, self.small)]


def reference_offset(fractions: ArrayLike | None) -> list[PathWarning]:
    """Return a warning if formal charges put the nonpolar end on a branch that does not hold zero.

    Args:
        fractions: (3,) f of the nonpolar end in quanta, modulo 1; None if there are no formal charges.
    """
    if fractions is None:
        return []
    offset = np.abs(np.asarray(fractions, dtype=float))
    offset = np.abs(offset - np.round(offset))
    if offset.max() <= HALF_QUANTUM:
        return []
    message = (
        f"for formal charges the nonpolar end lies {offset.max():.3g} quantum off zero: P of the polar end modulo "
        "quanta is not P_s, and a single-valued P, zero there by symmetry, is on another branch"
    )
    return [PathWarning("half_quantum_reference", message, float(offset.max()), HALF_QUANTUM)]


def antiparallel(
    charges: ArrayLike, displacements: ArrayLike, sites: ArrayLike, direction: ArrayLike
) -> list[PathWarning]:
    """Return a warning if copies of one atom of the nonpolar crystal contribute against each other.

    A polar cell may hold several primitive cells of the nonpolar crystal; where these are polarized against each other,
    in part, the cell holds domains, and its mean polarization is that of none of them.

    Args:
        charges: (n, 3, 3) Born charges in e, mean of both ends.
        displacements: (n, 3) in Å, without mean.
        sites: (n,) the atom of the nonpolar primitive cell that each atom comes from.
        direction: (3,) of P_s.
    """
    length = float(np.linalg.norm(np.asarray(direction, dtype=float)))
    if length < 1e-12:
        return []
    unit = np.asarray(direction, dtype=float) / length
    shares = np.einsum("i,nij,nj->n", unit, np.asarray(charges, dtype=float), np.asarray(displacements, dtype=float))
    places = np.asarray(sites)
    typical = float(np.abs(shares).max())
    opposed = 0
    for site in np.unique(places):
        members = shares[places == site]
        strong = members[np.abs(members) > OPPOSED * typical]
        opposed += min(int((strong > 0).sum()), int((strong < 0).sum()))
    if not opposed:
        return []
    message = (
        f"{opposed} atoms move against copies of themselves in other nonpolar cells: the polar cell holds antiparallel "
        "domains, and P_s is their mean"
    )
    return [PathWarning("antiparallel", message, float(opposed), 0.0)]


def polar_end_higher(difference: float) -> list[PathWarning]:
    """Return a warning if the polar end is higher, by a difference in eV per formula unit."""
    if difference <= 0:
        return []
    message = (
        f"the polar end lies {1000 * difference:.1f} meV per formula unit above the nonpolar one: it is no ground state"
    )
    return [PathWarning("polar_end_higher", message, difference, 0.0)]
