"""The Maker: early errors, JSON round trips, FireWorks, and the store after a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ase.build import bulk
from jobflow import Flow, Job, JobStore, job, run_locally
from maggma.stores import MemoryStore
from monty.json import MontyDecoder, MontyEncoder
from pymatgen.core import Structure

from fieldflows import DielectricMaker
from fieldflows.errors import CapabilityError, CheckpointError, InputError, StructureError
from fieldflows.inputs import InputStructure
from fieldflows.jobs.models import ModelReference
from fieldflows.jobs.relax import RelaxSettings
from fieldflows.properties.dielectric import DielectricSettings
from fieldflows.schemas.dielectric import DielectricDocument
from fieldflows.schemas.screening import ScreeningDocument
from fieldflows.store import ResultsCollection, get_store, publish
from fieldflows.structures import as_structure

MGO, NACL = bulk("MgO", "rocksalt", 4.21), bulk("NaCl", "rocksalt", 5.64)


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return get_store(tmp_path / "s.db")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(flow: Flow | Job, store: JobStore):
    responses = run_locally(flow, store=store, log=False, ensure_success=True, raise_immediately=True)
    return [response.output for runs in responses.values() for response in runs.values()]


def again(value):
    return json.loads(json.dumps(value, cls=MontyEncoder), cls=MontyDecoder)


def test_one_structure_gives_one_document(store: JobStore) -> None:
    made = DielectricMaker(model="toy").make(MGO)
    (document,) = run(made, store)
    assert isinstance(document, DielectricDocument)
    assert document.formula_pretty == "MgO"
    stored = store.query_one({"metadata.formula": "MgO"})
    assert stored["output"]["n"] == document.n
    assert stored["metadata"]["model_sha256"] == document.provenance.model.sha256
    assert stored["metadata"]["code_version"] == document.provenance.code_version
    assert ResultsCollection.of(store).get(document.key) == document.to_json_dict()


def test_a_list_gives_chunks_with_failures_inside(store: JobStore) -> None:
    broken = as_structure(NACL).copy()
    broken.translate_sites([1], [0.5, 0.5, 0.5], frac_coords=True)
    items = [MGO, InputStructure(broken, "broken.cif", 0, "mp-1"), NACL]
    flow = DielectricMaker(model="toy", chunk_structures=2).make(items)
    assert [len(made.function_args[0]) for made in flow.jobs] == [2, 1]
    first, second = run(flow, store)
    assert isinstance(first, ScreeningDocument)
    assert [doc.formula_pretty for doc in (*first.results, *second.results)] == ["MgO", "NaCl"]
    (failure,) = first.failures
    assert (failure.source, failure.material_id, failure.formula) == ("broken.cif", "mp-1", "NaCl")
    assert first.n_structures == first.n_computed + first.n_reused + first.n_duplicates + len(first.failures)
    reread = ScreeningDocument.from_json_dict(store.query_one({"uuid": flow.jobs[0].uuid})["output"])
    assert reread.results == first.results


def test_chunks_respect_the_number_of_atoms() -> None:
    flow = DielectricMaker(model="toy", chunk_atoms=4).make([MGO] * 5)
    assert [len(made.function_args[0]) for made in flow.jobs] == [2, 2, 1]


def test_a_rerun_adds_nothing(store: JobStore) -> None:
    maker = DielectricMaker(model="toy")
    run(maker.make([MGO, NACL]), store)
    before = sorted(doc["key"] for doc in ResultsCollection.of(store).query())
    (second,) = run(maker.make([MGO, NACL]), store)
    assert (second.n_computed, second.n_reused) == (0, 2)
    assert sorted(doc["key"] for doc in ResultsCollection.of(store).query()) == before


def test_keys_are_known_before_anything_is_computed(store: JobStore) -> None:
    maker = DielectricMaker(model="toy", relax=RelaxSettings(max_steps=2))
    keys = maker.keys([MGO, NACL])
    results = ResultsCollection.of(store)
    assert results.existing(keys) == set()
    run(maker.make([MGO]), store)
    assert results.existing(keys) == {keys[0]}
    assert DielectricMaker(model="toy").keys([MGO]) != keys[:1]


def test_hessians_go_to_the_store_for_large_arrays(store: JobStore) -> None:
    flow = DielectricMaker(model="toy", keep_hessians=True).make([MGO])
    run(flow, store)
    uuid = flow.jobs[0].uuid
    small = store.query_one({"uuid": uuid})["output"]["hessians"][0]
    assert small["hessian"]["store"] == "data"
    large = store.query_one({"uuid": uuid}, load=True)["output"]["hessians"][0]
    assert len(large["hessian"]) == 6
    assert large["key"] == ResultsCollection.of(store).query().__next__()["key"]
    assert store.additional_stores["data"].count() == 1


def test_a_structure_from_another_job(store: JobStore) -> None:
    @job
    def build() -> Structure:
        return as_structure(MGO)

    first = build()
    maker = DielectricMaker(model="toy")
    single, many = maker.make(first.output), maker.make([first.output, NACL])
    outputs = run(Flow([first, single, many]), store)
    assert outputs[1].formula_pretty == "MgO"
    assert [doc.formula_pretty for doc in outputs[2].results] == ["MgO", "NaCl"]


def test_relaxation_with_atomate2_feeds_the_response(store: JobStore) -> None:
    from atomate2.forcefields.jobs import ForceFieldRelaxMaker

    relax = ForceFieldRelaxMaker(
        force_field_name={"@module": "fieldflows.calculators", "@callable": "FieldCalculator"},
        calculator_kwargs={"model": "toy"},
        relax_kwargs={"fmax": 1e-3},
    ).make(as_structure(MGO))
    response = DielectricMaker(model="toy").make(relax.output.structure)
    outputs = run(Flow([relax, response]), store)
    (own,) = run(DielectricMaker(model="toy", relax=RelaxSettings(force_threshold=1e-3)).make(MGO), store)
    assert outputs[-1].max_force < 1e-3
    assert outputs[-1].n == pytest.approx(own.n, rel=1e-3)


def test_a_failing_single_structure_raises_its_own_error(store: JobStore) -> None:
    from fieldflows.errors import UnknownElementError

    crystal = MGO.copy()
    crystal.numbers[0] = 100
    with pytest.raises(UnknownElementError, match="does not know Fm"):
        run(DielectricMaker(model="toy").make(crystal), store)


def test_errors_come_when_the_flow_is_built(tmp_path: Path) -> None:
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(b"nothing")
    with pytest.raises(CheckpointError):
        DielectricMaker(model=str(broken)).make(MGO)
    with pytest.raises(CheckpointError, match="No model 'tpy'"):
        DielectricMaker(model="tpy").make(MGO)
    with pytest.raises(CheckpointError):
        DielectricMaker(model="toy", hessian_model="nothing").make(MGO)
    with pytest.raises(StructureError, match="not periodic"):
        DielectricMaker(model="toy").make([MGO, molecule()])
    with pytest.raises(InputError, match="no structures"):
        DielectricMaker(model="toy").make([])


def molecule():
    from ase.build import molecule

    return molecule("H2O")


def test_impossible_wishes_are_refused_when_the_flow_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from fieldflows import load_model
    from fieldflows.backends import base

    class Blind:
        info = replace(load_model("toy").info, name="blind", trained_labels=("polarizability",))

    def load(name: str, **options):
        return Blind() if name == "blind" else load_model(name)

    monkeypatch.setattr(base, "load_model", load)
    DielectricMaker(model="blind").make(MGO)
    with pytest.raises(CapabilityError, match="hessian_model"):
        DielectricMaker(model="blind", settings=DielectricSettings(ionic=True)).make(MGO)
    with pytest.raises(CapabilityError, match="relaxation"):
        DielectricMaker(model="blind", relax=RelaxSettings()).make(MGO)
    DielectricMaker(model="blind", relax=RelaxSettings(), hessian_model="toy").make(MGO)


def test_a_model_that_changed_since_is_refused(store: JobStore) -> None:
    made = DielectricMaker(model="toy").make(MGO)
    made.function_kwargs["model"] = ModelReference("toy", "0" * 64)
    with pytest.raises(CheckpointError, match="the flow was built with 000000000000"):
        run(made, store)


def test_makers_jobs_and_flows_survive_json(store: JobStore) -> None:
    maker = again(DielectricMaker(model="toy", settings=DielectricSettings(symprec=0.02), relax=RelaxSettings()))
    assert isinstance(maker, DielectricMaker)
    assert maker.settings.symprec == 0.02
    assert maker.relax == RelaxSettings()
    flow = again(maker.make([MGO, NACL]))
    assert isinstance(flow, Flow)
    (output,) = run(flow, store)
    assert len(output.results) == 2
    (single,) = run(again(DielectricMaker(model="toy").make(MGO)), store)
    assert single.formula_pretty == "MgO"


def test_fireworks_can_carry_it() -> None:
    pytest.importorskip("fireworks")
    from fireworks import Workflow
    from jobflow.managers.fireworks import flow_to_workflow

    flow = DielectricMaker(model="toy", chunk_structures=1).make([MGO, NACL])
    workflow = flow_to_workflow(flow, store=JobStore(MemoryStore()))
    text = json.dumps(workflow.to_dict(), default=str)
    copy = Workflow.from_dict(json.loads(text))
    assert len(copy.fws) == 2
    assert {fw.spec["task"] for fw in copy.fws} == {"dielectric"}


def test_a_firework_runs_from_its_serialization(tmp_path: Path, store: JobStore) -> None:
    """What a FireWorks worker does with the stored text, without a database."""
    pytest.importorskip("fireworks")
    from fireworks import Workflow
    from jobflow.managers.fireworks import flow_to_workflow

    flow = DielectricMaker(model="toy").make([MGO])
    workflow = Workflow.from_dict(json.loads(json.dumps(flow_to_workflow(flow, store=store).to_dict(), default=str)))
    (firework,) = workflow.fws
    for task in firework.tasks:
        task.run_task(firework.spec)
    assert [doc["formula_pretty"] for doc in ResultsCollection.of(store).query()] == ["MgO"]


def test_results_can_be_published_from_job_outputs(store: JobStore) -> None:
    run(DielectricMaker(model="toy").make([MGO, NACL]), store)
    results = ResultsCollection.of(store)
    before = sorted(results.query(), key=lambda doc: doc["key"])
    results.store.remove_docs({})
    assert results.count() == 0
    assert publish(store) == 2
    assert sorted(results.query(), key=lambda doc: doc["key"]) == before


class Elsewhere(MemoryStore):
    """A worker's store that is written to a file for others to read."""


def test_a_store_without_place_for_results_keeps_the_output(caplog, monkeypatch) -> None:
    monkeypatch.delenv("FIELDFLOWS_STORE", raising=False)
    (output,) = run(DielectricMaker(model="toy").make([MGO]), JobStore(Elsewhere()))
    assert len(output.results) == 1
    assert "Results travel in the output of the job; fieldflows.store.publish copies" in caplog.text


def test_a_store_that_is_named_on_the_worker_gets_the_results(caplog, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("FIELDFLOWS_STORE", str(tmp_path / "worker.db"))
    for computed in (2, 0):
        (output,) = run(DielectricMaker(model="toy").make([MGO, NACL]), JobStore(Elsewhere()))
        assert (output.n_computed, len(output.results)) == (computed, 2)
    assert ResultsCollection.of(get_store(tmp_path / "worker.db")).count() == 2
    assert "Results travel" not in caplog.text

    monkeypatch.setenv("FIELDFLOWS_STORE", str(tmp_path / "no" / "such" / "folder.db"))
    (output,) = run(DielectricMaker(model="toy").make([MGO]), JobStore(Elsewhere()))
    assert len(output.results) == 1
    assert "Results travel in the output of the job only: " in caplog.text
