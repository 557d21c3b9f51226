"""The pipeline to ε_ion: primitive cell, symmetry, neighbors, Hessian, response, modes, permittivities."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from benchmarks import baseline
from benchmarks.agreement import largest, relative_difference
from benchmarks.cases import primitive
from benchmarks.response import ANY, SYMMETRIC, forget_crystals, subject
from benchmarks.timing import Estimate, Side, Timing, interleave, summarize
from fieldflows.backends.base import Response
from fieldflows.backends.mace_field.model import MACEFieldModel
from fieldflows.physics import born_charges, dielectric, phonons
from fieldflows.properties.dielectric import DielectricProperty, DielectricSettings
from fieldflows.properties.run import run_property
from fieldflows.schemas.dielectric import DielectricDocument
from fieldflows.units import SQRT_EV_PER_A2_AMU_TO_THZ

SETTINGS = {
    ANY: DielectricSettings(ionic=True, allow_unstable=True, use_symmetry=False),
    SYMMETRIC: DielectricSettings(ionic=True, allow_unstable=True, use_symmetry=True),
}
"""Random weights leave crystals unstable; the sum over modes is done nevertheless, on both sides."""


@dataclass(frozen=True)
class Baseline:
    """Results of the baseline, and how long it took, or would have taken, in seconds."""

    electronic: np.ndarray
    charges: np.ndarray
    rows: baseline.Rows
    omega_squared: np.ndarray | None
    ionic: np.ndarray | None
    seconds: float


def pipeline(model: MACEFieldModel, atoms: Atoms, rows: int | None = None) -> Baseline:
    """Carry out the baseline's pipeline on a primitive cell.

    Args:
        model: Its network is evaluated, nothing else.
        atoms: The primitive cell.
        rows: Compute only so many rows of the Hessian; modes are then left out, and so is their time.
    """
    start = time.perf_counter()
    values = baseline.one(baseline.response(model.network, atoms))
    electronic = dielectric.electronic_permittivity(values["polarizability"])
    charges = born_charges.enforce_acoustic_sum(values["born_effective_charges"])
    middle = time.perf_counter()
    hessian = baseline.hessian_rows(model.network, atoms, rows)
    after = time.perf_counter()
    omega_squared = ionic = None
    if hessian.complete:
        matrix = 0.5 * (hessian.values + hessian.values.T)
        modes = phonons.gamma_modes(matrix, atoms.get_masses(), charges)
        omega_squared = modes.omega_squared
        ionic = dielectric.ionic_permittivity(charges, matrix, atoms.get_volume())
    seconds = middle - start + hessian.seconds + time.perf_counter() - after
    return Baseline(electronic, charges, hessian, omega_squared, ionic, seconds)


def product(
    model: MACEFieldModel, atoms: Atoms, settings: DielectricSettings
) -> tuple[DielectricDocument, Sequence[Response]]:
    """Carry out the package's pipeline, from a crystal to its document; the responses that it was made of come along.

    Raises:
        RuntimeError: If the package answered with a failure.
    """
    responses: list[Response] = []
    (outcome,) = run_property(
        DielectricProperty(settings), [atoms], model, on_responses=lambda _, found: responses.extend(found)
    )
    if not isinstance(outcome, DielectricDocument):
        raise RuntimeError(f"The package failed: {outcome.message}")
    return outcome, responses


def difference(expected: Baseline, result: tuple[DielectricDocument, Sequence[Response]]) -> float:
    """Return the largest relative difference of ε∞, Z*, rows of H, ω² and ε_ion, those that the baseline has."""
    found, responses = result
    hessian = np.asarray(responses[-1].get("hessian"))
    parts: list[float] = [
        relative_difference("epsilon", expected.electronic, np.asarray(found.epsilon_electronic)),
        relative_difference(
            "born_effective_charges",
            expected.charges,
            born_charges.enforce_acoustic_sum(np.asarray(found.born_effective_charges)),
        ),
        relative_difference("hessian", expected.rows.values, hessian[list(expected.rows.indices)]),
    ]
    if expected.omega_squared is not None and found.modes is not None:
        frequencies = np.asarray(found.modes.frequencies_thz)
        ours = np.sort(np.sign(frequencies) * (frequencies / SQRT_EV_PER_A2_AMU_TO_THZ) ** 2)
        parts.append(relative_difference("omega_squared", np.sort(expected.omega_squared), ours))
    if expected.ionic is not None and found.epsilon_ionic is not None:
        parts.append(relative_difference("epsilon", expected.ionic, np.asarray(found.epsilon_ionic)))
    return largest(parts)


def measure_ionic(
    model: MACEFieldModel, crystals: Mapping[str, Atoms], repeats: int, rows: int | None = None
) -> Iterator[Timing]:
    """Yield the pipeline per crystal; every side is given the primitive cell.

    Where the baseline extrapolates from some rows, these are compared, and no ω² and ε_ion.
    """
    for tag, conventional in crystals.items():
        atoms = primitive(conventional)
        sides: dict[str, Side] = {name: _fresh(model, atoms, settings) for name, settings in SETTINGS.items()}
        sides["baseline"] = lambda a=atoms: Estimate(pipeline(model, a, rows).seconds)
        expected = pipeline(model, atoms, rows)
        differences = {name: difference(expected, product(model, atoms, item)) for name, item in SETTINGS.items()}
        times = interleave(sides, repeats)
        total = 3 * len(atoms)
        part = None if rows is None or total <= 4 * rows else (rows, total)
        for name in SETTINGS:
            yield summarize("ionic", subject(tag, atoms), name, times["baseline"], times[name], differences[name], part)


def _fresh(model: MACEFieldModel, atoms: Atoms, settings: DielectricSettings) -> Side:
    def run() -> None:
        forget_crystals()
        document, _ = product(model, atoms, settings)
        if document.modes is None:
            raise RuntimeError("The pipeline gave no modes.")

    return run
