"""Extended XYZ: nothing is moved, nothing is lost, broken files are named."""

from __future__ import annotations

import io

import ase.io
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldflows.datasets.extxyz import RawFrame, parse_comment, raw_from_atoms, read_extxyz, write_extxyz
from fieldflows.errors import DataError
from tests.datasets.synthetic import dielectric_text, extxyz_text, perovskite, write


@pytest.mark.parametrize("suffix", [".extxyz", ".extxyz.xz"])
def test_reads_what_was_written(tmp_path, suffix):
    crystal = perovskite()
    path = write(tmp_path / f"a{suffix}", dielectric_text(crystal) * 3)
    frames = list(read_extxyz(path))
    assert [frame.index for frame in frames] == [0, 1, 2]
    np.testing.assert_array_equal(frames[1].positions, crystal.positions)
    np.testing.assert_array_equal(frames[1].cell, crystal.cell)
    np.testing.assert_array_equal(frames[1].numbers, [38, 22, 8, 8, 8])
    np.testing.assert_array_equal(frames[1].arrays["REF_becs"].reshape(5, 3, 3), crystal.charges)
    assert frames[1].info["config_energy_weight"] == 0.0
    assert frames[1].pbc.all()


def test_agrees_with_ase_and_finds_what_ase_moves(tmp_path):
    stress = np.array([[1.0, 4.0, 5.0], [4.0, 2.0, 6.0], [5.0, 6.0, 3.0]])
    forces = np.arange(15.0).reshape(5, 3)
    text = extxyz_text(
        perovskite(),
        {"energy": -7.5, "stress": stress, "polarization": [0.1, 0.2, 0.3], "REF_electric_field": "0.3, 0.3, 0.3"},
        arrays={"forces": forces},
    )
    path = write(tmp_path / "a.extxyz", text)
    ours = next(iter(read_extxyz(path)))
    atoms = ase.io.read(path, format="extxyz")
    assert "forces" not in atoms.arrays  # the trap
    theirs = raw_from_atoms(atoms)
    for frame in (ours, theirs):
        np.testing.assert_allclose(frame.positions, atoms.positions)
        np.testing.assert_allclose(frame.arrays["forces"], forces)
        np.testing.assert_allclose(frame.info["polarization"], [0.1, 0.2, 0.3])
        assert frame.info["energy"] == -7.5
        np.testing.assert_allclose(frame.info["REF_electric_field"], 0.3)
    assert ours.info["stress"].shape == (9,)
    np.testing.assert_allclose(theirs.info["stress"], [1, 2, 3, 6, 5, 4])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1.5", 1.5),
        ('a="1 2 3"', [1, 2, 3]),
        ('a="1.0, 2.0, 3.0"', [1, 2, 3]),
        ("a=[[1, 2], [3, 4]]", [1, 2, 3, 4]),
        ("a={1 2 3}", [1, 2, 3]),
        ("a='mp-12 x'", "mp-12 x"),
        ("a=mp-12", "mp-12"),
        ("a=T", True),
        ("a", True),
        ('a="nan 1"', [np.nan, 1]),
    ],
)
def test_comment_values(text, value):
    found = parse_comment(f"b=7 {text} c=8")
    assert found["b"] == 7
    assert found["c"] == 8
    np.testing.assert_equal(found["a"], np.array(value) if isinstance(value, list) else value)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3), st.floats(-1e6, 1e6))
def test_every_float_survives(values, energy):
    frame = RawFrame(
        numbers=np.array([8]),
        positions=np.array([values]),
        cell=np.diag([3.1, 4.2, 5.3]),
        pbc=np.ones(3, dtype=bool),
        info={"label_energy": energy, "label_polarization": np.array(values)},
        arrays={"label_forces": np.array([values])},
    )
    handle = io.StringIO()
    write_extxyz(handle, [frame])
    lines = handle.getvalue().splitlines()
    info = parse_comment(lines[1])
    assert info["label_energy"] == energy
    assert info["label_polarization"].tolist() == values
    assert [float(word) for word in lines[2].split()[1:]] == values + values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no frames"),
        ("5\nLattice=", "ends inside"),
        ("x\n", "Expected a number of atoms"),
        ("0\n\n", "announces 0 atoms"),
        ('1\nLattice="1 0 0" Properties=species:S:1:pos:R:3\nO 0 0 0\n', "Lattice"),
        ('1\nLattice="1 0 0 0 1 0 0 0 1" Properties=species:S:1:pos:R:3\nO 0 0\n', "columns"),
        ('1\nLattice="1 0 0 0 1 0 0 0 1" Properties=species:S:1:pos:R:3\nQq 0 0 0\n', "Qq"),
        ('1\nLattice="1 0 0 0 1 0 0 0 1" Properties=species:S:1:pos:R:3\nO 0 zero 0\n', "columns"),
    ],
)
def test_broken_files_are_named(tmp_path, text, message):
    path = write(tmp_path / "a.extxyz", text)
    with pytest.raises(DataError, match=message):
        list(read_extxyz(path))


def test_truncated_archive_and_missing_file(tmp_path):
    whole = write(tmp_path / "a.extxyz.xz", dielectric_text(perovskite()) * 50)
    cut = tmp_path / "b.extxyz.xz"
    cut.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(DataError, match="cannot be read"):
        list(read_extxyz(cut))
    with pytest.raises(DataError, match="no file"):
        list(read_extxyz(tmp_path / "c.extxyz"))
