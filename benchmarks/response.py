"""Response and Hessian of the package against the baseline."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ase import Atoms

from benchmarks import baseline
from benchmarks.agreement import largest, relative_difference, response_difference
from benchmarks.baseline import RESPONSE
from benchmarks.cases import primitive
from benchmarks.timing import Estimate, Side, Timing, interleave, summarize
from fieldflows.backends.mace_field.model import MACEFieldModel
from fieldflows.backends.symmetric import SymmetricModel

ANY, SYMMETRIC = "any structure", "with symmetry"


def subject(tag: str, atoms: Atoms) -> tuple[str, str, int]:
    """Return tag, formula and number of atoms."""
    return tag, atoms.get_chemical_formula(empirical=True), len(atoms)


def variants(model: MACEFieldModel) -> dict[str, Any]:
    """Return the ways in which the package evaluates: as given, and with the symmetry of the crystal."""
    return {ANY: model, SYMMETRIC: SymmetricModel(model)}


def forget_crystals() -> None:
    """Empty what the package remembers about crystals that it has seen; in a screening each comes once."""
    for name in ("fieldflows.physics.symmetry", "fieldflows.physics.directions", "fieldflows.backends.symmetric"):
        module = sys.modules.get(name)
        for item in vars(module).values() if module else ():
            if hasattr(item, "cache_clear"):
                item.cache_clear()


def fresh(model: Any, atoms: Atoms, observables: tuple[str, ...]) -> Callable[[], Any]:
    """Return an evaluation of a crystal that nobody has seen before."""

    def evaluate() -> Any:
        forget_crystals()
        return model.evaluate(atoms, observables=observables)

    return evaluate


def measure_response(model: MACEFieldModel, crystals: Mapping[str, Atoms], repeats: int) -> Iterator[Timing]:
    """Yield E, F, stress, P, Z* and α per crystal; every side starts from the ``ase.Atoms`` of the primitive cell."""
    for tag, conventional in crystals.items():
        atoms = primitive(conventional)
        models = variants(model)
        sides: dict[str, Side] = {name: fresh(m, atoms, RESPONSE) for name, m in models.items()}
        sides["baseline"] = lambda a=atoms: baseline.response(model.network, a)
        expected = baseline.one(baseline.response(model.network, atoms))
        difference = {name: response_difference(expected, sides[name]()) for name in models}
        times = interleave(sides, repeats)
        for name in models:
            yield summarize("response", subject(tag, atoms), name, times["baseline"], times[name], difference[name])


def measure_hessian(
    model: MACEFieldModel, crystals: Mapping[str, Atoms], repeats: int, rows: int | None = None
) -> Iterator[Timing]:
    """Yield the Hessian per primitive cell; the baseline goes row by row, or extrapolates from some rows."""
    for tag, conventional in crystals.items():
        atoms = primitive(conventional)
        models = variants(model)
        sides: dict[str, Side] = {name: fresh(m, atoms, ("hessian",)) for name, m in models.items()}
        sides["baseline"] = lambda a=atoms: Estimate(baseline.hessian_rows(model.network, a, rows).seconds)
        expected = baseline.hessian_rows(model.network, atoms, rows)
        difference = {
            name: relative_difference("hessian", expected.values, sides[name]().hessian[list(expected.indices)])
            for name in models
        }
        times = interleave(sides, repeats)
        part = None if expected.complete else (len(expected.indices), 3 * len(atoms))
        for name in models:
            yield summarize(
                "hessian", subject(tag, atoms), name, times["baseline"], times[name], difference[name], part
            )


def measure_scripted(model: MACEFieldModel, crystals: Mapping[str, Atoms], repeats: int) -> Iterator[Timing]:
    """Yield the response of the baseline against itself with modules compiled by TorchScript.

    mace-torch compiles e3nn's modules by default; the baseline does not.  This shows that it loses nothing by it.
    """
    twin = baseline.scripted(model.network)
    for tag, atoms in crystals.items():
        sides: dict[str, Side] = {
            "baseline": lambda a=atoms: baseline.response(model.network, a),
            "scripted": lambda a=atoms: baseline.response(twin, a),
        }
        for _ in range(3):  # TorchScript specializes in its first calls
            found = baseline.one(baseline.response(twin, atoms))
        expected = baseline.one(baseline.response(model.network, atoms))
        difference = largest(relative_difference(name, expected[name], found[name]) for name in expected)
        times = interleave(sides, repeats)
        yield summarize(
            "scripted", subject(tag, atoms), "TorchScript", times["baseline"], times["scripted"], difference
        )
