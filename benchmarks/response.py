"""Response and Hessian of the package against the naive reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from ase import Atoms

from benchmarks import reference
from benchmarks.timing import Timing, interleave, summarize
from fieldflows.backends.mace_field.model import MACEFieldModel

RESPONSE = ("energy", "forces", "stress", "polarization", "born_effective_charges", "polarizability")


def largest_difference(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Return the largest difference relative to the largest component of each array.

    Arrays that vanish (a polarization that symmetry forbids) are compared on the scale of 1e-6 in internal units.
    """
    return max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-6)) for a, b in zip(expected, found, strict=True))


def measure(
    model: MACEFieldModel, crystals: dict[str, Atoms], repeats: int, tasks: Sequence[str] = ("response", "hessian")
) -> Iterator[Timing]:
    """Yield one timing per task and crystal; both sides start from an ``ase.Atoms``, neighbor list included."""
    for task in tasks:
        for tag, atoms in crystals.items():
            if task == "response":
                naive = lambda atoms=atoms: reference.response(model, atoms)  # noqa: E731
                product = lambda atoms=atoms: model.evaluate(atoms, observables=RESPONSE)  # noqa: E731
                expected = [value.numpy() for value in naive().values()]
                found = [np.asarray(product().get(name)) for name in RESPONSE]
            else:
                naive = lambda atoms=atoms: reference.hessian(model, atoms)  # noqa: E731
                product = lambda atoms=atoms: model.evaluate(atoms, observables=("hessian",))  # noqa: E731
                expected, found = [naive().numpy()], [product().get("hessian")]
            times = interleave(naive, product, repeats)
            yield summarize(task, tag, len(atoms), *times, largest_difference(expected, found))
