"""``fieldflows campaign``: what each command shows and writes, exit codes, what is refused."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from ase.io import write

from fieldflows.backends.toy import ToyModel
from fieldflows.campaigns.campaign import work_locally
from fieldflows.campaigns.records import Campaigns, Chunks, Progress
from fieldflows.store import FailuresCollection, ResultsCollection, get_store
from fieldflows.testing.mongodb import memory_mongodb
from tests.campaigns.made import crystals

SECRET = "hunter2"
FILE = """\
name: salts
inputs:
  - files: salts.extxyz
model: {name: toy}
stages:
  - name: optical
    settings: {ionic: false}
  - name: lattice
    where: n < 1.9
    settings: {ionic: true}
chunks: {structures: 3}
store: salts.db
"""


@pytest.fixture
def campaign(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Run a command of the group in a folder with a campaign file of six crystals."""
    monkeypatch.setenv("FIELDFLOWS_JOURNALS", str(tmp_path / "journals"))
    write("salts.extxyz", crystals(6), format="extxyz")
    Path("salts.yaml").write_text(FILE, encoding="utf-8")
    return lambda *words: cli("campaign", *words)


@pytest.fixture
def evaluations(broken: set[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The formulas that the model was asked for; those in ``broken`` fail."""
    asked: list[str] = []
    real = ToyModel._respond

    def respond(model, structure, field, names):
        asked.append(structure.get_chemical_formula())
        if asked[-1] in broken:
            raise ValueError("no such luck")
        return real(model, structure, field, names)

    monkeypatch.setattr(ToyModel, "_respond", respond)
    return asked


@pytest.fixture
def broken() -> set[str]:
    """Formulas at which the model fails."""
    return set()


def documents(path: str = "salts.db") -> list[dict]:
    return list(ResultsCollection.of(get_store(path)).query())


def test_plan_shows_and_writes_nothing(campaign) -> None:
    write("twice.extxyz", crystals(1), format="extxyz")
    Path("empty.cif").write_text("")
    Path("more.yaml").write_text(FILE.replace("salts.extxyz", "[salts.extxyz, twice.extxyz, empty.cif]"))
    answer = campaign("plan", "more.yaml")
    assert answer.code == 0
    for text in (
        "6 distinct crystals, 12 atoms; 1 duplicates, 1 that cannot be used",
        "n < 1.9", "toy (", "2 chunks", "is empty",
    ):  # fmt: skip
        assert text in answer.out
    assert not Path("salts.db").exists()
    data = json.loads(campaign("plan", "more.yaml", "--json").out)
    counts = [data[name] for name in ("crystals", "atoms", "duplicates", "unreadable", "chunks")]
    assert counts == [6, 12, 1, 1, 2]
    assert [stage["at_most"] for stage in data["stages"]] == [6, 6]
    assert data["failures"][0]["error_type"] == "InputError"
    assert not Path("salts.db").exists()
    # what is stored already, in a store that is there
    assert campaign("submit", "salts.yaml").code == 0
    before = Path("salts.db").read_bytes()
    data = json.loads(campaign("plan", "more.yaml", "--json").out)
    assert [stage["stored"] for stage in data["stages"]] == [6, sum(d["status_ionic"] == "ok" for d in documents())]
    assert Path("salts.db").read_bytes() == before


def test_submit_computes_and_the_second_time_finds(campaign, evaluations) -> None:
    answer = campaign("submit", "salts.yaml")
    assert answer.code == 0
    assert "Campaign salts: 6 crystals in 2 chunks" in answer.err
    assert "Campaign salts: 6 crystals, complete" in answer.out
    found = documents()
    assert len(found) == 6
    assert {doc["status_ionic"] for doc in found} == {"ok", "not_requested"}
    assert evaluations
    evaluations.clear()
    again = campaign("submit", "salts.yaml", "--json")
    assert (again.code, evaluations) == (0, [])
    data = json.loads(again.out)
    assert data["complete"] is True
    done = [stage["done"] for stage in data["stages"]]
    assert done == [6, sum(doc["status_ionic"] == "ok" for doc in found)]


@pytest.mark.parametrize("name", ["salts", "salts.yaml"])
def test_a_campaign_by_its_name_or_its_file(campaign, name: str) -> None:
    assert campaign("submit", "salts.yaml", "--only-write").code == 0
    store = [] if name == "salts.yaml" else ["--store", "salts.db"]
    data = json.loads(campaign("status", name, *store, "--json").out)
    assert (data["campaign"], data["complete"], data["stages"][0]["pending"]) == ("salts", False, 6)
    answer = campaign("status", name, *store)
    assert answer.code == 0
    assert "0 workers at work; time left unknown" in answer.out
    assert campaign("resume", name, *store).code == 0
    assert "complete" in campaign("status", name, *store).out
    assert len(list(csv.DictReader(io.StringIO(campaign("export", name, *store).out)))) == 6
    assert campaign("cancel", name, *store).code == 0
    assert campaign("remove", name, *store, "--yes").code == 0


def test_only_write_leaves_the_work(campaign, evaluations) -> None:
    answer = campaign("submit", "salts.yaml", "--only-write")
    assert (answer.code, answer.out, evaluations) == (0, "", [])
    assert "fieldflows campaign resume salts" in answer.err
    assert documents() == []
    assert len(Chunks.of(get_store("salts.db")).numbers("salts")) == 2


def test_one_that_fails_and_is_tried_again(campaign, broken, evaluations) -> None:
    broken.add("ClNa")
    answer = campaign("submit", "salts.yaml")
    assert answer.code == 1
    assert "1 ValueError" in answer.out
    assert "no such luck" in answer.out
    assert len(documents()) == 5
    evaluations.clear()
    assert campaign("resume", "salts.yaml").code == 1
    assert evaluations == []
    broken.clear()
    data = json.loads(campaign("resume", "salts.yaml", "--retry-failed", "--json").out)
    assert [stage["failed"] for stage in data["stages"]] == [{}, {}]
    assert set(evaluations) == {"ClNa"}
    assert len(documents()) == 6
    assert FailuresCollection.of(get_store("salts.db")).count() == 0


def test_nothing_that_can_be_done(campaign, broken, evaluations) -> None:
    broken.update({"MgO", "ClNa", "FLi", "BrK", "CaO"})
    assert campaign("submit", "salts.yaml").code == 2
    assert documents() == []
    assert len(set(evaluations)) == 5
    Path("empty.cif").write_text("")
    Path("empty.yaml").write_text(FILE.replace("salts.extxyz", "empty.cif").replace("name: salts", "name: none"))
    answer = campaign("submit", "empty.yaml")
    assert answer.code == 2
    assert answer.err.startswith("Error: None of 1 inputs can be computed")


def test_a_condition_that_nothing_fulfills_is_no_error(campaign) -> None:
    Path("salts.yaml").write_text(FILE.replace("  - name: optical\n", "  - name: optical\n    where: nsites > 2\n"))
    answer = campaign("submit", "salts.yaml", "--json")
    assert answer.code == 0
    assert [(stage["done"], stage["rejected"]) for stage in json.loads(answer.out)["stages"]] == [(0, 6), (0, 0)]
    assert documents() == []


def test_several_processes(campaign) -> None:
    answer = campaign("submit", "salts.yaml", "--workers", "2")
    assert answer.code == 0
    assert len(documents()) == 6
    owners = {row["owner"] for row in Progress.of(get_store("salts.db")).of_campaign("salts")}
    assert owners
    assert not any(owner.endswith(f":{os.getpid()}") for owner in owners)


def test_cancel_list_and_remove(campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign("submit", "salts.yaml", "--only-write")
    answer = campaign("cancel", "salts", "--store", "salts.db")
    assert answer.out == (
        "Campaign salts is canceled; 0 queued jobs were taken back. `campaign resume` goes on with it.\n"
    )
    assert "6 crystals, canceled" in campaign("status", "salts.yaml").out
    (row,) = json.loads(campaign("list", "--store", "salts.db", "--json").out)
    assert (row["campaign"], row["crystals"], row["chunks"], row["ready"]) == ("salts", 6, 2, True)
    assert row["canceled_at"]
    assert campaign("resume", "salts.yaml").code == 0
    (row,) = json.loads(campaign("list", "--store", "salts.db", "--json").out)
    assert row["canceled_at"] is None
    table = campaign("list", "--store", "salts.db").out
    assert "salts" in table
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert campaign("remove", "salts.yaml").code != 0
    assert Campaigns.of(get_store("salts.db")).get("salts")
    assert campaign("remove", "salts.yaml", "-y").code == 0
    store = get_store("salts.db")
    assert (list(Campaigns.of(store).query()), list(Chunks.of(store).query())) == ([], [])
    assert list(Progress.of(store).query()) == []
    assert len(documents()) == 6


def test_exports_have_the_same_rows(campaign) -> None:
    import pyarrow.parquet

    Path("empty.cif").write_text("")
    Path("salts.yaml").write_text(FILE.replace("salts.extxyz", "[salts.extxyz, empty.cif]"))
    assert campaign("submit", "salts.yaml").code == 1
    plain = list(csv.DictReader(io.StringIO(campaign("export", "salts.yaml", "--csv").out)))
    assert campaign("export", "salts.yaml").out == campaign("export", "salts.yaml", "--csv").out
    made = json.loads(campaign("export", "salts.yaml", "--json").out)
    answer = campaign("export", "salts.yaml", "--parquet", "t.parquet")
    assert (answer.code, answer.out, answer.err) == (0, "", "7 rows written to t.parquet\n")
    table = pyarrow.parquet.read_table("t.parquet").to_pylist()
    assert len(plain) == len(made) == len(table) == 7
    keys = {doc["key"]: doc for doc in documents()}
    for number in range(6):
        document = keys[made[number]["key"]]
        assert made[number]["index"] == table[number]["index"] == int(plain[number]["index"]) == number
        for value in (made[number]["n"], table[number]["n"], float(plain[number]["n"])):
            assert value == pytest.approx(document["n"], rel=1e-12)
        assert plain[number]["stage_lattice"] == ("done" if document["n"] < 1.9 else "rejected")
    assert made[6]["error_type"] == table[6]["error_type"] == plain[6]["error_type"] == "InputError"
    assert campaign("export", "salts.yaml", "--csv", "--json").code == 2


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["submit", "nowhere.yaml"], "There is no campaign file nowhere.yaml"),
        (["submit", "salts.yaml", "--engine", "slurm"], "There is no engine 'slurm'"),
        (["submit", "salts.yaml", "--engine", "fireworks", "--workers", "2"], "--workers is for the local engine"),
        (["submit", "salts.yaml", "--engine", "fireworks"], "There is no LaunchPad"),
        (["submit", "salts.yaml", "--workers", "0"], "workers"),
        (["submit", "salts.yaml", "--store", "no/such/folder/s.db"], "does not exist"),
        (["status", "salts"], "There is no store"),
        (["status", "salt", "--store", "other.db"], "There is no campaign 'salt' in this store. Known: other."),
        (["resume", "salts", "--store", "other.db"], "There is no campaign 'salts' in this store"),
        (["cancel", "salts", "--store", "other.db"], "There is no campaign 'salts' in this store"),
        (["export", "salts", "--store", "other.db"], "There is no campaign 'salts' in this store"),
        (["remove", "salts", "--store", "other.db", "-y"], "There is no campaign 'salts' in this store"),
        (["list", "--store", "nowhere.db"], "There is no store"),
        (["plan", "wrong.yaml"], "wrong.yaml, line 9: stage 'lattice': There is no field 'm'"),
        (["submit", "other.yaml"], "A campaign 'other' with other inputs, models or stages is in this store"),
    ],
)
def test_what_prevents_everything_is_one_line(campaign, monkeypatch, words: list[str], reason: str) -> None:
    monkeypatch.delenv("FW_CONFIG_FILE", raising=False)
    monkeypatch.setattr("fireworks.fw_config.LAUNCHPAD_LOC", None)
    other = FILE.replace("name: salts", "name: other").replace("salts.db", "other.db")
    Path("other.yaml").write_text(other)
    campaign("submit", "other.yaml", "--only-write")
    Path("other.yaml").write_text(other.replace("n < 1.9", "n < 1.8"))
    Path("wrong.yaml").write_text(FILE.replace("n < 1.9", "m < 1.9"))
    answer = campaign(*words)
    assert answer.code == 2
    assert reason in answer.err
    remarks = answer.err.splitlines()
    assert remarks.pop().startswith("Error: ")
    assert remarks in ([], ["Campaign salts: 6 crystals in 2 chunks"])


def test_a_password_is_never_shown(campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fieldflows.store.select.MONGO_TIMEOUT_MS", 100)
    monkeypatch.setattr("fieldflows.store.patience.RETRY_DELAYS", ())
    address = f"mongodb://me:{SECRET}@127.0.0.1:1/x"
    monkeypatch.setenv("WHERE", address)
    Path("salts.yaml").write_text(FILE.replace("salts.db", "$WHERE"))
    for words in (
        ["plan", "salts.yaml"],
        ["submit", "salts.yaml"],
        ["status", "salts.yaml"],
        ["resume", "salts", "--store", address],
        ["cancel", "salts", "--store", address],
        ["export", "salts", "--store", address],
        ["list", "--store", address],
        ["remove", "salts", "--store", address, "-y"],
    ):
        answer = campaign(*words)
        assert answer.code == 2
        assert "127.0.0.1" in answer.err
        assert SECRET not in answer.out + answer.err


def test_the_manifest_holds_no_address(campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    with memory_mongodb() as server:
        monkeypatch.setenv("WHERE", f"{server}/fieldflows_secret?appName={SECRET}")
        Path("salts.yaml").write_text(FILE.replace("salts.db", "$WHERE"))
        answer = campaign("submit", "salts.yaml")
        assert answer.code == 0
        store = get_store(f"{server}/fieldflows_secret")
        rows = [*Campaigns.of(store).query(), *Chunks.of(store).query(), *Progress.of(store).query()]
        assert len(rows) == 5
        assert SECRET not in repr(rows) + answer.out + answer.err
        assert len(documents(f"{server}/fieldflows_secret")) == 6


def test_watching_ends_when_all_is_done(campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign("submit", "salts.yaml", "--only-write")
    shown = []

    def sleep(seconds: float) -> None:
        shown.append(seconds)
        work_locally(get_store("salts.db"), "salts")

    monkeypatch.setattr("fieldflows.cli.campaign.time", SimpleNamespace(sleep=sleep))
    answer = campaign("status", "salts.yaml", "--watch", "5")
    assert (answer.code, shown) == (0, [5.0])
    assert answer.out.count("Campaign salts:") == 2
    assert "complete" in answer.out


def test_an_interrupt_says_how_to_go_on(campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ToyModel._respond
    count = 0

    def respond(model, structure, field, names):
        nonlocal count
        count += 1
        if count == 1:
            signal.raise_signal(signal.SIGINT)
        return real(model, structure, field, names)

    monkeypatch.setattr(ToyModel, "_respond", respond)
    answer = campaign("submit", "salts.yaml")
    assert answer.code == 130
    assert "Interrupted. Go on with: fieldflows campaign resume salts" in answer.err
    assert 0 < len(documents()) < 6
    assert campaign("resume", "salts.yaml").code == 0
    assert len(documents()) == 6


def test_another_model_of_the_same_name_is_refused(campaign) -> None:
    """A worker computes with the model that was planned, or not at all."""
    campaign("submit", "salts.yaml", "--only-write")
    store = get_store("salts.db")
    manifest = Campaigns.of(store).require("salts")
    for stage in manifest["stages"]:
        stage["model"]["sha256"] = "0" * 64
    Campaigns.of(store).save(manifest)
    answer = campaign("resume", "salts.yaml")
    assert answer.code == 2
    assert documents() == []
