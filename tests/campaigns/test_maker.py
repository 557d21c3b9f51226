"""Campaigns as flows of jobflow: the same documents, whether a flow or the local engine runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jobflow import Flow, JobStore, run_locally
from monty.json import MontyDecoder, MontyEncoder

from fieldflows import CampaignMaker, ScreeningMaker
from fieldflows.errors import InputError, SettingsError
from fieldflows.store import get_store
from tests.campaigns.made import ELECTRONIC, FUNNEL, campaign, crystals, results_of

CONFIG = {"name": "salts", "model": {"name": "toy"}, "stages": FUNNEL, "chunks": {"structures": 5}}


def test_a_flow_gives_the_documents_of_the_local_engine(store: JobStore, tmp_path: Path) -> None:
    campaign().run(store)
    flow = CampaignMaker().make(CONFIG, crystals(12))
    assert [job.name for job in flow.jobs] == [*(f"salts/{n:05d}" for n in range(3)), "salts summary"]
    other = get_store(tmp_path / "flow.db")
    responses = run_locally(flow, store=other, log=False, ensure_success=True)
    assert results_of(other) == results_of(store)
    summary = responses[flow.jobs[-1].uuid][1].output
    assert (summary.chunks, summary.chunks_complete) == (3, 3)
    optical, lattice = summary.stages
    assert (optical.computed, lattice.entered, lattice.computed + lattice.rejected) == (12, 12, 12)


def test_stages_on_other_workers_go_on_in_jobs_of_their_own(store: JobStore, tmp_path: Path) -> None:
    relax = {"name": "relax", "task": "relax", "worker": "gpu", "settings": {"force_threshold": 0.001}}
    lattice = {**FUNNEL[1], "worker": "gpu"}
    stages = [relax, ELECTRONIC, lattice]
    campaign(stages=stages).run(store)
    other = get_store(tmp_path / "flow.db")
    flow = CampaignMaker().make({**CONFIG, "stages": stages}, crystals(12))
    assert {job.metadata["worker"] for job in flow.jobs[:-1]} == {"gpu"}
    responses = run_locally(flow, store=other, log=False, ensure_success=True)
    assert results_of(other) == results_of(store)
    rows = list(other.query({"metadata.task": "campaign_chunk"}, ["metadata", "output"]))
    kinds = [(row["metadata"]["worker"], row["metadata"]["stages"]) for row in rows]
    assert kinds.count(("gpu", ["relax"])) == kinds.count(("cpu", ["optical"])) == 3
    assert 1 <= kinds.count(("gpu", ["lattice"])) <= 3
    assert len(responses) == len(rows) + 1


def test_workers_without_a_store_send_their_results_along(store: JobStore) -> None:
    from maggma.stores import JSONStore, MemoryStore

    campaign().run(store)
    flow = CampaignMaker().make({**CONFIG, "stages": [*FUNNEL]}, crystals(12))
    apart = JobStore(
        JSONStore(f"{Path(store.docs_store.path).parent}/outputs.json", read_only=False), {"data": MemoryStore()}
    )
    responses = run_locally(flow, store=apart, log=False, ensure_success=True)
    outputs = [responses[job.uuid][1].output for job in flow.jobs[:-1]]
    sent = {row["key"]: row for output in outputs for row in output.results}
    for row in sent.values():
        row["provenance"].pop("created_at")
    assert sent == results_of(store)


def test_what_is_stored_is_left_out(store: JobStore) -> None:
    stages = [ELECTRONIC]
    campaign(count=5, stages=stages).run(store)
    flow = CampaignMaker(store=store).make({**CONFIG, "stages": stages}, crystals(12))
    assert [job.metadata["n_structures"] for job in flow.jobs[:-1]] == [5, 2]


def test_one_chunk_as_a_job(store: JobStore) -> None:
    made = ScreeningMaker(model="toy", stages=FUNNEL).make(crystals(4))
    output = run_locally(made, store=store, log=False, ensure_success=True)[made.uuid][1].output
    assert output.complete
    assert [stage.name for stage in output.stages] == ["optical", "lattice"]
    assert output.stages[0].computed == len(results_of(store)) == 4
    other = ScreeningMaker(model="toy", stages=FUNNEL).make(crystals(5))
    assert other.name != made.name


def test_jobs_survive_the_way_to_a_worker() -> None:
    flow = CampaignMaker().make(CONFIG, crystals(2))
    text = json.dumps(flow, cls=MontyEncoder)
    again = json.loads(text, cls=MontyDecoder)
    assert isinstance(again, Flow)
    texts = [[list(job.function_args) for job in made.jobs[:-1]] for made in (again, flow)]
    assert texts[0] == texts[1]


def test_wrong_input() -> None:
    with pytest.raises(SettingsError, match="no key 'stage'"):
        CampaignMaker().make({**CONFIG, "stage": []}, crystals(1))
    with pytest.raises(InputError, match="no crystal that can be computed"):
        CampaignMaker().make(CONFIG, [])
    with pytest.raises(SettingsError, match="no campaign file"):
        CampaignMaker().make("nowhere.yaml")
