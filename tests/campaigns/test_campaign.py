"""Campaigns on this machine: the funnel, what is reused, what fails, what is tried again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ase.build import bulk
from jobflow import JobStore, run_locally
from pymatgen.core import Composition

from fieldflows import load_model
from fieldflows.backends.toy import ToyModel
from fieldflows.campaigns.campaign import Campaign, cancel, remove, work_locally, write_campaign
from fieldflows.campaigns.chunk import MOST_DEATHS
from fieldflows.campaigns.config import CampaignConfig
from fieldflows.campaigns.export import columns, rows
from fieldflows.campaigns.journal import Journal
from fieldflows.campaigns.records import Campaigns, Chunks, Progress
from fieldflows.campaigns.survey import survey
from fieldflows.errors import CapabilityError, CheckpointError, InputError, SettingsError
from fieldflows.flows.screening import DielectricMaker
from fieldflows.inputs import InputStructure
from fieldflows.jobs.relax import RelaxSettings
from fieldflows.store import ResultsCollection, get_store
from fieldflows.store.arrays import Arrays
from fieldflows.structures import as_structure
from tests.campaigns.made import ELECTRONIC, FUNNEL, LATTICE, campaign, crystals, failures_of, results_of


class Broken:
    """Makes the toy model fail, or count, for chosen formulas."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.formula, self.error, self.evaluated = "", None, 0
        real = ToyModel._respond

        def respond(model, structure, field, names):
            self.evaluated += 1
            if self.error is not None and Composition(structure.get_chemical_formula()).reduced_formula == self.formula:
                raise self.error
            return real(model, structure, field, names)

        monkeypatch.setattr(ToyModel, "_respond", respond)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Broken:
    return Broken(monkeypatch)


def test_the_funnel(store: JobStore) -> None:
    found = campaign().run(store)
    assert found.complete
    optical, lattice = found.stages
    assert (optical.done, optical.rejected, lattice.done + lattice.rejected) == (12, 0, 12)
    assert lattice.done > 0 < lattice.rejected
    documents = results_of(store).values()
    # one document of a crystal and a model, whatever stages it went through
    assert len(documents) == 12
    for row in documents:
        assert row["status_ionic"] == ("ok" if row["n"] < 1.9 else "not_requested")
        assert row["formula_pretty"]
        assert row["spacegroup_symbol"]


def test_results_are_those_of_the_model(store: JobStore) -> None:
    campaign(count=3, stages=[{"name": "all", "settings": {"ionic": True}}]).run(store)
    other = get_store(Path(store.docs_store.path).with_name("other.db"))
    flow = DielectricMaker(model="toy").make(crystals(3))
    run_locally(flow, store=other, log=False, ensure_success=True)
    here, there = results_of(store), results_of(other)
    by_formula = {row["formula_pretty"]: row for row in there.values()}
    assert len(here) == 3
    for row in here.values():
        assert row["e_total"] == pytest.approx(by_formula[row["formula_pretty"]]["e_total"], rel=1e-12)


def test_what_is_there_is_not_computed_again(store: JobStore, broken: Broken) -> None:
    campaign().run(store)
    first, before = results_of(store), broken.evaluated
    assert before > 0
    found = campaign().run(store)
    assert (broken.evaluated, found.complete, results_of(store)) == (before, True, first)
    # another campaign over the same crystals, with one more
    other = campaign("more", count=13).run(store)
    assert other.complete
    assert len(results_of(store)) == 13
    assert broken.evaluated - before <= 2


def test_planning_writes_nothing_and_counts_what_is_there(store: JobStore, tmp_path: Path) -> None:
    empty = campaign().plan(store)
    assert [(s.at_most, s.stored) for s in empty.stage_plans] == [(12, 0), (12, 0)]
    assert list(Campaigns.of(store).query()) == []
    assert empty.seconds > 0
    assert [len(chunk) for chunk in empty.chunks] == [5, 5, 2]
    campaign().run(store)
    plan = campaign().plan(store)
    assert plan.stage_plans[0].stored == 12
    assert plan.stage_plans[1].stored == sum(row["status_ionic"] == "ok" for row in results_of(store).values())
    assert plan.stage_plans[0].seconds == 0
    assert json.loads(json.dumps(plan.to_dict()))["crystals"] == 12


def test_a_relaxation_comes_before(store: JobStore) -> None:
    relax = {"name": "relax", "task": "relax", "settings": {"force_threshold": 0.001}}
    found = campaign(count=4, stages=[relax, *FUNNEL]).run(store)
    assert found.complete
    rows_ = results_of(store).values()
    relaxed = [row for row in rows_ if row["task"] == "relax"]
    dielectric = [row for row in rows_ if row["task"] == "dielectric"]
    assert (len(relaxed), len(dielectric)) == (4, 4)
    volumes = {row["formula_pretty"]: row["volume"] for row in relaxed}
    for row in dielectric:
        assert row["volume"] == pytest.approx(volumes[row["formula_pretty"]], rel=1e-12)
        assert row["relaxation"]["converged"]
        assert row["provenance"]["input_structure_hash"] != row["provenance"]["structure_hash"]
    # the same key as a screening with the same relaxation
    maker = DielectricMaker(model="toy", relax=RelaxSettings(force_threshold=0.001))
    expected = set(maker.keys([as_structure(item) for item in crystals(4)]))
    assert {row["key"] for row in dielectric} == expected


def test_one_crystal_that_fails_is_a_document_and_stops_nothing(store: JobStore, broken: Broken) -> None:
    broken.formula, broken.error = "NaCl", ValueError("no such luck")
    found = campaign(count=10).run(store)
    optical, lattice = found.stages
    assert (optical.done, dict(optical.failed), optical.transient) == (8, {"ValueError": 2}, 0)
    assert lattice.out == 2
    assert found.complete
    for failure in failures_of(store).values():
        assert failure["message"] == "ValueError: no such luck"
        assert (failure["stage"], failure["formula"], failure["campaign"]) == ("evaluate", "NaCl", "salts")
        assert failure["extent"] == "electronic"
        assert len(failure["structure"]["sites"]) == 2
    # not tried again by itself, but on request
    before = broken.evaluated
    campaign(count=10).run(store)
    assert broken.evaluated == before
    broken.error = None
    found = campaign(count=10).run(store, retry_failed=True)
    assert (found.stages[0].done, found.failures, failures_of(store)) == (10, 0, {})


def test_what_may_pass_is_tried_again_by_itself(store: JobStore, broken: Broken) -> None:
    broken.formula, broken.error = "NaCl", MemoryError()
    found = campaign(count=10).run(store)
    assert (found.stages[0].done, found.stages[0].transient) == (8, 2)
    broken.error = None
    found = campaign(count=10).run(store)
    assert (found.stages[0].done, found.failures, failures_of(store)) == (10, 0, {})


def test_the_batch_before_the_stop_is_kept(store: JobStore) -> None:
    campaign(count=12, chunks={"structures": 12}).submit(store)
    seen = []

    def report(stage: str, done: int, failed: int) -> None:
        seen.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work_locally(store, "salts", report=report)
    assert seen == [8]
    assert len(results_of(store)) == 8
    outcome = work_locally(store, "salts")
    assert (outcome.complete, outcome.left, len(results_of(store))) == ([0], {}, 12)


def test_a_crystal_at_which_workers_die_is_given_up(store: JobStore, broken: Broken) -> None:
    plan_ = campaign(count=4, stages=[ELECTRONIC]).plan()
    key = plan_.items[1].keys["optical"]
    campaign(count=4, stages=[ELECTRONIC]).submit(store)
    with Journal.opened("salts", "00000") as journal:
        journal.deaths = {key: MOST_DEATHS}
        journal.acknowledged()
    found = survey_after(store)
    assert (found.stages[0].done, dict(found.stages[0].failed)) == (3, {"WorkerLost": 1})
    (failure,) = failures_of(store).values()
    assert failure["key"] == key
    assert "workers died" in failure["message"]
    work_locally(store, "salts", retry_failed=True)
    assert survey_after(store).stages[0].done == 4


def test_a_journal_that_comes_late_takes_nothing_away(store: JobStore, broken: Broken) -> None:
    """A worker died with results without the ionic part in its journal; others went on in the meantime."""
    other = get_store(Path(store.docs_store.path).with_name("other.db"))
    campaign(count=5, stages=[ELECTRONIC]).run(other)
    campaign(count=5).run(store)
    before = results_of(store)
    kept = list(ResultsCollection.of(other).query())
    with Journal.opened("salts", "00000") as journal:
        journal.append(kept, [])
    count = broken.evaluated
    ResultsCollection.of(store).remove([kept[0]["key"]])
    work_locally(store, "salts")
    assert results_of(store) == before
    assert broken.evaluated - count <= 2  # the ionic part of the one that was removed


def survey_after(store: JobStore):
    work_locally(store, "salts")
    return survey(store, Campaigns.of(store).require("salts"))


def test_equal_crystals_are_computed_once_and_counted(store: JobStore) -> None:
    same = [*crystals(3), crystals(3)[0]]
    found = Campaign.of("twice", same, model="toy", stages=[ELECTRONIC]).run(store)
    assert (found.crystals, found.duplicates, len(results_of(store))) == (3, 1, 3)
    one = as_structure(crystals(1)[0])
    twice = [InputStructure(one, "a", material_id="mp-1"), InputStructure(one, "b", material_id="mp-2", band_gap=4.0)]
    plan_ = Campaign.of("gap", twice, model="toy", stages=[ELECTRONIC | {"where": "band_gap > 1"}]).plan()
    (item,) = plan_.items
    assert (item.material_id, item.band_gap, item.facts["band_gap"]) == ("mp-1", 4.0, 4.0)


def test_what_cannot_be_used_is_explained(store: JobStore) -> None:
    bad = bulk("MgO", "rocksalt", 4.21)
    bad.positions[1] = bad.positions[0] + 0.1
    unknown = bulk("Og", "fcc", 5.0)
    found = Campaign.of("mixed", [*crystals(2), bad, unknown], model="toy", stages=[ELECTRONIC]).run(store)
    assert (found.crystals, found.unreadable, found.stages[0].done) == (2, 2, 2)
    assert {row["error_type"] for row in failures_of(store).values()} == {"StructureError", "UnknownElementError"}
    with pytest.raises(InputError, match="None of 1 inputs can be computed"):
        Campaign.of("nothing", [bad], model="toy").run(store)


def test_conditions_on_what_is_known_before(store: JobStore) -> None:
    given = [
        InputStructure(as_structure(atoms), f"c{i}", material_id=f"mp-{i}", band_gap=gap)
        for i, (atoms, gap) in enumerate(zip(crystals(4), (0.0, 1.0, None, 7.0), strict=True))
    ]
    stages = [ELECTRONIC | {"where": "band_gap > 0.5"}]
    found = Campaign.of("gaps", given, model="toy", stages=stages).run(store)
    assert (found.stages[0].done, found.stages[0].rejected) == (2, 2)
    assert {row["material_id"]: row["insulating"] for row in results_of(store).values()} == {
        "mp-1": "yes",
        "mp-3": "yes",
    }


def test_facts_are_entered_into_results_that_are_reused(store: JobStore, broken: Broken) -> None:
    campaign("first", count=2, stages=[ELECTRONIC]).run(store)
    before = broken.evaluated
    reference = {"source": "Materials Project", "material_id": "mp-1265", "n": 1.75}
    given = InputStructure(as_structure(crystals(1)[0]), "x", material_id="mp-1265", band_gap=4.4)
    second = Campaign.of("second", [given], model="toy", stages=[ELECTRONIC])
    plan_ = second.plan(store)
    assert plan_.stage_plans[0].stored == 1
    plan_.items[0].reference = reference
    write_campaign(plan_, store, "d")
    work_locally(store, "second")
    (row,) = ResultsCollection.of(store).query({"material_id": "mp-1265"})
    assert (row["band_gap"], row["insulating"], row["reference"]["n"]) == (4.4, "yes", 1.75)
    assert broken.evaluated == before


def test_an_earlier_campaign_as_input(store: JobStore) -> None:
    campaign(count=6).run(store)
    chosen = {row["formula_pretty"] for row in results_of(store).values() if row["n"] < 1.9}
    given = {"name": "next", "inputs": [{"campaign": "salts", "where": "n < 1.9"}], "model": {"name": "toy"}}
    following = Campaign(CampaignConfig.from_dict(given | {"stages": [LATTICE | {"where": ""}]}))
    plan_ = following.plan(store)
    assert {item.facts["formula_pretty"] for item in plan_.items} == chosen
    with pytest.raises(InputError, match="no campaign 'gone'"):
        Campaign(CampaignConfig.from_dict(given | {"inputs": [{"campaign": "gone"}]})).plan(store)


def test_another_campaign_of_the_same_name_is_refused(store: JobStore) -> None:
    campaign(count=3).submit(store)
    with pytest.raises(SettingsError, match="with other inputs, models or stages"):
        campaign(count=4).submit(store)
    remove(store, "salts")
    assert list(Chunks.of(store).query()) == []
    campaign(count=4).submit(store)


def test_a_submission_that_was_interrupted_is_written_anew(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Chunks.write

    def write(self, name, number, items):
        if number == 1:
            raise KeyboardInterrupt
        real(self, name, number, items)

    monkeypatch.setattr(Chunks, "write", write)
    with pytest.raises(KeyboardInterrupt):
        campaign().submit(store)
    with pytest.raises(InputError, match="was interrupted"):
        work_locally(store, "salts")
    monkeypatch.setattr(Chunks, "write", real)
    assert campaign().submit(store)["ready"]
    assert len(Chunks.of(store).numbers("salts")) == 3


def test_a_canceled_campaign_is_taken_up_again(store: JobStore) -> None:
    campaign().submit(store)
    cancel(store, "salts")
    manifest = Campaigns.of(store).require("salts")
    assert survey(store, manifest).canceled
    assert campaign().run(store).complete
    assert not survey(store, Campaigns.of(store).require("salts")).canceled


def test_wrong_models_are_said_before_anything_is_written(store: JobStore) -> None:
    with pytest.raises(CheckpointError, match="Stage 'optical': No model 'toyy'"):
        Campaign.of("a", crystals(1), model="toyy", stages=[ELECTRONIC]).plan()
    with pytest.raises(CapabilityError, match="Stage 'lattice'"):
        Campaign.of("a", crystals(1), model="dielectric", stages=FUNNEL).plan()
    assert list(Campaigns.of(store).query()) == []


def test_the_table_of_a_campaign(store: JobStore, broken: Broken) -> None:
    broken.formula, broken.error = "LiF", ValueError("no")
    bad = bulk("MgO", "rocksalt", 4.21)
    bad.positions[1] = bad.positions[0] + 0.1
    Campaign.of("table", [*crystals(4), bad], model="toy", stages=FUNNEL).run(store)
    manifest = Campaigns.of(store).require("table")
    made = list(rows(store, manifest))
    assert len(made) == 5
    names = [field.path for field in columns(manifest)]
    assert all(set(row) <= set(names) for row in made)
    by_formula = {row["formula"]: row for row in made if row.get("stage_optical")}
    assert by_formula["LiF"]["stage_optical"] == "failed"
    assert (by_formula["LiF"]["stage_lattice"], by_formula["LiF"]["error"]) == ("out", "ValueError: no")
    assert by_formula["NaCl"]["stage_optical"] == "done"
    assert by_formula["NaCl"]["n"] > 1
    assert made[-1]["error_type"] == "StructureError"


def test_progress_tells_rate_and_time_left(store: JobStore) -> None:
    campaign().run(store)
    noted = Progress.of(store).of_campaign("salts")
    assert len(noted) == 3
    assert sum(stage["computed"] for row in noted for stage in row["stages"] if stage["name"] == "optical") == 12
    found = survey(store, Campaigns.of(store).require("salts"))
    assert found.seconds_left == 0
    ResultsCollection.of(store).store.remove_docs({})
    found = survey(store, Campaigns.of(store).require("salts"))
    assert found.stages[0].pending == 12
    assert found.stages[1].waiting == 12
    assert found.seconds_left is not None
    assert found.seconds_left >= 12 * found.stages[0].seconds


def test_hessians_go_to_the_store_for_arrays(store: JobStore) -> None:
    stages = [{"name": "all", "settings": {"ionic": True, "use_symmetry": False}, "keep_hessians": True}]
    campaign(count=2, stages=stages).run(store)
    arrays = Arrays.of(store)
    model = load_model("toy")
    by_formula = {row["formula_pretty"]: key for key, row in results_of(store).items()}
    for atoms in crystals(2):
        formula = Composition(atoms.get_chemical_formula()).reduced_formula
        kept = arrays.get(by_formula[formula], "hessian", shape=(6, 6))
        assert kept == pytest.approx(model.evaluate(atoms, observables=("hessian",)).hessian, abs=1e-10)


def test_a_campaign_over_crystals_at_hand_is_the_same_from_any_folder(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign(count=3).submit(store)
    monkeypatch.chdir(tmp_path)
    assert campaign(count=3).submit(store)["ready"]
