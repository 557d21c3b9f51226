"""Structures and Born charges of tasks and phonon calculations, in documents that emmet's schema allows."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from ase import Atoms
from pymatgen.core import Structure
from pymatgen.core.tensors import Tensor

from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import build_dataset
from fieldflows.datasets.mp_documents import FieldProblem, phonon_born_charges, read_structure, task_born_charges
from fieldflows.datasets.sources.mp_dielectric import MPDielectric, _phonon_ids
from fieldflows.structures import as_structure
from tests.datasets.mp_made import CHARGES, axial, crystal, dielectric, documents, phonon, summary, task
from tests.datasets.synthetic import EPS0, perovskite


def build(tmp_path, data, **more):
    path = tmp_path / "saved.json.gz"
    with gzip.open(path, "wt") as handle:
        json.dump(data, handle)
    source = {"type": "mp_dielectric", "path": str(path)} | more
    return build_dataset(DatasetConfig.from_dict({"name": "mp", "sources": [source]}))


def only(tmp_path, **changes):
    """Build from one crystal whose task is changed."""
    one = {"dielectric": [dielectric("ZnO")], "summary": [summary("ZnO")], "tasks": [task("ZnO", **changes)]}
    return build(tmp_path, one)


def test_the_structure_is_that_of_the_task(tmp_path):
    moved = as_structure(crystal("ZnO")[0])
    moved.perturb(0.02)  # the summary's crystal was relaxed again; same volume
    data = documents(tasks=[task("ZnO")])
    data["summary"][0] = summary("ZnO", structure=moved.as_dict())
    dataset = build(tmp_path, data)
    frames = {frame.material: frame for frame in dataset.frames}
    np.testing.assert_allclose(frames["ZnO"].atoms.positions, crystal("ZnO")[0].positions, atol=1e-9)
    assert {name: frame.extra["structure_from"] for name, frame in frames.items()} == {
        "ZnO": "task", "GaN": "summary", "BeO": "summary",
    }  # fmt: skip
    assert frames["ZnO"].extra["task_id"] == "mp-1010"
    assert "born_effective_charges" in frames["ZnO"].labels
    assert "born_effective_charges" not in frames["GaN"].labels
    (source,) = dataset.manifest.sources
    assert "1 structures from materials.tasks" in source.notes
    assert any(line.startswith("born: polarization_displacement") for line in source.conversions)


def test_a_task_of_another_volume_is_not_taken(tmp_path):
    other = as_structure(crystal("ZnO")[0]).scale_lattice(60.0)
    dataset = only(tmp_path, structure=other.as_dict())
    assert dataset.frames[0].extra["structure_from"] == "summary"
    assert "born_effective_charges" not in dataset.frames[0].labels  # they belong to the task's crystal


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task_type": "Structure Optimization"}, "its task is a 'Structure Optimization'"),
        ({"epsilon": 2 * crystal("ZnO")[1]}, "of task mp-1010 is another one"),
    ],
)
def test_a_wrong_task(tmp_path, changes, reason):
    data = documents(tasks=[task("ZnO", **changes)])
    (reject,) = build(tmp_path, data).manifest.rejects
    assert (reject.formula, reject.findings[0].code) == ("ZnO", "wrong_task")
    assert reason in reject.findings[0].message


def test_what_symmetrizing_removed_is_stored(tmp_path):
    raw = crystal("ZnO")[1] + 0.01 * np.array([[0, 1, 0], [1, 0, 0.5], [0, 0.5, 0]])
    frame = only(tmp_path, epsilon=raw).frames[0]
    symmetrized = np.array(Tensor(raw).fit_to_structure(as_structure(crystal("ZnO")[0])))
    np.testing.assert_allclose(frame.extra["symmetrization_residual"], np.abs(raw - symmetrized).max(), atol=1e-8)
    assert frame.extra["ieee_residual"] < 1e-10


def test_charges_in_older_documents(tmp_path):
    born = crystal("ZnO")[2]
    older = {"output": {}, "calcs_reversed": [{"output": {"outcar": {"born": born.tolist()}}}]}
    frame = only(tmp_path, **older).frames[0]
    np.testing.assert_allclose(frame.labels["born_effective_charges"], born, atol=1e-9)


def test_the_first_index_is_the_polarization(tmp_path):
    """In a crystal without symmetry every component is free; rows of VASP's OUTCAR are the field."""
    rng = np.random.default_rng(1)
    structure = Structure([[3, 0.1, 0.2], [0.3, 3.5, 0.4], [0.5, 0.6, 4.1]], ["Zn", "O"], rng.random((2, 3)))
    born = rng.normal(size=(2, 3, 3))
    born -= born.mean(axis=0)
    one = {
        "dielectric": [dielectric("ZnO", volume=structure.volume)],
        "summary": [summary("ZnO")],
        "tasks": [task("ZnO", charges=born, structure=structure.as_dict(), output={
            "dielectric_properties": {"born_charges": born.tolist()}
        })],
    }  # fmt: skip
    frame = build(tmp_path, one).frames[0]
    np.testing.assert_allclose(frame.labels["born_effective_charges"], born, atol=1e-9)
    assert np.abs(born - born.transpose(0, 2, 1)).max() > 0.5


@pytest.mark.parametrize(
    ("charges", "reason"),
    [
        (crystal("ZnO")[2][:2], "has 2 tensors for 4 sites"),
        ([[[1.0, 2.0, float("inf")]] * 3] * 4, "is not finite"),
    ],
)
def test_charges_that_cannot_be_used_are_left_out(tmp_path, charges, reason):
    data = documents(tasks=[task("ZnO", charges=charges), task("GaN")])
    dataset = build(tmp_path, data)
    frames = {frame.material: frame for frame in dataset.frames}
    assert set(frames["ZnO"].labels) == {"polarizability", "epsilon_ionic"}
    (flagged,) = dataset.manifest.flags
    assert (flagged.formula, flagged.findings[0].code) == ("ZnO", "task_field")
    assert reason in flagged.findings[0].message
    with pytest.raises(FieldProblem, match="born_charges"):
        task_born_charges(task("ZnO", charges=charges), 4)


def test_charges_in_ieee_orientation_are_noticed(tmp_path):
    """Site symmetry tells: in IEEE orientation the axis is z, in the crystal it is not."""
    across, along = CHARGES["ZnO"]
    signs = np.sign(crystal("ZnO")[2][:, :1, :1])
    turned = signs * axial(across, along + 2, np.array([0, 0, 1.0]))
    (flagged,) = only(tmp_path, charges=turned).manifest.flags
    assert flagged.findings[0].code == "charges_rotated"
    assert "in IEEE orientation only" in flagged.findings[0].message
    right = only(tmp_path).frames[0]
    assert right.flags == ()
    assert right.extra["charge_symmetry_residual"] < 1e-9


def test_phonon_documents_are_frames_of_their_own(tmp_path):
    atoms, epsilon, born = crystal("ZnO")
    atoms.set_cell(atoms.cell[:] * 0.98, scale_atoms=True)  # PBEsol
    both = {"epsilon_static": (3 * epsilon).tolist(), "epsilon_electronic": epsilon.tolist()}
    dataset = build(tmp_path, documents(phonon=[phonon(atoms, born, **both), {"identifier": "mp-8", "born": None}]))
    assert len(dataset) == 4
    frame = next(item for item in dataset.frames if item.extra["structure_from"] == "phonon")
    np.testing.assert_allclose(frame.atoms.positions, atoms.positions, atol=1e-9)
    np.testing.assert_allclose(frame.labels["born_effective_charges"], born, atol=1e-9)
    np.testing.assert_allclose(np.eye(3) + frame.labels["polarizability"] / EPS0, epsilon, atol=1e-8)
    assert frame.source_index == 3
    assert frame.extra["task_id"] == "mp-7777"
    bad = build(tmp_path, documents(phonon=[phonon(atoms, born[:3], **both)]))
    assert "born' has 3 tensors for 4 sites, 2 of them inequivalent" in bad.manifest.rejects[0].findings[0].message


def test_charges_of_inequivalent_sites_are_brought_to_all():
    """A perovskite has three inequivalent sites; the charges of all five are known from its symmetry."""
    made = perovskite()
    atoms = Atoms(made.symbols, cell=made.cell, scaled_positions=made.scaled, pbc=True)
    document = phonon(atoms, made.charges[:3])
    raw = read_structure(document, 0)
    np.testing.assert_allclose(phonon_born_charges(document, raw), made.charges, atol=1e-12)


@pytest.mark.parametrize("value", ["x", [[1]], {"a": 1}, True], ids=str)
@pytest.mark.parametrize("route", ["dielectric", "summary", "tasks", "phonon"])
def test_an_odd_document_never_stops_the_others(tmp_path, route, value):
    """Whatever stands in a field of one document, the other material is there, and what is left out has a reason."""
    atoms, epsilon, born = crystal("BeO")
    names = ("GaN", "ZnO")
    data = {
        "dielectric": [dielectric(name) for name in names],
        "summary": [summary(name) for name in names],
        "tasks": [task(name) for name in names],
        "phonon": [phonon(atoms, born, epsilon_static=epsilon.tolist())],
        "asked": ["mp-804", "mp-2133"],
    }
    path = tmp_path / "a.json"
    source = MPDielectric(path=str(path))
    fields = list(data[route][-1])
    assert len(fields) > 4
    for field in fields:
        changed = {**data, route: [*data[route][:-1], data[route][-1] | {field: value}]}
        path.write_text(json.dumps(changed))
        read = source.read(path)
        assert "GaN" in {frame.material for frame in read.frames}
        assert all(item.findings[0].message for item in read.rejects)
        assert len(read.frames) + len(read.rejects) == read.n_frames


def test_odd_lists_of_phonon_calculations():
    assert _phonon_ids({"dfpt": ["mp-1"], "pheasy": None, "other": "mp-2"}) == ["mp-1"]
    assert _phonon_ids(["mp-1"]) == _phonon_ids(None) == []
