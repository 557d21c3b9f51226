"""``fieldflows path``: files and identifiers in, frames and numbers out, errors in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ase.io import read, write

from fieldflows.datasets.mp_structures import fetch_structure
from fieldflows.errors import StructureError, WrongAnswer
from fieldflows.structures import as_structure
from tests.physics.pairs import lead_titanate
from tests.support.materials_project import KEY, serve


@pytest.fixture
def pair(tmp_path):
    nonpolar, polar = lead_titanate()
    write(tmp_path / "cubic.vasp", nonpolar, format="vasp")
    write(tmp_path / "both.extxyz", [nonpolar, polar])
    write(tmp_path / "polar.cif", polar)
    return nonpolar, polar


def test_frames_are_written(cli, tmp_path, pair):
    answer = cli("path", "cubic.vasp", "both.extxyz#1", "--out", "path.extxyz", "--frames", 5)
    assert answer.code == 0, answer.err
    assert "Pm-3m (221) to P4mm (99), subgroup of index 6" in answer.out
    assert "5 frames of 5 atoms in path.extxyz" in answer.out
    frames = read(tmp_path / "path.extxyz", ":")
    assert [frame.info["path_index"] for frame in frames] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(frames[-1].cell[:], pair[1].cell[:], atol=1e-12)
    np.testing.assert_allclose(frames[0].cell.lengths(), 3.96, atol=1e-9)
    again = cli("path", "cubic.vasp", "both.extxyz#1", "--out", "path.extxyz")
    assert again.code == 2
    assert "--force" in again.err
    assert cli("path", "cubic.vasp", "both.extxyz#1", "--out", "path.extxyz", "--force").code == 0
    assert len(read(tmp_path / "path.extxyz", ":")) == 10


def test_json(cli, pair):
    answer = cli("path", "cubic.vasp", "polar.cif", "--json")
    found = json.loads(answer.out)
    assert (found["nonpolar_spacegroup"], found["polar_spacegroup"], found["subgroup_index"]) == ("Pm-3m", "P4mm", 6)
    assert found["largest_strain"] == pytest.approx(4.156 / 3.96 - 1, abs=1e-6)
    assert np.array(found["displacements_angstrom"]).shape == (5, 3)
    assert sorted(found["sites"]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["both.extxyz", "polar.cif"], "holds 2 structures"),
        (["both.extxyz#7", "polar.cif"], "none of number 7"),
        (["nothing.cif", "polar.cif"], "does not exist"),
        (["polar.cif", "cubic.vasp"], "polar point group 4mm"),
        (["cubic.vasp", "polar.cif", "--max-displacement", "0.1"], "at most 0.1"),
        (["cubic.vasp", "polar.cif", "--match", "guess"], "--match 'guess'"),
        (["cubic.vasp", "polar.cif", "--frames", "1"], "Invalid value"),
    ],
)
def test_errors_are_one_line(cli, pair, words, reason):
    answer = cli("path", *words)
    assert answer.code == 2
    assert reason in answer.err
    assert answer.err.strip().count("\n") == 0


@pytest.fixture
def service(monkeypatch, tmp_path):
    nonpolar, polar = lead_titanate()
    ids = {"mp-20459": polar, "mp-19845": nonpolar}
    summaries = [{"material_id": name, "structure": as_structure(atoms).as_dict()} for name, atoms in ids.items()]
    summaries.append({"material_id": "mp-1", "structure": {"sites": []}})
    monkeypatch.setenv("FIELDFLOWS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PMG_MAPI_KEY", raising=False)
    monkeypatch.setenv("MP_API_KEY", KEY)
    with serve({"summary": summaries}) as server:
        monkeypatch.setenv("MP_API_ENDPOINT", server.url)
        yield server


def test_identifiers(cli, service, monkeypatch):
    answer = cli("path", "mp-19845", "mp-20459")
    assert answer.code == 0, answer.err
    assert "subgroup of index 6" in answer.out
    np.testing.assert_allclose(fetch_structure("mp-20459").positions, lead_titanate()[1].positions, atol=1e-9)
    with pytest.raises(StructureError, match="no material mp-77"):
        fetch_structure("mp-77")
    with pytest.raises(WrongAnswer, match="mp-1 cannot be used"):
        fetch_structure("mp-1")
    monkeypatch.delenv("MP_API_KEY")
    answer = cli("path", "mp-19845", "mp-3")
    assert answer.code == 2
    assert "MP_API_KEY" in answer.err
