"""A chunk: isolation of what fails, reuse of what is stored, and no loss when it is cut short."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from fieldflows import load_model
from fieldflows.backends.base import FieldModel, ModelInfo
from fieldflows.backends.symmetric import SymmetrySettings
from fieldflows.errors import CapabilityError, StoreError
from fieldflows.jobs.evaluate import evaluate_chunk, reporting
from fieldflows.jobs.relax import RelaxSettings
from fieldflows.properties.base import PropertyInput
from fieldflows.properties.dielectric import DielectricProperty, DielectricSettings
from fieldflows.store import ResultsCollection

PROPERTY = DielectricProperty()


class Counting:
    """The toy model, counting how many structures it evaluates, and optionally failing on the k-th call."""

    def __init__(self, interrupt_at: int | None = None, **changes) -> None:
        self.model = load_model("toy")
        self.evaluated = 0
        self.interrupt_at = interrupt_at
        self.changes = changes

    @property
    def info(self) -> ModelInfo:
        return replace(self.model.info, **self.changes)

    def evaluate(self, structures, fields=None, observables=()):
        self.evaluated += len(structures) if isinstance(structures, list) else 1
        if self.interrupt_at is not None and self.evaluated >= self.interrupt_at:
            raise KeyboardInterrupt
        return self.model.evaluate(structures, fields, observables)


def inputs(crystals: list[Atoms], **facts) -> list[PropertyInput]:
    return [PropertyInput(crystal, **facts) for crystal in crystals]


def test_the_counting_model_is_a_model() -> None:
    assert isinstance(Counting(), FieldModel)


def test_results_agree_with_the_model_itself(crystals, results: ResultsCollection) -> None:
    outcome = evaluate_chunk(PROPERTY, inputs(crystals), load_model("toy"), results=results)
    assert [doc.formula_pretty for doc in outcome.documents] == ["MgO", "NaCl", "GaAs"]
    from fieldflows.units import EPSILON_VACUUM

    for crystal, document in zip(crystals, outcome.documents, strict=True):
        alpha = load_model("toy").evaluate(crystal, observables=("polarizability",)).polarizability
        np.testing.assert_allclose(document.epsilon_electronic, np.eye(3) + alpha / EPSILON_VACUUM, atol=1e-12)
        assert results.get(document.key) == document.to_json_dict()


def test_broken_ones_are_named_and_the_others_done(crystals, results: ResultsCollection) -> None:
    overlapping = crystals[0].copy()
    overlapping.positions[1] = overlapping.positions[0]
    nan = crystals[0].copy()
    nan.positions[0, 0] = np.nan
    unknown = bulk("MgO", "rocksalt", 4.21)
    unknown.numbers[0] = 100  # fermium, beyond what the toy model knows
    subjects = inputs([overlapping, crystals[0], nan, unknown, crystals[1]], source="many.extxyz")
    seen = []
    with reporting(seen.append):
        outcome = evaluate_chunk(PROPERTY, subjects, load_model("toy"), results=results)
    assert [doc.formula_pretty for doc in outcome.documents] == ["MgO", "NaCl"]
    assert sorted(item.index for item in outcome.failures) == [0, 2, 3]
    reasons = {item.index: item.message for item in outcome.failures}
    assert "apart" in reasons[0]
    assert "not finite" in reasons[2]
    assert "does not know Fm" in reasons[3]
    assert all(item.source == "many.extxyz" for item in outcome.failures)
    assert len(seen) == 5
    assert results.count() == 2


def test_a_rerun_computes_nothing_and_gives_the_same(crystals, results: ResultsCollection) -> None:
    model = Counting()
    first = evaluate_chunk(PROPERTY, inputs(crystals), model, results=results)
    again = evaluate_chunk(PROPERTY, inputs(crystals), model, results=results)
    assert model.evaluated == 3
    assert (first.n_computed, first.n_reused) == (3, 0)
    assert (again.n_computed, again.n_reused) == (0, 3)
    assert [doc.to_json_dict() for doc in again.documents] == [doc.to_json_dict() for doc in first.documents]
    forced = evaluate_chunk(PROPERTY, inputs(crystals), model, results=results, recompute=True)
    assert (model.evaluated, forced.n_computed, results.count()) == (6, 3, 3)


def test_keys_depend_on_what_decides_the_result(crystals, results: ResultsCollection) -> None:
    def key(prop=PROPERTY, model=None, relax=None, crystal=crystals[0]) -> str:
        return evaluate_chunk(prop, inputs([crystal]), model or load_model("toy"), relax=relax).documents[0].key

    moved = crystals[0].copy()
    moved.positions[1] += moved.cell[0] * 2
    shifted = crystals[0].copy()
    shifted.positions[1] += 1e-3
    assert key() == key(crystal=moved)
    other = [
        key(),
        key(crystal=shifted),
        key(DielectricProperty(DielectricSettings(force_threshold=0.01))),
        key(model=Counting(sha256="0" * 64)),
        key(relax=RelaxSettings()),
        key(relax=RelaxSettings(relax_cell=False)),
    ]
    assert len(set(other)) == len(other)


def test_the_ionic_part_is_added_to_the_same_document(crystals, results: ResultsCollection) -> None:
    def run(ionic: bool):
        model = Counting()
        outcome = evaluate_chunk(
            DielectricProperty(DielectricSettings(ionic=ionic)), inputs(crystals[:1]), model, results=results
        )
        (row,) = results.query()
        assert row["key"] == outcome.documents[0].key
        return model.evaluated, row["key"], row["status_ionic"], row["e_electronic"]

    (first, key, status, electronic), (second, key2, status2, electronic2) = run(False), run(True)
    assert (first, second) == (1, 1)
    assert (status, status2) == ("not_requested", "ok")
    assert key == key2
    assert electronic2 == pytest.approx(electronic, abs=1e-12)
    assert run(False) == (0, key, "ok", electronic2)  # what has more serves for less
    assert run(True) == (0, key, "ok", electronic2)


def test_equal_structures_are_computed_once(crystals, results: ResultsCollection) -> None:
    model = Counting()
    outcome = evaluate_chunk(PROPERTY, inputs([crystals[0], crystals[1], crystals[0]]), model, results=results)
    assert (len(outcome.documents), outcome.n_duplicates, model.evaluated) == (2, 1, 2)


def test_new_facts_replace_a_stored_result(crystals, results: ResultsCollection) -> None:
    evaluate_chunk(PROPERTY, inputs(crystals[:1]), load_model("toy"), results=results)
    known = inputs(crystals[:1], band_gap=7.8, material_id="mp-1265")
    outcome = evaluate_chunk(PROPERTY, known, load_model("toy"), results=results)
    assert outcome.n_computed == 1
    assert results.count() == 1
    (stored,) = results.query()
    assert (stored["band_gap"], stored["insulating"], stored["material_id"]) == (7.8, "yes", "mp-1265")
    # Asking without those facts does not forget them.
    assert evaluate_chunk(PROPERTY, inputs(crystals[:1]), load_model("toy"), results=results).n_reused == 1


def test_results_of_another_version_or_unreadable_ones_are_computed_anew(crystals, results: ResultsCollection) -> None:
    evaluate_chunk(PROPERTY, inputs(crystals[:2]), load_model("toy"), results=results)
    old, strange = results.query()
    old["provenance"]["code_version"] = "0.0.0"
    strange["surprise"] = 1
    results.put([old, strange])
    outcome = evaluate_chunk(PROPERTY, inputs(crystals[:2]), load_model("toy"), results=results)
    assert (outcome.n_computed, outcome.n_reused) == (2, 0)
    assert "surprise" not in results.get(strange["key"])


@pytest.mark.parametrize("relax", [None, RelaxSettings(relax_cell=False, max_steps=3)])
def test_an_interrupt_keeps_what_is_finished(results: ResultsCollection, relax: RelaxSettings | None) -> None:
    frames = inputs([bulk("MgO", "rocksalt", 4.2 + 0.01 * i) for i in range(20)])
    free = Counting()
    expected = evaluate_chunk(PROPERTY, frames, free, relax=relax).documents
    model = Counting(interrupt_at=int(0.8 * free.evaluated))
    with pytest.raises(KeyboardInterrupt):
        evaluate_chunk(PROPERTY, frames, model, results=results, relax=relax)
    finished = results.count()
    assert finished in (8, 16)
    model.interrupt_at = None
    outcome = evaluate_chunk(PROPERTY, frames, model, results=results, relax=relax)
    assert (outcome.n_reused, outcome.n_computed) == (finished, 20 - finished)
    assert [doc.n for doc in outcome.documents] == [doc.n for doc in expected]
    assert results.count() == 20


def test_a_store_that_fails_stops_the_chunk_with_its_reason(crystals, results: ResultsCollection, monkeypatch) -> None:
    def full(documents) -> int:
        raise StoreError("Cannot write the store: the disk is full.")

    monkeypatch.setattr(results, "put", full)
    with pytest.raises(StoreError, match="disk is full"):
        evaluate_chunk(PROPERTY, inputs(crystals), load_model("toy"), results=results)


def test_relaxation_is_recorded_and_flags_nothing(crystals, results: ResultsCollection) -> None:
    crystal = crystals[1].copy()
    crystal.rattle(0.05, seed=1)
    outcome = evaluate_chunk(PROPERTY, inputs([crystal]), load_model("toy"), results=results, relax=RelaxSettings())
    (document,) = outcome.documents
    assert document.relaxation.converged
    assert document.relaxation.n_steps > 0
    assert document.max_force < document.relaxation.force_threshold
    assert document.provenance.input_structure_hash != document.provenance.structure_hash
    assert document.provenance.settings["relax"] == RelaxSettings().model_dump()
    # The same input is found again although the stored structure is another one.
    assert (
        evaluate_chunk(PROPERTY, inputs([crystal]), load_model("toy"), results=results, relax=RelaxSettings()).n_reused
        == 1
    )


def test_impossible_wishes_are_refused_before_anything_is_computed(crystals) -> None:
    blind = Counting(trained_labels=("polarizability",))
    with pytest.raises(CapabilityError, match="relaxation"):
        evaluate_chunk(PROPERTY, inputs(crystals), blind, relax=RelaxSettings())
    with pytest.raises(CapabilityError):
        evaluate_chunk(DielectricProperty(DielectricSettings(ionic=True)), inputs(crystals), blind)
    assert blind.evaluated == 0
    outcome = evaluate_chunk(PROPERTY, inputs(crystals), blind)
    assert {doc.status_ionic for doc in outcome.documents} <= {"not_requested", "no_energy_surface"}


def test_a_hessian_model_serves_the_energy_surface(crystals) -> None:
    blind = Counting(trained_labels=("polarizability", "born_effective_charges"), sha256="1" * 64)
    plain = Counting(trained_labels=("energy", "forces"), sha256="2" * 64)
    outcome = evaluate_chunk(PROPERTY, inputs(crystals), blind, plain, keep_hessians=True)
    reference = evaluate_chunk(PROPERTY, inputs(crystals), load_model("toy"))
    for document, expected in zip(outcome.documents, reference.documents, strict=True):
        assert document.e_ionic == pytest.approx(expected.e_ionic, rel=1e-12)
        assert document.provenance.hessian_model.sha256 == "2" * 64
    hessian = load_model("toy").evaluate(crystals[0], observables=("hessian",)).hessian
    np.testing.assert_allclose(outcome.hessians[outcome.documents[0].key].hessian, hessian, atol=1e-12)


def test_hessians_are_those_of_the_primitive_cell_and_say_of_which_atoms(results: ResultsCollection) -> None:
    """A conventional cell in other order; all atoms of one that is too far from its symmetry, or where it is off."""
    from fieldflows.jobs.screening import _hessian_record

    toy = load_model("toy")
    cubic = bulk("MgO", "rocksalt", 4.21, cubic=True)[[3, 4, 0, 1, 2, 5, 6, 7]]
    rattled = cubic.copy()
    rattled.rattle(0.004, seed=2)
    coarse = DielectricProperty(DielectricSettings(symmetrization=SymmetrySettings(symprec=0.05)))
    outcome = evaluate_chunk(coarse, inputs([cubic, rattled]), toy, results=results, keep_hessians=True)
    own, whole = (_hessian_record(doc.key, outcome.hessians[doc.key]) for doc in outcome.documents)
    assert whole.atoms is None
    np.testing.assert_allclose(whole.hessian, toy.evaluate(rattled, observables=("hessian",)).hessian, atol=1e-9)
    full = toy.evaluate(cubic, observables=("hessian",)).hessian.reshape(8, 3, 8, 3)
    # the cell holds four images of each atom, which move together at the zone center
    same = cubic.numbers[:, None] == cubic.numbers[list(own.atoms)]
    folded = np.einsum("aicj,cb->aibj", full[list(own.atoms)], same.astype(float)).reshape(6, 6)
    np.testing.assert_allclose(own.hessian, folded, atol=1e-9)
    assert outcome.documents[0].symmetry_used.primitive_atoms == own.atoms

    plain = DielectricProperty(DielectricSettings(use_symmetry=False))
    outcome = evaluate_chunk(plain, inputs([cubic]), toy, results=results, keep_hessians=True)
    (document,) = outcome.documents
    record = _hessian_record(document.key, outcome.hessians[document.key])
    assert record.atoms is None
    np.testing.assert_allclose(record.hessian, full.reshape(24, 24), atol=1e-9)


def test_symmetry_is_part_of_the_key(crystals, results: ResultsCollection) -> None:
    """A result by symmetry does not stand for one without, nor the other way round."""
    plain = DielectricProperty(DielectricSettings(use_symmetry=False))
    first = evaluate_chunk(PROPERTY, inputs(crystals[:1]), load_model("toy"), results=results)
    second = evaluate_chunk(plain, inputs(crystals[:1]), load_model("toy"), results=results)
    assert (first.n_computed, second.n_computed, second.n_reused) == (1, 1, 0)
    assert first.documents[0].symmetry_used.space_group_number == 225
    assert second.documents[0].symmetry_used is None
    assert second.documents[0].n == pytest.approx(first.documents[0].n, rel=1e-10)


def test_a_relaxed_crystal_is_reduced_as_it_is_after_relaxation(results: ResultsCollection) -> None:
    """Relaxation leaves noise on positions and cell, which symmetry removes; what it removes is on record."""
    crystal = bulk("MgO", "rocksalt", 4.3, cubic=True)
    crystal.rattle(1e-4, seed=1)
    relax = RelaxSettings(force_threshold=1e-3)
    (document,) = evaluate_chunk(PROPERTY, inputs([crystal]), load_model("toy"), relax=relax).documents
    assert document.relaxation.converged
    assert document.symmetry_used.space_group_number == 225
    assert 0 < document.symmetry_used.max_shift < 1e-3
    assert len(document.modes.frequencies_thz) == 3
