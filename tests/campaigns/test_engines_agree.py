"""One campaign on the local engine, FireWorks and jobflow-remote: the same results and failures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from ase.build import bulk
from jobflow import JobStore

from fieldflows.campaigns import Campaign
from fieldflows.campaigns.campaign import cancel
from fieldflows.campaigns.config import EngineConfig
from fieldflows.campaigns.dispatch import cancel_everywhere, collect_outputs, status_of, submit_to_engine
from fieldflows.campaigns.export import rows
from fieldflows.campaigns.records import Campaigns
from fieldflows.errors import SettingsError
from fieldflows.store import ResultsCollection, get_store
from tests.campaigns.made import ELECTRONIC, FUNNEL, LATTICE, crystals, failures_of, results_of
from tests.campaigns.test_fireworks_engine import launchpad, work  # noqa: F401  (a fixture)
from tests.campaigns.test_remote_engine import engine, projects, runner, write  # noqa: F401  (fixtures)
from tests.support.engines import SECRET, everything_in
from tests.support.mongodb import address  # noqa: F401  (a fixture)

RELAX = {"name": "relax", "task": "relax", "settings": {"force_threshold": 0.001}}
STAGES = [RELAX, ELECTRONIC, LATTICE | {"worker": "gpu"}]
FIREWORKS = EngineConfig(name="fireworks", worker_names={"cpu": "milan", "gpu": "a100"}, priority=3)
REMOTE = EngineConfig(name="remote", worker_names={"cpu": "cpu_worker", "gpu": "cpu_worker"})


def falls_apart() -> Atoms:
    """A crystal that passes every check, and that no relaxation brings to an end."""
    return bulk("HF", "rocksalt", (8 * 2.05) ** (1 / 3))


def campaign(stages: Sequence[dict[str, Any]] = STAGES, structures: int = 5) -> Campaign:
    given = [*crystals(12), falls_apart()]
    return Campaign.of("salts", given, model="toy", stages=list(stages), chunks={"structures": structures})


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> JobStore:
    """The store of the same campaign on the local engine."""
    folder = tmp_path_factory.mktemp("local")
    made = get_store(folder / "local.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIELDFLOWS_JOURNALS", str(folder))
        found = campaign().run(made)
    assert found.complete
    assert dict(found.stages[0].failed) == {"StructureError": 1}
    assert 0 < found.stages[2].done < 12
    return made


def states(store: JobStore, engine: str) -> dict[str, int]:  # noqa: F811
    return {state: count for state, count in status_of(store, "salts").engines[engine].items() if count}


def same(store: JobStore, other: JobStore) -> None:
    """Compare results, failures and the table of the campaign."""
    assert results_of(store) == results_of(other)
    assert failures_of(store) == failures_of(other)
    tables = [list(rows(one, Campaigns.of(one).require("salts"))) for one in (store, other)]
    assert tables[0] == tables[1]


def test_fireworks_gives_what_the_local_engine_gives(local, launchpad, address, tmp_path, capsys) -> None:  # noqa: F811
    store = get_store(address)
    campaign().submit(store)
    ids = submit_to_engine(store, "salts", FIREWORKS)
    assert states(store, "fireworks") == {"ready": 3, "waiting": 1}
    with pytest.raises(SettingsError, match="still in the queue of fireworks: 1 waiting, 3 ready"):
        submit_to_engine(store, "salts", FIREWORKS)

    work(launchpad, "milan")
    found = status_of(store, "salts")
    assert (found.stages[1].done, found.stages[2].done) == (12, 0)
    assert found.stages[2].pending > 0
    added = list(launchpad.fireworks.find({"state": "READY"}))
    assert {(item["spec"]["_category"], item["spec"]["_priority"]) for item in added} == {("a100", 3)}
    assert not set(ids) & {str(item["fw_id"]) for item in added}
    work(launchpad, "a100")
    assert status_of(store, "salts").complete
    assert states(store, "fireworks") == {"done": 4}
    same(store, local)

    assert submit_to_engine(store, "salts", FIREWORKS) == []
    again = submit_to_engine(store, "salts", FIREWORKS, retry_failed=True)
    assert len(again) == 2  # the chunk in which something failed, and the job that adds up
    before = results_of(store)
    work(launchpad, "milan")
    work(launchpad, "a100")
    assert results_of(store) == before
    assert failures_of(store) == failures_of(local)
    texts = list(everything_in(address, tmp_path / "journals"))
    assert {"fireworks", "campaigns", "campaign_chunks", "results", "failures"} <= {name for name, _ in texts}
    assert [name for name, text in texts if SECRET in text] == []
    assert SECRET not in "".join(capsys.readouterr())


def test_jobs_are_taken_back_and_handed_out_again(launchpad, address: str) -> None:  # noqa: F811
    store = get_store(address)
    campaign(FUNNEL).submit(store)
    submit_to_engine(store, "salts", FIREWORKS)
    assert cancel_everywhere(store, "salts") == 4
    found = status_of(store, "salts")
    assert (found.canceled, found.complete) == (True, False)
    work(launchpad, "")
    assert results_of(store) == {}
    assert states(store, "fireworks") == {"canceled": 4}

    submit_to_engine(store, "salts", FIREWORKS)
    assert not status_of(store, "salts").canceled
    work(launchpad, "milan")
    found = status_of(store, "salts")
    assert found.complete
    assert found.stages[0].done == 13
    assert states(store, "fireworks") == {"canceled": 4, "done": 4}
    Path("launchpad.yaml").unlink()
    (reason,) = status_of(store, "salts").engines["fireworks"]
    assert "cannot be asked (There is no LaunchPad" in reason


def test_a_campaign_may_change_its_engine(local, launchpad, address: str) -> None:  # noqa: F811
    """Begun here, where one chunk is done, and finished by FireWorks, which is given the others alone."""
    from fieldflows.campaigns.campaign import work_locally

    store = get_store(address)
    campaign().submit(store)

    def stop(stage: str, done: int, failed: int) -> None:
        if stage == "lattice":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work_locally(store, "salts", report=stop)
    submit_to_engine(store, "salts", FIREWORKS)
    (submission,) = Campaigns.of(store).require("salts")["submissions"]
    assert submission["chunks"] == [1, 2]
    work(launchpad, "milan")
    work(launchpad, "a100")
    assert status_of(store, "salts").complete
    same(store, local)


def carried(store: JobStore, local: JobStore, chunks: int) -> None:
    """Run the campaign through jobflow-remote, on a worker without a store."""
    ids = submit_to_engine(store, "salts", REMOTE)
    assert states(store, "remote") == {"ready": chunks, "waiting": 1}
    with pytest.raises(SettingsError, match="still in the queue of remote"):
        submit_to_engine(store, "salts", REMOTE)
    assert runner().wait(100) == 0
    assert results_of(store) == {}
    found = status_of(store, "salts")  # takes over what came in the outputs
    assert found.complete
    assert states(store, "remote") == {"done": chunks + 1}
    assert len(ids) == chunks + 1
    assert collect_outputs(store, "salts") == 0
    same(store, local)


def test_remote_workers_without_a_store_give_the_same(local, engine, address: str, monkeypatch) -> None:  # noqa: F811
    monkeypatch.delenv("FIELDFLOWS_STORE", raising=False)
    store = get_store(address)
    campaign(structures=13).submit(store)
    carried(store, local, 1)


def sent(store: JobStore, uuid: str, results: list[dict[str, Any]]) -> None:
    """Store an output of a chunk job as jobflow-remote brings it."""
    metadata = {"campaign": "salts", "task": "campaign_chunk"}
    output = {"results": results, "failures": []}
    store.docs_store.update([{"uuid": uuid, "index": 1, "metadata": metadata, "output": output}], key=["uuid", "index"])


def test_outputs_that_come_late_take_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = get_store(tmp_path / "s.db"), get_store(tmp_path / "other.db")
    campaign(FUNNEL).run(store)
    campaign([ELECTRONIC]).run(other)
    manifest = Campaigns.of(store).require("salts")
    manifest["submissions"].append({"engine": "remote", "settings": REMOTE.model_dump(mode="json"), "ids": []})
    Campaigns.of(store).save(manifest)
    before, partial = results_of(store), list(ResultsCollection.of(other).query())
    assert set(before) == {row["key"] for row in partial}
    sent(store, "late", partial)
    lattice = sum(row["status_ionic"] == "ok" for row in before.values())
    assert 0 < lattice < len(before)
    assert collect_outputs(store, "salts") == len(before) - lattice  # the later of two equal ones
    assert results_of(store) == before

    # what others write to the manifest meanwhile stays, and an output that cannot be read hides no other
    real = type(store).get_output

    def get_output(self, uuid: str, *words: Any, **options: Any) -> Any:
        cancel(store, "salts")
        if uuid == "broken":
            raise ValueError("it is not there")
        return real(self, uuid, *words, **options)

    monkeypatch.setattr(type(store), "get_output", get_output)
    ResultsCollection.of(store).remove(list(before))
    sent(store, "broken", [])
    sent(store, "new", partial[:3])
    assert collect_outputs(store, "salts") == 3
    manifest = Campaigns.of(store).require("salts")
    assert manifest["canceled_at"]
    assert {"late:1", "new:1"} <= set(manifest["collected"])
    assert "broken:1" not in manifest["collected"]


@pytest.mark.slow
def test_remote_workers_with_several_chunks_give_the_same(local, engine, address: str, monkeypatch) -> None:  # noqa: F811
    monkeypatch.delenv("FIELDFLOWS_STORE", raising=False)
    store = get_store(address)
    campaign().submit(store)
    carried(store, local, 3)


def test_remote_jobs_go_to_the_workers_that_are_named(engine, address: str) -> None:  # noqa: F811
    from jobflow_remote.jobs.jobcontroller import JobController

    store = get_store(address)
    campaign().submit(store)
    submit_to_engine(store, "salts", EngineConfig(name="remote", priority=2))
    controller = JobController.from_project_name()
    rows_ = list(controller.jobs.find())
    controller.close()
    chunks = [row for row in rows_ if len(row["job"]["function_args"]) == 1]  # not the one that adds up
    assert len(chunks) == 3
    assert {(row["worker"], row["priority"]) for row in rows_} == {("cpu_worker", 2)}
    placements = {word: {"worker": f"{word}_worker", "priority": 2} for word in ("cpu", "gpu")}
    assert all(json.loads(row["job"]["function_args"][0])["placements"] == placements for row in chunks)
    assert cancel_everywhere(store, "salts") == 4
    assert states(store, "remote") == {"canceled": 4}
