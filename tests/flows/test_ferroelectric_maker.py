"""The Maker of spontaneous polarizations: pairs, screenings, relaxation, identifiers, early errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ase.build import bulk
from jobflow import run_locally
from monty.json import MontyDecoder, MontyEncoder

from fieldflows import SpontaneousPolarizationMaker
from fieldflows.errors import CapabilityError, CheckpointError, InputError, PathError
from fieldflows.jobs import structures as named
from fieldflows.jobs.relax import RelaxSettings
from fieldflows.properties.spontaneous_polarization import SpontaneousPolarizationSettings
from fieldflows.schemas.ferroelectric import FerroelectricScreeningDocument, SpontaneousPolarizationDocument
from fieldflows.store import ResultsCollection, get_store
from fieldflows.structures import as_structure
from fieldflows.testing.structures import wurtzite_zno
from tests.physics.pairs import PAIRS, lead_titanate

QUICK = SpontaneousPolarizationSettings(consistency=False, n_frames=4)


def maker(**options) -> SpontaneousPolarizationMaker:
    return SpontaneousPolarizationMaker(**{"model": "toy", "other_models": (), "settings": QUICK, **options})


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return get_store(tmp_path / "s.db")


def run(flow, store):
    responses = run_locally(flow, store=store, log=False, ensure_success=True, raise_immediately=True)
    return [response.output for runs in responses.values() for response in runs.values()]


def test_a_pair_gives_one_document_that_is_stored(store):
    nonpolar, polar = lead_titanate()
    made = maker(other_models=("ferroelectric",)).make(polar, nonpolar)
    made = json.loads(json.dumps(made, cls=MontyEncoder), cls=MontyDecoder)  # as a workflow manager sends it
    (document,) = run(made, store)
    assert isinstance(document, SpontaneousPolarizationDocument)
    assert (document.nonpolar_origin, len(document.independent)) == ("given", 1)
    assert ResultsCollection.of(store).get(document.key) == document.to_json_dict()
    assert store.query_one({"metadata.formula": "TiPbO3"})["output"]["ps_norm"] == document.ps_norm
    (again,) = run(maker(other_models=("ferroelectric",)).make(polar, nonpolar), store)
    assert again == document


def test_screening_takes_the_polar_ones_and_names_failures(store):
    crystals = [*(PAIRS[name]()[1] for name in ("BaTiO3", "PbTiO3")), bulk("MgO", "rocksalt", 4.21), wurtzite_zno()]
    flow = maker(chunk_structures=3, settings=QUICK.model_copy(update={"max_displacement": 0.32})).screen(crystals)
    assert len(flow.jobs) == 2
    first, second = run(flow, store)
    assert isinstance(first, FerroelectricScreeningDocument)
    assert (len(first.results), first.n_not_polar, first.n_structures) == (2, 1, 3)
    assert [item.formula_pretty for item in first.results] == ["BaTiO3", "TiPbO3"]
    assert len(second.results) + len(second.failures) == 1
    rows = ResultsCollection.of(store).fetch([item.key for item in first.results])
    assert {row["formula_pretty"] for row in rows} == {"BaTiO3", "TiPbO3"}


def test_a_failure_raises_for_one_crystal_and_not_for_many(store):
    with pytest.raises(Exception, match="allows no polarization") as caught:
        run(maker().make(bulk("MgO", "rocksalt", 4.21)), store)
    assert isinstance(caught.value, PathError) or "PathError" in repr(caught.value.__cause__ or caught.value)
    narrow = QUICK.model_copy(update={"max_displacement": 0.01})
    (document,) = run(maker(settings=narrow).screen([lead_titanate()[1]]), store)
    assert document.results == ()
    assert "No nonpolar crystal is near" in document.failures[0].message


def test_both_ends_are_relaxed_on_request(store):
    nonpolar, polar = PAIRS["AlN"]()
    relax = RelaxSettings(relax_cell=False, force_threshold=0.01)
    (document,) = run(maker(relax=relax).make(polar, nonpolar), store)
    assert document.relaxation.converged
    assert document.nonpolar_relaxation.converged
    assert document.provenance.settings["relax"]["relax_cell"] is False
    moved = np.abs(document.structure.frac_coords - as_structure(polar).frac_coords)
    assert (moved - np.round(moved)).max() > 1e-4


def test_identifiers_are_asked_for_where_the_job_runs(store, monkeypatch):
    ends = dict(zip(("mp-1", "mp-2"), lead_titanate(), strict=True))
    asked = []

    def fetch(identifier, refresh=False):
        asked.append(identifier)
        return ends[identifier]

    monkeypatch.setattr("fieldflows.datasets.mp_structures.fetch_structure", fetch)
    job = maker().make("mp-2", "mp-1")
    assert asked == []
    (document,) = run(job, store)
    assert sorted(asked) == ["mp-1", "mp-2"]
    assert (document.material_id, document.nonpolar_id) == ("mp-2", "mp-1")
    assert named.named_structure("mp-1").material_id == "mp-1"


def test_wishes_that_no_model_can_fulfill_show_before_anything_is_submitted():
    polar = lead_titanate()[1]
    with pytest.raises(CapabilityError, match="relaxation"):
        maker(model="ferroelectric", relax=RelaxSettings()).make(polar)
    with pytest.raises(CapabilityError, match="hessian_model"):
        maker(hessian_model="dielectric").make(polar)
    with pytest.raises(CheckpointError, match="no-such-model"):
        maker(other_models=("no-such-model",)).make(polar)
    with pytest.raises(InputError, match="no structures"):
        maker().screen([])
