"""What is shared with another dataset: formulas, crystals, subset by subset; and what happens to the manifest."""

from __future__ import annotations

import gzip
import hashlib
import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from pymatgen.core import Lattice, Structure

from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import Dataset, build_dataset
from fieldflows.datasets.frame import LabeledFrame
from fieldflows.datasets.overlap import OverlapTarget, Reference, compare
from fieldflows.errors import DataError, SettingsError
from fieldflows.schemas.dataset import SubsetOverlap
from tests.datasets.synthetic import FORMULAS, dielectric_text, perovskite, write


def frame(atoms: Atoms, formula: str, split: str = "train", index: int = 0) -> LabeledFrame:
    return LabeledFrame(atoms, {}, formula, "a", index, split=split)


def find(frames, references, **tolerances):
    target = OverlapTarget(dataset="somewhere", **tolerances)
    return compare(frames, references, target, "other", "0" * 64, lambda *_: None)


def test_formulas_and_crystals_are_told_apart():
    rock, cesium = bulk("CsCl", "rocksalt", a=6.9), bulk("CsCl", "cesiumchloride", a=4.1)
    turned = rock.repeat((2, 1, 1))
    turned.rotate(40, (1, 2, 3), rotate_cell=True)
    turned.set_cell(turned.cell[:] * 1.03, scale_atoms=True)
    frames = [frame(rock, "CsCl"), frame(cesium, "CsCl", "test", 1), frame(bulk("MgO", "rocksalt", a=4.2), "MgO")]
    references = [
        Reference(turned, "CsCl", "mp-1", "fold_3"),
        Reference(rock, "CsCl", "mp-2", "fold_1"),
        Reference(rock, "CsCl", "mp-3", "fold_1"),
        Reference(bulk("NaF", "rocksalt", a=4.6), "NaF", "mp-4", "fold_0"),
    ]
    found = find(frames, references)
    assert found.shared_formulas == ["CsCl"]
    assert (found.n_frames, found.n_materials) == (4, 2)
    # the rock salt is in two folds, named once in each; the other polymorph is there by formula alone
    assert [(m.source_index, m.other, m.other_split) for m in found.matches] == [
        (0, "mp-1", "fold_3"),
        (0, "mp-2", "fold_1"),
    ]
    assert found.subsets == [
        SubsetOverlap(split="test", other_split="fold_1", n_formulas=1, n_frames=1, n_structures=0),
        SubsetOverlap(split="test", other_split="fold_3", n_formulas=1, n_frames=1, n_structures=0),
        SubsetOverlap(split="train", other_split="fold_1", n_formulas=1, n_frames=1, n_structures=1),
        SubsetOverlap(split="train", other_split="fold_3", n_formulas=1, n_frames=1, n_structures=1),
    ]


def test_the_volume_counts_if_asked_for():
    here, there = bulk("NaCl", "rocksalt", a=5.6), bulk("NaCl", "rocksalt", a=7.5)
    references = [Reference(there, "NaCl", "x", "")]
    assert len(find([frame(here, "NaCl")], references).matches) == 1
    assert len(find([frame(here, "NaCl")], references, scale=False).matches) == 0


def test_crystals_that_cannot_be_reduced_stop_nobody():
    flat = Atoms("NaCl", positions=np.zeros((2, 3)), cell=np.diag([1e-9, 5, 5]), pbc=True)
    references = [Reference(bulk("NaCl", "rocksalt", a=5.6), "NaCl", "x", "")]
    found = find([frame(flat, "NaCl"), frame(bulk("NaCl", "rocksalt", a=5.5), "NaCl", index=1)], references)
    assert [match.source_index for match in found.matches] == [1]


@pytest.fixture
def other(tmp_path):
    """A dataset with three of the eighteen perovskites, one of them nearly the same crystal, and another one."""
    text = dielectric_text(perovskite(*FORMULAS[0])) + dielectric_text(perovskite("Mg"))
    near = perovskite(*FORMULAS[1])
    text += dielectric_text(near.copy(cell=near.cell * 1.01))
    far = perovskite(*FORMULAS[2])
    text += dielectric_text(far.copy(cell=far.cell @ np.diag([1, 1, 1.4])))
    config = {"name": "old", "sources": [{"type": "paper_dielectric", "path": str(write(tmp_path / "o.xyz", text))}]}
    return build_dataset(DatasetConfig.from_dict(config)).save(tmp_path / "old")


def test_the_build_stores_what_is_shared(dielectric_file, tmp_path, other):
    source = {"type": "paper_dielectric", "path": str(dielectric_file)}
    plain = build_dataset(DatasetConfig.from_dict({"name": "d", "sources": [source]}))
    stages = set()
    data = {"name": "d", "sources": [source], "overlap": [str(other)]}
    dataset = build_dataset(DatasetConfig.from_dict(data), lambda stage, *_: stages.add(stage))
    assert dataset.digest == plain.digest  # the content is the same, whatever it is compared with
    assert "overlap" in stages
    (found,) = Dataset.load(dataset.save(tmp_path / "out")).manifest.overlap
    assert (found.name, found.kind, found.place) == ("old", "dataset", str(other))
    assert found.sha256 == json.loads((other / "manifest.json").read_text())["digest"]
    assert found.shared_formulas == ["CaTiO3", "CaTiS3", "CaZrO3"]
    assert [match.source_index for match in found.matches] == [0, 1]
    by_hand = {f.material: f.split for f in dataset.frames}
    assert all(match.split == match.other_split == by_hand[match.formula] for match in found.matches)
    assert sum(pair.n_formulas for pair in found.subsets) == 3


def test_what_is_not_there_is_said_before_the_work(dielectric_file, tmp_path):
    data = {"name": "d", "sources": [{"type": "paper_dielectric", "path": str(dielectric_file)}]}
    started = []
    for target, message in (
        (str(tmp_path / "nothing"), "is to be compared with"),
        ({"matbench": str(tmp_path / "m.json.gz")}, "is to be compared with"),
        (str(tmp_path), "holds no dataset"),
    ):
        with pytest.raises(DataError, match=message):
            build_dataset(DatasetConfig.from_dict(data | {"overlap": [target]}), lambda *stage: started.append(stage))
    assert started == []
    with pytest.raises(DataError, match="No place knows"):
        build_dataset(DatasetConfig.from_dict(data | {"overlap": ["0" * 64]}))
    for target in ({}, {"dataset": "a", "matbench": "b"}):
        with pytest.raises(SettingsError, match="name one thing"):
            DatasetConfig.from_dict(data | {"overlap": [target]})


def test_matbench_is_compared_fold_by_fold(dielectric_file, tmp_path):
    """A file of its form; by the published table the official rows 8 and 24 are in the test sets of folds 0 and 2."""
    crystals = [perovskite(*FORMULAS[5]), perovskite("Mg"), perovskite(*FORMULAS[0])]
    data = [[Structure(Lattice(c.cell), c.symbols, c.scaled).as_dict(), 2.0] for c in crystals]
    file = tmp_path / "matbench.json.gz"
    with gzip.open(file, "wt") as handle:
        json.dump({"index": [0, 1, 2], "columns": ["structure", "n"], "data": data}, handle)
    (tmp_path / "rows.csv").write_text("row,mbid\n0,mb-dielectric-0008\n1,mb-dielectric-0009\n2,mb-dielectric-0024\n")
    config = tmp_path / "d.yaml"
    config.write_text(
        f"name: d\nsources: [{{type: paper_dielectric, path: {dielectric_file.name}}}]\n"
        "overlap: [{matbench: matbench.json.gz, sha256: '', index: rows.csv}]\n"
    )
    (found,) = build_dataset(DatasetConfig.from_yaml(config)).manifest.overlap
    assert (found.name, found.kind, found.n_frames) == ("matbench_dielectric", "matbench", 3)
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert found.shared_formulas == ["CaHfS3", "CaTiO3"]
    assert {(m.formula, m.other, m.other_split) for m in found.matches} == {
        ("CaHfS3", "mb-dielectric-0008", "fold_0"),
        ("CaTiO3", "mb-dielectric-0024", "fold_2"),
    }
    config.write_text(config.read_text().replace("sha256: '', ", ""))
    with pytest.raises(DataError, match="SHA-256"):
        build_dataset(DatasetConfig.from_yaml(config))
