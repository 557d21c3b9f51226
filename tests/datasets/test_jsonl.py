"""JSON lines: crystals of pymatgen and of ASE, labels wherever an export keeps them, bad lines as rejects."""

from __future__ import annotations

import gzip
import json
import lzma
import re

import numpy as np
import pytest
from ase import Atoms
from ase.io.jsonio import encode
from pymatgen.core import Lattice, Structure

from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import Dataset, build_dataset
from fieldflows.datasets.sources.jsonl import JsonLines, parse_line
from fieldflows.errors import DataError, LabelError
from tests.datasets.synthetic import EPS0, FORMULAS, gaussian, perovskite

LABELS = {"polarizability": "gaussian", "born_effective_charges": "polarization_displacement"}


def structure(crystal) -> Structure:
    return Structure(Lattice(crystal.cell), crystal.symbols, crystal.scaled)


def line(crystal, **more) -> dict:
    return {
        "structure": structure(crystal).as_dict(),
        "polarizability": gaussian(crystal).tolist(),
        "becs": crystal.charges.tolist(),
        "task_id": "mp-7",
    } | more


def source(path, **more) -> JsonLines:
    return JsonLines.model_validate({"path": str(path), "labels": LABELS} | more)


def write_lines(path, items):
    path.write_text("".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in items))
    return path


@pytest.mark.parametrize(("name", "opener"), [("a.jsonl", open), ("a.jsonl.gz", gzip.open), ("a.jsonl.xz", lzma.open)])
def test_a_pymatgen_export_becomes_frames(tmp_path, name, opener):
    with opener(tmp_path / name, "wt") as handle:
        for spec in FORMULAS:
            handle.write(json.dumps(line(perovskite(*spec))) + "\n")
    data = source(tmp_path / name, identifier="task_id").read(tmp_path / name)
    assert data.n_frames == len(data.frames) == len(FORMULAS)
    assert data.rejects == []
    for frame, spec in zip(data.frames, FORMULAS, strict=True):
        expected = structure(perovskite(*spec))
        np.testing.assert_allclose(frame.atoms.positions, expected.cart_coords, atol=1e-12)
        np.testing.assert_array_equal(frame.atoms.cell[:], expected.lattice.matrix)
        assert frame.material == expected.composition.reduced_formula
        np.testing.assert_allclose(frame.labels["polarizability"], (spec[4] - 1) * EPS0 * np.eye(3), rtol=1e-12)
        np.testing.assert_array_equal(frame.labels["born_effective_charges"], perovskite(*spec).charges)
        assert frame.extra == {"identifier": "task_id:mp-7"}


def test_arrays_of_ase_flat_or_encoded():
    crystal = perovskite()
    atoms = Atoms(crystal.symbols, positions=crystal.positions, cell=crystal.cell, pbc=[True, True, False])
    plain = {"symbols": crystal.symbols, "positions": crystal.positions.tolist(), "cell": crystal.cell.tolist()}
    scaled = {
        "numbers": atoms.numbers.tolist(),
        "scaled_positions": crystal.scaled.tolist(),
        "cell": crystal.cell.tolist(),
    }
    for text in (json.dumps(plain), json.dumps({"atoms": plain}), json.dumps(scaled), encode(atoms.todict())):
        raw = parse_line(text)
        np.testing.assert_array_equal(raw.numbers, atoms.numbers)
        np.testing.assert_allclose(raw.positions, atoms.positions, atol=1e-14)
        np.testing.assert_array_equal(raw.cell, crystal.cell)
    assert raw.pbc.tolist() == [True, True, False]


def test_labels_are_found_in_containers_under_dots_and_at_sites():
    crystal = perovskite()
    decorated = structure(crystal)
    decorated.add_site_property("born_charges", crystal.charges.tolist())
    item = {
        "output": {"crystal": decorated.as_dict(), "epsilon": {"high": [1.0, 2.0]}},
        "info": {"energy": -3, "note": "text"},
        "@module": "ignored",
        "nothing": None,
        "stress": {"@module": "numpy", "@class": "array", "dtype": "float64", "data": [[1, 2, 3]]},
    }
    raw = parse_line(json.dumps(item), "output.crystal")
    assert set(raw.info) == {"born_charges", "output.epsilon.high", "energy", "note", "stress"}
    np.testing.assert_array_equal(raw.info["born_charges"], crystal.charges)
    np.testing.assert_array_equal(raw.info["output.epsilon.high"], [1, 2])
    np.testing.assert_array_equal(raw.info["stress"], [[1, 2, 3]])
    assert (raw.info["energy"], raw.info["note"]) == (-3.0, "text")


def test_bad_lines_are_rejects_with_their_number(tmp_path):
    good = line(perovskite())
    partial = line(perovskite("Ba"))
    partial["structure"]["sites"][0]["species"] = [{"element": "Ba", "occu": 0.5}, {"element": "Sr", "occu": 0.5}]
    items = [
        good,
        '{"structure": {"lattice"',
        "",
        "[1, 2]",
        partial,
        {"polarizability": 1},
        line(perovskite("Ba"), polarizability=[1, 2]),
        line(perovskite("Ba"), polarizability=[[1, 2], [3]]),
        {"symbols": ["Xx"], "positions": [[0, 0, 0]], "cell": np.eye(3).tolist()},
        {"symbols": ["H"], "positions": [[0, 0, 0]], "cell": [1, 2, 3]},
        "[" * 100000,
        line(perovskite("Ca"), electric_field="strong"),
        line(perovskite("Ca"), becs=[1e999] * 45),
    ]
    path = write_lines(tmp_path / "a.jsonl", items)
    path.write_bytes(path.read_bytes() + b'{"\xff": 1}\n')
    config = DatasetConfig.from_dict({"name": "d", "sources": [{"type": "jsonl", "path": str(path), "labels": LABELS}]})
    dataset = build_dataset(config)
    assert [frame.material for frame in dataset.frames] == ["SrTiO3"]
    assert dataset.manifest.sources[0].n_frames == 13
    found = {reject.source_index + 1: reject.findings[0] for reject in dataset.manifest.rejects}
    assert sorted(found) == [2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    for number, reason in {
        2: "line 2: Expecting", 4: "found list", 5: "partially occupied", 6: "no structure", 7: "shape", 8: "numeric",
        9: "'Xx' is no element", 10: r"cell has shape \(3,\)", 11: "nested", 12: "electric_field is not numeric",
        13: "not finite", 14: "UTF-8",
    }.items():  # fmt: skip
        assert found[number].code == {7: "malformed", 8: "malformed", 13: "not_finite"}.get(number, "bad_line")
        assert re.search(reason, found[number].message), found[number].message
    loaded = Dataset.load(dataset.save(tmp_path / "out"))
    assert loaded.digest == dataset.digest


def test_files_without_crystals_truncated_or_missing(tmp_path):
    with pytest.raises(DataError, match="line 1: expected an object, found list"):
        source("a").read(write_lines(tmp_path / "a.jsonl", ["[]", "3"]))
    with pytest.raises(DataError, match="which is empty"):
        source("a").read(write_lines(tmp_path / "b.jsonl", []))
    with pytest.raises(DataError, match="There is no file"):
        source("a").read(tmp_path / "nothing.jsonl")
    whole = gzip.compress(json.dumps(line(perovskite())).encode())
    (tmp_path / "c.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(DataError, match="truncated"):
        source("a").read(tmp_path / "c.jsonl.gz")
    with pytest.raises(LabelError, match=r"energy under REF_energy.*becs"):
        source("a", labels={"energy": "eV"}).read(write_lines(tmp_path / "d.jsonl", [line(perovskite())]))


def test_extended_xyz_and_json_lines_give_the_same_frames(tmp_path, dielectric_file):
    """Two ways into the package, one content."""
    lines = [line(perovskite(*spec)) for spec in FORMULAS]
    one = source("a", name="x").read(write_lines(tmp_path / "a.jsonl", lines)).frames
    declared = {"type": "extxyz", "path": str(dielectric_file), "labels": LABELS, "name": "x"}
    two = build_dataset(
        DatasetConfig.from_dict({"name": "d", "sources": [declared], "cleaning": {"enforce_sum_rule": False}})
    ).frames
    for a, b in zip(one, two, strict=True):
        assert (a.material, a.source, a.source_index) == (b.material, b.source, b.source_index)
        np.testing.assert_allclose(a.atoms.positions, b.atoms.positions, atol=1e-12)
        for name in LABELS:
            np.testing.assert_allclose(a.labels[name], b.labels[name], rtol=1e-14)


def test_a_limit_counts_lines(tmp_path):
    lines = [line(perovskite(*spec)) for spec in FORMULAS]
    path = write_lines(tmp_path / "a.jsonl", lines)
    assert len(source(path, limit=4).read(path).frames) == 4
