"""The document that the job of a dataset leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobflow import CURRENT_JOB

from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import build_dataset
from fieldflows.jobs.dataset import dataset_document
from fieldflows.schemas.dataset import DatasetDocument
from tests.datasets.synthetic import FORMULAS, dielectric_text, perovskite, write


def test_the_document_says_what_is_shared_with_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FIELDFLOWS_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setattr(CURRENT_JOB, "store", None)  # whatever ran before in this process
    texts = [dielectric_text(perovskite(*spec)) for spec in FORMULAS[:4]]
    for name, chosen in (("old", texts[:2]), ("new", texts)):
        write(tmp_path / f"{name}.extxyz", "".join(chosen))
    source = {"type": "paper_dielectric", "license": "made"}
    old = {"name": "old", "sources": [source | {"path": "old.extxyz"}]}
    build_dataset(DatasetConfig.from_dict(old, tmp_path)).save(tmp_path / "old")
    new = {"name": "new", "sources": [source | {"path": "new.extxyz"}], "overlap": ["old"]}
    dataset = build_dataset(DatasetConfig.from_dict(new, tmp_path))
    document = dataset_document(dataset, None, 0.0)
    assert document.overlap == {"old": {"formulas": 2, "structures": 2}}
    assert document.licenses == {"new": "made"}
    assert (document.digest, document.n_frames) == (dataset.digest, 4)
    assert DatasetDocument.from_json_dict(document.to_json_dict()) == document
