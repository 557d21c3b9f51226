"""The difference of two datasets."""

from __future__ import annotations

import numpy as np
import pytest

from fieldflows.datasets.comparison import compare_datasets
from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import build_dataset
from tests.datasets.synthetic import EPS0, FORMULAS, dielectric_text, gaussian, perovskite, write

NAMES = ["CaTiO3", "CaTiS3", "CaZrO3", "CaZrS3"]


def build(tmp_path, name, texts, **more):
    path = write(tmp_path / name / "p.extxyz", "".join(texts)) if (tmp_path / name).mkdir() is None else None
    sources = [{"type": "paper_dielectric", "path": str(path)}]
    return build_dataset(DatasetConfig.from_dict({"name": name, "sources": sources} | more))


@pytest.fixture
def texts():
    return [dielectric_text(perovskite(*spec)) for spec in FORMULAS[:4]]


def test_the_same_content_is_the_same(tmp_path, texts):
    found = compare_datasets(build(tmp_path, "a", texts), build(tmp_path, "b", texts))
    assert found.same
    assert found.n_unchanged == 4
    assert [*found.added, *found.removed, *found.changed, *found.moved, *found.sources] == []
    assert set(found.configuration) >= {"name"}
    assert sorted(name for row in found.shared_materials.values() for names in row.values() for name in names) == NAMES


def test_added_removed_and_changed_frames(tmp_path, texts):
    stronger = perovskite(*FORMULAS[1])
    alpha = gaussian(stronger) + 0.01 * np.eye(3)
    wider = perovskite(*FORMULAS[2][:3], FORMULAS[2][3] + 0.1, FORMULAS[2][4])
    now = [
        dielectric_text(perovskite("Mg")),  # the others move by one place and are found all the same
        texts[0],
        dielectric_text(stronger, REF_polarisability=alpha),
        dielectric_text(wider),
    ]
    found = compare_datasets(build(tmp_path, "a", texts), build(tmp_path, "b", now, split={"salt": "x"}))
    assert not found.same
    assert found.added == ["MgTiO3 (p:0)", "CaZrO3 (p:3)"]  # another crystal at another place is another frame
    assert found.removed == ["CaZrO3 (p:2)", "CaZrS3 (p:3)"]
    (change,) = found.changed
    assert (change.frame, change.what) == ("CaTiS3 (p:2)", ["polarizability"])
    assert change.largest == {"polarizability": pytest.approx(0.01 * 4 * np.pi * EPS0)}  # (ε∞ − 1)/(4π) times 4π ε_vac
    assert found.configuration["split.salt"] == ("fieldflows", "x")
    assert list(found.sources) == ["p"]


def test_the_crystal_of_a_frame_may_change(tmp_path, texts):
    wider = dielectric_text(perovskite(*FORMULAS[2][:3], FORMULAS[2][3] + 0.1, FORMULAS[2][4]))
    found = compare_datasets(build(tmp_path, "a", texts), build(tmp_path, "b", [*texts[:2], wider, texts[3]]))
    assert [(change.frame, change.what) for change in found.changed] == [("CaZrO3 (p:2)", ["structure"])]
    assert (found.added, found.removed, found.n_unchanged) == ([], [], 3)


def test_moved_frames_and_shared_materials_by_subset(tmp_path, texts):
    one = build(tmp_path, "a", texts, split={"train": 1, "valid": 0, "test": 0})
    two = build(tmp_path, "b", texts, split={"train": 0, "valid": 0, "test": 1})
    found = compare_datasets(one, two)
    assert [(move.material, move.before, move.after) for move in found.moved] == [(n, "train", "test") for n in NAMES]
    assert found.shared_materials == {"train": {"test": NAMES}}
    assert found.n_unchanged == 0
    assert found.changed == []
