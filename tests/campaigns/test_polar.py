"""A stage of spontaneous polarizations takes the polar crystals, whatever came before it."""

from __future__ import annotations

import pytest
from jobflow import JobStore

from fieldflows.campaigns.campaign import Campaign
from fieldflows.campaigns.export import columns, ranked, rows
from fieldflows.campaigns.records import Campaigns
from fieldflows.errors import SettingsError
from fieldflows.store import ResultsCollection
from fieldflows.testing.structures import perovskite_srtio3, rocksalt_mgo, tetragonal_batio3, wurtzite_zno
from tests.campaigns.made import ELECTRONIC

CRYSTALS = (rocksalt_mgo, tetragonal_batio3, wurtzite_zno, perovskite_srtio3)
POLAR = {"name": "polar", "task": "spontaneous_polarization"}


@pytest.mark.parametrize("before", [[], [ELECTRONIC]])
def test_polar_crystals_alone_come_in(before: list, store: JobStore) -> None:
    made = Campaign.of("ferro", [make() for make in CRYSTALS], model="toy", stages=[*before, POLAR])
    found = made.run(store)
    state = found.stages[-1]
    assert found.complete
    assert (state.done, state.rejected, state.failed) == (2, 2, {})
    stored = list(ResultsCollection.of(store).query({"task": "spontaneous_polarization"}))
    assert {row["formula_pretty"] for row in stored} == {"BaTiO3", "ZnO"}
    assert {row["spacegroup_symbol"] for row in stored} == {"P4mm", "P6_3mc"}
    assert all(row["ps_norm"] > 0.1 and row["barrier"] is not None for row in stored)
    assert made.run(store).complete
    assert ResultsCollection.of(store).count({"task": "spontaneous_polarization"}) == 2


def test_other_models_give_the_uncertainty(store: JobStore) -> None:
    crystals = [tetragonal_batio3()]
    Campaign.of("one", crystals, model="toy", stages=[POLAR]).run(store)
    (alone,) = ResultsCollection.of(store).query({"task": "spontaneous_polarization"})
    assert (alone["independent"], alone["uncertainty"]) == ([], None)
    # the same document, extended by what is asked for now
    found = Campaign.of("two", crystals, model="toy", stages=[POLAR | {"other_models": ["toy"]}]).run(store)
    assert found.complete
    (both,) = ResultsCollection.of(store).query({"task": "spontaneous_polarization"})
    assert both["key"] == alone["key"]
    assert [item["model"]["name"] for item in both["independent"]] == ["toy"]
    assert both["independent"][0]["ps_norm"] == pytest.approx(both["ps_charges_norm"], rel=1e-6)
    assert both["uncertainty"] == pytest.approx(0.0, abs=1e-3)


def test_the_table_has_columns_to_rank_by(store: JobStore) -> None:
    Campaign.of("table", [make() for make in CRYSTALS], model="toy", stages=[ELECTRONIC, POLAR]).run(store)
    manifest = Campaigns.of(store).require("table")
    names = [field.path for field in columns(manifest)]
    assert {"ps_norm", "barrier", "energy_difference", "reference_energy_above_hull"} <= set(names)
    made = {row["formula"]: row for row in rows(store, manifest)}
    assert made["BaTiO3"]["ps_norm"] > 0
    assert made["BaTiO3"]["stage_polar"] == "done"
    assert (made["MgO"]["ps_norm"], made["MgO"]["stage_polar"]) == (None, "rejected")
    assert made["MgO"]["n"] > 1
    order = [row["formula"] for row in ranked(rows(store, manifest), "ps_norm", False, names)]
    largest = max(("BaTiO3", "ZnO"), key=lambda name: made[name]["ps_norm"])
    assert order[0] == largest
    assert set(order[2:]) == {"MgO", "SrTiO3"}
    with pytest.raises(SettingsError, match="Did you mean 'barrier'"):
        list(ranked([], "barier", False, names))


def test_other_models_are_for_polarizations() -> None:
    with pytest.raises(SettingsError, match="other_models are for"):
        Campaign.of("x", [rocksalt_mgo()], model="toy", stages=[ELECTRONIC | {"other_models": ["toy"]}])
