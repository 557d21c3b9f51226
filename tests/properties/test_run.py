"""Many structures at once: order, batches, isolation of failures, interrupts."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from pymatgen.core import Lattice, Structure

from fieldflows.backends.base import Response
from fieldflows.backends.toy import ToyModel
from fieldflows.properties.base import PropertyInput
from fieldflows.properties.dielectric import DielectricProperty, DielectricSettings
from fieldflows.properties.run import run_property
from fieldflows.schemas.dielectric import DielectricDocument
from fieldflows.schemas.failure import FailureDocument
from fieldflows.testing import structures


class Recorder:
    """The toy model, which writes down the sizes of its batches and can be made to fail."""

    def __init__(self, fail=None, elements=None):
        self.toy = ToyModel()
        self.batches = []
        self.fail = fail or (lambda crystals: None)
        self.elements = elements

    @property
    def info(self):
        from dataclasses import replace

        return replace(self.toy.info, elements=self.elements) if self.elements else self.toy.info

    def evaluate(self, crystals, fields=None, observables=()):
        self.batches.append(len(crystals))
        self.fail(crystals)
        return self.toy.evaluate(crystals, fields, observables)


def run(items, model=None, **options):
    return run_property(DielectricProperty(), items, model or Recorder(), **options)


GOOD = [
    structures.rocksalt_mgo(),
    structures.cesium_chloride(),
    structures.wurtzite_zno(),
    structures.zincblende_gaas(),
]


def broken():
    """Return crystals that cannot be computed, each with a word of the message."""
    base = structures.rocksalt_mgo
    nan = base()
    nan.positions[1, 2] = np.nan
    overlapping = base()
    overlapping.positions[1] = overlapping.positions[0] + [0.05, 0, 0]
    flat = base()
    flat.set_cell([[4, 0, 0], [0, 4, 0], [4, 4, 0]])
    bohr = base()
    bohr.set_cell(bohr.cell[:] * 0.1, scale_atoms=True)
    return {
        "no atoms": Atoms(cell=[4, 4, 4], pbc=True),
        "not finite": nan,
        "apart": overlapping,
        "zero volume": flat,
        "per atom": bohr,
        "not periodic": Atoms("H2O", positions=[[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]]),
        "partially occupied": Structure(Lattice.cubic(4.2), [{"Na": 0.5, "K": 0.5}, "Cl"], [[0, 0, 0], [0.5] * 3]),
        "found str": "POSCAR",
    }


def test_broken_structures_fail_alone_and_in_place():
    bad = broken()
    items = [GOOD[0], *bad.values(), GOOD[1]]
    outcomes = run(items)
    assert len(outcomes) == len(items)
    assert [o.formula_pretty for o in (outcomes[0], outcomes[-1])] == ["MgO", "CsCl"]
    for index, (word, outcome) in enumerate(zip(bad, outcomes[1:-1], strict=True), start=1):
        assert isinstance(outcome, FailureDocument), word
        assert word in outcome.message
        assert (outcome.stage, outcome.error_type, outcome.index) == ("plan", "StructureError", index)
        assert outcome.task == "dielectric"


def test_unknown_elements_fail_before_any_evaluation():
    model = Recorder(elements=("Mg", "O"))
    outcomes = run(GOOD, model)
    assert [type(o).__name__ for o in outcomes] == ["DielectricDocument"] + ["FailureDocument"] * 3
    assert outcomes[1].error_type == "UnknownElementError"
    assert "Cl, Cs" in outcomes[1].message
    assert outcomes[1].formula == "CsCl"
    assert model.batches == [1]


def test_failure_keeps_source_and_key():
    item = PropertyInput(GOOD[1], material_id="mp-22865", source="CsCl.cif", index=17)
    failure = run([item], Recorder(elements=("Mg",)))[0]
    assert (failure.source, failure.index, failure.material_id) == ("CsCl.cif", 17, "mp-22865")
    assert failure.key == run([item])[0].key


def test_batches_are_limited_by_atoms_and_by_structures():
    model = Recorder()
    run(GOOD, model, max_batch_atoms=6)  # 2 + 2, 4 + 2 atoms
    assert model.batches == [2, 2]
    model = Recorder()
    run(GOOD, model, max_batch_structures=3)
    assert model.batches == [3, 1]
    model = Recorder()
    run(GOOD, model, max_batch_atoms=1)  # a structure that alone is too big is computed all the same
    assert model.batches == [1, 1, 1, 1]


def test_pooled_results_are_those_of_single_runs():
    pooled, single = run(GOOD), [run([atoms])[0] for atoms in GOOD]
    for left, right in zip(pooled, single, strict=True):
        assert left.key == right.key
        assert np.array(left.epsilon_total) == pytest.approx(np.array(right.epsilon_total), rel=1e-12)


def test_a_batch_that_fails_is_split_until_the_culprit_is_alone():
    def fail(crystals):
        if any("Cs" in atoms.get_chemical_symbols() for atoms in crystals):
            raise RuntimeError("CUDA error: out of memory")

    model = Recorder(fail)
    outcomes = run(GOOD, model)
    assert [type(o) for o in outcomes] == [DielectricDocument, FailureDocument, DielectricDocument, DielectricDocument]
    assert outcomes[1].stage == "evaluate"
    assert outcomes[1].message == "RuntimeError: CUDA error: out of memory"
    assert model.batches == [4, 2, 1, 1, 2]


def test_a_batch_too_big_for_memory_is_done_in_parts():
    def fail(crystals):
        if len(crystals) > 1:
            raise MemoryError

    assert all(isinstance(o, DielectricDocument) for o in run(GOOD, Recorder(fail)))


def test_answers_that_are_not_finite_or_missing_fail_alone():
    class Spoiled(Recorder):
        def evaluate(self, crystals, fields=None, observables=()):
            answers = super().evaluate(crystals, fields, observables)
            if len(crystals) == 3:
                return answers[:2]
            for index, atoms in enumerate(crystals):
                if "Ga" in atoms.get_chemical_symbols():
                    values = {name: getattr(answers[index], name) for name in observables}
                    values["polarizability"] = values["polarizability"] * np.nan
                    answers[index] = Response(**values)
            return answers

    outcomes = run(GOOD, Spoiled())
    assert [type(o).__name__ for o in outcomes] == ["DielectricDocument"] * 3 + ["FailureDocument"]
    assert "not finite for polarizability" in outcomes[3].message
    assert all(isinstance(o, DielectricDocument) for o in run(GOOD[:3], Spoiled()))


def test_analysis_errors_fail_alone(monkeypatch):
    original = DielectricProperty.analyse

    def analyse(self, structure, responses, context):
        if "Cs" in structure.get_chemical_symbols():
            raise ZeroDivisionError("oops")
        return original(self, structure, responses, context)

    monkeypatch.setattr(DielectricProperty, "analyse", analyse)
    outcomes = run(GOOD)
    assert outcomes[1].stage == "analyse"
    assert outcomes[1].message == "ZeroDivisionError: oops"
    assert isinstance(outcomes[3], DielectricDocument)


def test_interrupt_stops_at_once_and_loses_nothing():
    def fail(crystals):
        if "Zn" in crystals[0].get_chemical_symbols():
            raise KeyboardInterrupt

    kept = {}
    with pytest.raises(KeyboardInterrupt):
        run(GOOD, Recorder(fail), max_batch_structures=1, on_result=kept.__setitem__)
    assert [kept[i].formula_pretty for i in sorted(kept)] == ["MgO", "CsCl"]


def test_errors_of_the_receiver_are_not_swallowed():
    def full(index, outcome):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run(GOOD, on_result=full)


def test_progress_counts_everything_once():
    steps = []
    run([*GOOD, broken()["apart"]], progress=lambda done, total: steps.append((done, total)), max_batch_structures=2)
    assert [done for done, _ in steps] == [1, 2, 3, 4, 5]
    assert {total for _, total in steps} == {5}


def test_nothing_gives_nothing():
    assert run([]) == []


def test_separate_hessian_model_is_checked_for_elements_too():
    outcomes = run_property(
        DielectricProperty(DielectricSettings(ionic=True)), GOOD[:2], Recorder(), Recorder(elements=("Mg", "O"))
    )
    assert isinstance(outcomes[0], DielectricDocument)
    assert outcomes[1].error_type == "UnknownElementError"


def test_extra_settings_and_seed_are_recorded():
    doc = run(GOOD[:1], extra_settings={"relax": {"fmax": 0.01}}, seed=7)[0]
    assert doc.provenance.settings["relax"] == {"fmax": 0.01}
    assert doc.provenance.seed == 7
    assert doc.key != run(GOOD[:1])[0].key
