"""Several heads in one file: each gives its own results, under keys of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from jobflow import run_locally

from fieldflows import FieldCalculator, load_model
from fieldflows.errors import SettingsError
from fieldflows.flows.screening import DielectricMaker
from fieldflows.jobs.evaluate import extra_settings
from fieldflows.store import ResultsCollection, get_store
from tests.models.checkpoints import write_checkpoint

CRYSTAL = bulk("MgO", "rocksalt", 4.2)
HEADS = ("pt_head", "mp-dielectric")


@pytest.fixture
def model(tmp_path: Path) -> str:
    write_checkpoint(tmp_path / "two.safetensors", heads=HEADS)
    return str(tmp_path / "two.safetensors")


def test_every_head_has_results_of_its_own(model: str, tmp_path: Path) -> None:
    store = get_store(tmp_path / "s.db")
    makers = [DielectricMaker(model=model, head=head) for head in (None, *HEADS)]
    keys = [maker.keys([CRYSTAL])[0] for maker in makers]
    assert keys[0] == keys[1] != keys[2]
    for maker in makers:
        run_locally(maker.make(CRYSTAL), store=store, log=False, ensure_success=True, raise_immediately=True)
    results = ResultsCollection.of(store)
    assert results.count() == 2
    for key, head in zip(keys[1:], HEADS, strict=True):
        expected = load_model(model, head=head).evaluate(CRYSTAL, observables=("polarizability",)).polarizability
        np.testing.assert_allclose(results.get(key)["polarizability"], expected, rtol=1e-6, atol=1e-9)
    assert results.get(keys[2])["provenance"]["settings"]["head"] == "mp-dielectric"
    assert "head" not in results.get(keys[1])["provenance"]["settings"]


def test_default_heads_leave_keys_as_they_were(model: str) -> None:
    assert extra_settings(None, load_model(model).info, load_model("toy").info) == {}
    both = extra_settings(None, load_model(model).info, load_model(model, head="mp-dielectric").info)
    assert both == {"hessian_head": "mp-dielectric"}


def test_the_calculator_and_mistakes(model: str) -> None:
    atoms = CRYSTAL.copy()
    atoms.calc = FieldCalculator(model, head="mp-dielectric")
    expected = load_model(model, head="mp-dielectric").evaluate(CRYSTAL, observables=("polarizability",))
    np.testing.assert_allclose(atoms.calc.get_property("polarizability", atoms), expected.polarizability)
    with pytest.raises(SettingsError, match="Did you mean 'mp-dielectric'"):
        DielectricMaker(model=model, head="mp-dielectrics").make(CRYSTAL)
    with pytest.raises(SettingsError, match="hessian_head is for a hessian_model"):
        DielectricMaker(model=model, hessian_head="pt_head").make(CRYSTAL)
