"""Campaigns over the Materials Project: the real mp-api client against a real server on loopback."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from emmet.core.mpid import AlphaID
from jobflow import JobStore

from fieldflows.campaigns import Campaign, CampaignConfig
from fieldflows.campaigns.campaign import remove
from fieldflows.campaigns.export import rows
from fieldflows.campaigns.records import Campaigns
from fieldflows.errors import InputError, KeyProblem, Unreachable
from fieldflows.store import ResultsCollection
from tests.campaigns.made import failures_of
from tests.cli.conftest import cli  # noqa: F401  (a fixture)
from tests.datasets.mp_made import IDS, dielectric, summary
from tests.support.materials_project import KEY, serve
from tests.support.replay import ReplayServer

SUMMARY, DIELECTRIC = "/materials/summary/", "/materials/dielectric/"
GAPS = {"ZnO": 0.73, "GaN": 1.74, "BeO": 0.0}
HULL = {"ZnO": 0.0, "GaN": 0.01, "BeO": 0.02}
OPTICAL = {"name": "optical", "settings": {"ionic": False}}


@pytest.fixture(autouse=True)
def _places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache and home, and a key."""
    monkeypatch.setenv("FIELDFLOWS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MP_API_KEY", KEY)
    monkeypatch.delenv("PMG_MAPI_KEY", raising=False)


def summaries(**more: Any) -> list[dict[str, Any]]:
    made = [summary(name, band_gap=GAPS[name], energy_above_hull=HULL[name], elements=[name[:2]]) for name in IDS]
    return [item | more.get(item["formula_pretty"], {}) for item in made]


def documents(**more: Any) -> dict[str, list[dict[str, Any]]]:
    """What the service holds; BeO has no permittivity."""
    return {"summary": summaries(**more), "dielectric": [dielectric("ZnO"), dielectric("GaN")]}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ReplayServer]:
    with serve(documents()) as made:
        monkeypatch.setenv("MP_API_ENDPOINT", made.url)
        yield made


def campaign(stages: list[dict[str, Any]] | None = None, **given: Any) -> Campaign:
    entry = given or {"mp_ids": list(IDS.values())}
    data = {"name": "mp", "inputs": [entry], "model": {"name": "toy"}, "stages": stages or [OPTICAL]}
    return Campaign(CampaignConfig.from_dict(data))


def names(made: Campaign, store: JobStore | None = None) -> list[str | None]:
    return [item.material_id for item in made.plan(store).items]


def test_predictions_stand_beside_what_the_database_says(server: ReplayServer, store: JobStore) -> None:
    found = campaign([OPTICAL | {"where": "band_gap > 0.5"}]).run(store)
    assert found.complete
    assert (found.stages[0].done, found.stages[0].rejected) == (2, 1)
    by_id = {row["material_id"]: row for row in ResultsCollection.of(store).query()}
    assert set(by_id) == {IDS["ZnO"], IDS["GaN"]}
    for name in ("ZnO", "GaN"):
        row, published = by_id[IDS[name]], dielectric(name)
        assert (row["formula_pretty"], row["band_gap"], row["insulating"]) == (name, GAPS[name], "yes")
        reference = row["reference"]
        assert reference["source"] == "Materials Project"
        assert reference["version"] == "2026.04.13"
        assert reference["energy_above_hull"] == HULL[name]
        for field in ("n", "e_electronic", "e_ionic", "e_total"):
            assert reference[field] == pytest.approx(published[field], rel=1e-12)
        assert reference["total"] == published["total"]
        assert row["n"] != reference["n"]
    table = {row["formula"]: row for row in rows(store, Campaigns.of(store).require("mp"))}
    assert table["ZnO"]["reference_e_total"] == pytest.approx(dielectric("ZnO")["e_total"])
    assert (table["BeO"]["stage_optical"], table["BeO"]["reference_e_total"]) == ("rejected", None)
    assert table["BeO"]["reference_energy_above_hull"] == HULL["BeO"]


def test_conditions_may_ask_what_the_database_says(server: ReplayServer, store: JobStore) -> None:
    made = campaign([OPTICAL | {"where": "reference.e_total > 14 and reference.energy_above_hull <= 0.01"}])
    assert (dielectric("ZnO")["e_total"] < 14 < dielectric("GaN")["e_total"], HULL["GaN"]) == (True, 0.01)
    found = made.run(store)
    assert (found.stages[0].done, found.stages[0].rejected) == (1, 2)
    (row,) = ResultsCollection.of(store).query()
    assert row["material_id"] == IDS["GaN"]


def test_a_second_plan_asks_for_nothing(server: ReplayServer, store: JobStore) -> None:
    first = campaign().plan(store)
    assert (server.count(SUMMARY), server.count(DIELECTRIC)) == (1, 1)  # all ids in one request
    asked = [item.params["material_ids"] for item in server.requests if item.path == SUMMARY]
    assert sorted(asked[0].split(",")) == sorted(IDS.values())
    before = server.count()
    again = campaign().plan(store)
    assert server.count() == before
    assert [item.keys for item in again.items] == [item.keys for item in first.items]
    campaign().run(store)
    assert server.count() == before
    without = campaign(mp_ids=list(IDS.values()), reference=False)
    assert all(item.reference["e_total"] is None for item in without.plan(store).items)
    assert server.count(DIELECTRIC) == 1


def test_many_ids_go_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [summary("ZnO", material_id=f"mp-{number}") for number in range(1, 251)]
    for number, item in enumerate(held):
        scaled = json.loads(json.dumps(item["structure"]))
        scaled["lattice"]["matrix"] = [[x * (1 + 1e-4 * number) for x in row] for row in scaled["lattice"]["matrix"]]
        item["structure"] = scaled
    with serve({"summary": held, "dielectric": []}) as made:
        monkeypatch.setenv("MP_API_ENDPOINT", made.url)
        wanted = [f"mp-{number}" for number in range(250, 0, -1)]
        assert names(campaign(mp_ids=wanted)) == wanted
        sizes = [len(item.params["material_ids"].split(",")) for item in made.requests if item.path == SUMMARY]
        assert sizes == [100, 100, 50]


def test_the_order_of_the_ids_and_either_spelling(server: ReplayServer, tmp_path: Path) -> None:
    order = [IDS["BeO"], IDS["ZnO"], IDS["GaN"]]
    assert names(campaign(mp_ids=order)) == order
    alpha = [str(AlphaID(name)) for name in order]
    assert alpha != order
    made = campaign(mp_ids=[*alpha, IDS["GaN"]]).plan()
    assert [item.facts["formula_pretty"] for item in made.items] == ["BeO", "ZnO", "GaN"]
    assert [item.reference["e_total"] is None for item in made.items] == [True, False, False]
    (tmp_path / "ids.txt").write_text(f"# oxides\n{IDS['ZnO']}\n\n{alpha[0]}  # beryllium\n", encoding="utf-8")
    made = campaign(mp_ids=str(tmp_path / "ids.txt")).plan()
    assert [item.facts["formula_pretty"] for item in made.items] == ["ZnO", "BeO"]
    assert names(campaign(mp_ids=order, limit=2)) == order[:2]


def test_what_is_not_there_is_a_failure_and_stops_nothing(server: ReplayServer, store: JobStore) -> None:
    found = campaign(mp_ids=["mp-999999", *IDS.values()]).run(store)
    assert (found.crystals, found.unreadable, found.stages[0].done) == (3, 1, 3)
    (failure,) = failures_of(store).values()
    assert (failure["stage"], failure["error_type"], failure["material_id"]) == ("read", "InputError", "mp-999999")
    assert failure["message"].startswith("The Materials Project has no material mp-999999.")
    assert (failure["campaign"], failure["transient"]) == ("mp", False)
    last = list(rows(store, Campaigns.of(store).require("mp")))[-1]
    assert (last["material_id"], last["error_type"]) == ("mp-999999", "InputError")
    remove(store, "mp")
    with pytest.raises(InputError, match="None of 1 inputs can be computed: The Materials Project has no material"):
        campaign(mp_ids=["mp-999999"]).run(store)
    plan = campaign(mp_ids=["mp-1.5", IDS["ZnO"]]).plan()
    assert [item.material_id for item in plan.items] == [IDS["ZnO"]]
    assert [item.message.partition(".5")[0] for item in plan.failures] == ["'mp-1"]
    assert "is no id of the Materials Project" in plan.failures[0].message
    with pytest.raises(InputError, match="cannot be read"):
        campaign(mp_ids="nowhere.txt").plan()


def test_a_document_that_is_malformed_is_a_failure(monkeypatch: pytest.MonkeyPatch, store: JobStore) -> None:
    with serve(documents(GaN={"structure": {"sites": "none"}}, BeO={"band_gap": "wide"})) as made:
        monkeypatch.setenv("MP_API_ENDPOINT", made.url)
        plan = campaign().plan(store)
    assert [item.material_id for item in plan.items] == [IDS["ZnO"]]
    assert {item.material_id: item.error_type for item in plan.failures} == dict.fromkeys(
        (IDS["GaN"], IDS["BeO"]), "WrongAnswer"
    )


def test_deprecated_materials_on_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(documents(GaN={"deprecated": True})) as made:
        monkeypatch.setenv("MP_API_ENDPOINT", made.url)
        plan = campaign().plan()
        assert [item.facts["formula_pretty"] for item in plan.items] == ["ZnO", "BeO"]
        assert "deprecated: true takes those too" in plan.failures[0].message
        plan = campaign(mp_ids=list(IDS.values()), deprecated=True).plan()
        assert [item.facts["formula_pretty"] for item in plan.items] == ["ZnO", "GaN", "BeO"]
        assert plan.failures == []


def test_a_query(server: ReplayServer) -> None:
    query = {"chemsys": ["O-Zn", "Be-O"]}
    made = campaign(mp_query=query).plan()
    assert [item.facts["formula_pretty"] for item in made.items] == ["ZnO", "BeO"]
    (search,) = [item.params for item in server.requests if item.params.get("chemsys")]
    assert set(search["chemsys"].split(",")) == {"O-Zn", "Be-O"}
    assert "has_props" not in search  # materials without a published permittivity count too
    before = server.count()
    assert names(campaign(mp_query=query, limit=1)) == [IDS["ZnO"]]
    assert server.count() == before
    with pytest.raises(InputError, match=r"Input 1 \(mp_query\) holds no crystal"):
        campaign(mp_query={"chemsys": "Xe"}).plan()


def test_the_key_is_nowhere(server: ReplayServer, store: JobStore, tmp_path: Path, cli, caplog) -> None:  # noqa: F811
    caplog.set_level(logging.DEBUG)
    data = {
        "name": "mp",
        "inputs": [{"mp_ids": [*IDS.values(), "mp-999999"]}],
        "model": {"name": "toy"},
        "stages": [OPTICAL],
        "chunks": {"structures": 1},
    }
    (tmp_path / "mp.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    said = ""
    for words in (("plan", "mp.yaml"), ("submit", "mp.yaml"), ("status", "mp", "--json"), ("export", "mp")):
        answer = cli("campaign", *words, "--store", "mp.db")
        assert answer.code == (1 if words[0] == "submit" else 0)
        said += answer.out + answer.err
    server.misbehave("echo_key")
    (tmp_path / "more.yaml").write_text((tmp_path / "mp.yaml").read_text().replace("mp-999999", "mp-888888"))
    answer = cli("campaign", "plan", "more.yaml", "--store", "other.db")
    assert answer.code == 2
    assert any(item.headers.get("x-api-key") == KEY for item in server.requests)
    assert KEY not in said + answer.out + answer.err + caplog.text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"mp.db", "mp.yaml"} <= {path.name for path in files}
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_keys_and_networks_that_do_not_work(server: ReplayServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MP_API_KEY", "x" * 32)
    with pytest.raises(KeyProblem) as caught:
        campaign().plan()
    assert "x" * 32 not in str(caught.value)
    monkeypatch.setenv("MP_API_KEY", "short")
    with pytest.raises(KeyProblem, match="has 5 characters"):
        campaign().plan()
    monkeypatch.delenv("MP_API_KEY")
    monkeypatch.setattr("pymatgen.core.SETTINGS", {})
    with pytest.raises(KeyProblem, match="none is set"):
        campaign().plan()
    monkeypatch.setenv("MP_API_KEY", KEY)
    monkeypatch.setattr("fieldflows.datasets.web.time.sleep", lambda seconds: None)
    monkeypatch.setenv("MP_API_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(Unreachable):
        campaign().plan()
