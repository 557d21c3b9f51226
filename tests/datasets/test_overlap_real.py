"""Overlap of the published dielectric labels with Matbench, against the table of where each row came from."""

from __future__ import annotations

import csv
import lzma
from collections import Counter
from pathlib import Path

from pymatgen.core import Composition

from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import build_dataset

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"


def rows(path: Path) -> list[dict[str, str]]:
    with lzma.open(path, "rt") as handle:
        return list(csv.DictReader(handle))


def test_the_overlap_with_matbench_is_that_of_the_index(data_folder):
    target = {
        "matbench": "${FIELDFLOWS_DATA}/matbench_dielectric_mini.json.gz",
        "sha256": "",
        "index": "${FIELDFLOWS_DATA}/matbench_dielectric_mini_index.csv.xz",
    }
    config = DatasetConfig.from_yaml(WORKFLOWS / "dataset_dielectric.yaml")
    config = DatasetConfig.from_dict(config.model_dump() | {"overlap": [target], "duplicates": {"near": False}})
    dataset = build_dataset(config)
    (found,) = dataset.manifest.overlap
    origin = {(r["src_file"], int(r["src_index"])): r["mbid"] for r in rows(data_folder / target["index"][19:])}
    kept = {(frame.source, frame.source_index) for frame in dataset.frames}
    matched = {(m.source, m.source_index) for m in found.matches}
    assert set(origin) & kept <= matched  # each of these rows was made of that very frame
    assert len(matched - set(origin)) < 0.05 * len(matched)  # others are the same crystal by the matcher
    targets = {r["mbid"]: r for r in rows(data_folder / "matbench_dielectric_targets.csv.xz")}
    for match in found.matches:
        row = targets[match.other]
        assert match.other_split == f"fold_{row['fold']}"
        assert Composition(row["composition"]).reduced_formula == match.formula
    folds = Counter(targets[mbid]["fold"] for key, mbid in origin.items() if key in kept)
    counted = Counter()
    for pair in found.subsets:
        counted[pair.other_split.removeprefix("fold_")] += pair.n_structures
    assert all(counted[fold] >= number for fold, number in folds.items())
