"""Outputs of workers without a store: a result that comes in makes failures void."""

from __future__ import annotations

from jobflow import JobStore

from fieldflows.campaigns.dispatch import collect_outputs
from fieldflows.campaigns.records import Campaigns
from fieldflows.schemas.failure import FailureDocument
from fieldflows.store import FailuresCollection
from tests.campaigns.made import campaign, failures_of, results_of


def test_a_result_that_comes_late_takes_the_failure_away(store: JobStore) -> None:
    campaign(count=5).run(store)
    rows = list(results_of(store).values())
    for row in rows:
        row["provenance"]["created_at"] = "2030-01-01T00:00:00Z"
    with_ionic = next(row for row in rows if row["status_ionic"] == "ok")
    without = next(row for row in rows if row["status_ionic"] == "not_requested")
    for row in (with_ionic, without):
        for extent in ("electronic", "ionic"):
            error = ValueError("earlier")
            FailuresCollection.of(store).put(
                [FailureDocument.from_error(error, "evaluate", task="dielectric", key=row["key"], extent=extent)]
            )
    manifest = Campaigns.of(store).require("salts")
    manifest["submissions"].append({"engine": "remote", "settings": {"name": "remote"}, "ids": []})
    Campaigns.of(store).save(manifest)
    store.update(
        {
            "uuid": "late",
            "index": 1,
            "metadata": {"campaign": "salts", "task": "campaign_chunk"},
            "output": {"results": rows, "failures": []},
        }
    )
    assert collect_outputs(store, "salts") == 5
    left = [(row["key"], row["extent"]) for row in failures_of(store).values()]
    assert left == [(without["key"], "ionic")]
    assert collect_outputs(store, "salts") == 0
