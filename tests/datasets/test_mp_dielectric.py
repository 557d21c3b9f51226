"""Saved answers of the Materials Project: IEEE orientation undone, mismatched structures rejected."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from ase.build import bulk
from pymatgen.core.tensors import Tensor
from scipy.spatial.transform import Rotation

from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import Dataset, build_dataset
from fieldflows.errors import ConventionError, DataError
from fieldflows.structures import as_structure
from tests.datasets.synthetic import EPS0

EPSILON = {"ZnO": (3.6, 3.8), "GaN": (5.3, 5.5), "BeO": (2.9, 3.0)}


def crystal(name: str):
    """A wurtzite crystal whose axis points in a general direction, and its ε∞."""
    atoms = bulk(name, "wurtzite", a=3.2, c=5.2, u=0.38)
    rotation = Rotation.from_euler("xyz", [30, 50, 70], degrees=True).as_matrix()
    atoms.set_cell(atoms.cell[:] @ rotation.T, scale_atoms=True)
    axis = rotation @ [0, 0, 1]
    across, along = EPSILON[name]
    return atoms, across * np.eye(3) + (along - across) * np.outer(axis, axis)


def answers(**changes) -> dict:
    dielectric, summary = [], []
    for k, name in enumerate(EPSILON):
        atoms, epsilon = crystal(name)
        structure = as_structure(atoms)
        ieee = np.array(Tensor(epsilon).convert_to_ieee(structure))
        dielectric.append(
            {
                "material_id": f"mp-{k}",
                "formula_pretty": name,
                "volume": structure.volume,
                "electronic": ieee.tolist(),
                "ionic": (2 * ieee).tolist(),
                "deprecated": False,
            }
        )
        summary.append({"material_id": f"mp-{k}", "structure": structure.as_dict()})
    dielectric[0].update(changes)
    return {"dielectric": dielectric, "summary": {"data": summary[::-1]}}


def build(tmp_path, data, **more):
    path = tmp_path / "mp.json.gz"
    with gzip.open(path, "wt") as handle:
        json.dump(data, handle)
    source = {"type": "mp_dielectric", "path": str(path)} | more
    return build_dataset(DatasetConfig.from_dict({"name": "mp", "sources": [source]}))


def test_tensors_come_back_to_the_frame_of_the_structure(tmp_path):
    dataset = build(tmp_path, answers())
    assert [frame.material for frame in dataset.frames] == list(EPSILON)
    for frame in dataset.frames:
        atoms, epsilon = crystal(frame.material)
        np.testing.assert_allclose(frame.atoms.cell[:], atoms.cell[:], atol=1e-9)
        np.testing.assert_allclose(np.eye(3) + frame.labels["polarizability"] / EPS0, epsilon, atol=1e-6)
        np.testing.assert_allclose(frame.labels["epsilon_ionic"], 2 * epsilon, atol=1e-6)
        assert np.abs(epsilon - np.diag(np.diag(epsilon))).max() > 0.02  # the frame is a general one
        assert frame.flags == ()
    loaded = Dataset.load(dataset.save(tmp_path / "out"))
    assert [frame.extra["material_id"] for frame in loaded.frames] == ["mp-0", "mp-1", "mp-2"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"deprecated": True}, "deprecated"),
        ({"material_id": "mp-99"}, "no_structure"),
        ({"volume": 100.0}, "other_structure"),
        ({"electronic": None}, "malformed"),
        ({"ionic": [[1, 2], [3, 4]]}, "malformed"),
        ({"ionic": [["a", "b"]]}, "malformed"),
        ({"volume": "large"}, "malformed"),
    ],
)
def test_what_cannot_be_used_is_listed(tmp_path, changes, code):
    dataset = build(tmp_path, answers(**changes))
    assert [frame.material for frame in dataset.frames] == ["GaN", "BeO"]
    assert [(r.formula, r.findings[0].code) for r in dataset.manifest.rejects] == [("ZnO", code)]


def test_deprecated_documents_on_request(tmp_path):
    assert len(build(tmp_path, answers(deprecated=True), deprecated=True)) == 3


def test_partial_occupancy_is_no_structure(tmp_path):
    data = answers()
    data["summary"]["data"][2]["structure"]["sites"][0]["species"][0]["occu"] = 0.5
    rejects = build(tmp_path, data).manifest.rejects
    assert "no fully occupied element" in rejects[0].findings[0].message


def test_the_gate_and_broken_files(tmp_path):
    data = answers()
    for document in data["dielectric"]:
        document["electronic"] = (np.array(document["electronic"]) - np.eye(3)).tolist()
        document["electronic"] = (0.1 * np.array(document["electronic"])).tolist()
    with pytest.raises(ConventionError, match="read as 'permittivity'"):
        build(tmp_path, data)
    with pytest.raises(DataError, match="no dielectric documents"):
        build(tmp_path, {"summary": []})
    with pytest.raises(DataError, match="no document"):
        build(tmp_path, {"summary": [], "dielectric": []})
    with pytest.raises(DataError, match="no API answers"):
        build(tmp_path, [])
