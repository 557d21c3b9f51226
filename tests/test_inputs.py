"""Reading structures: what is good comes through, what is broken is named, one at a time."""

from __future__ import annotations

import gzip
import io
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write
from pymatgen.core import Lattice, Structure

from fieldflows.inputs import read_structures
from fieldflows.structures import as_structure

MGO = bulk("MgO", "rocksalt", 4.21)
GAAS = bulk("GaAs", "zincblende", 5.65)


def extxyz(*frames: Atoms) -> str:
    stream = io.StringIO()
    write(stream, list(frames), format="extxyz")
    return stream.getvalue()


def only_failure(path: Path) -> str:
    structures, failures = read_structures([path])
    assert structures == []
    assert len(failures) == 1
    assert failures[0].stage == "read"
    assert failures[0].source == str(path)
    return failures[0].message


@pytest.mark.parametrize("name", ["MgO.cif", "POSCAR", "MgO.vasp", "MgO.extxyz", "MgO.xsf", "MgO.json"])
def test_formats_give_the_same_crystal(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".cif"):
        as_structure(MGO).to(filename=str(path), fmt="cif")
    elif name.endswith(".json"):
        path.write_text(json.dumps(as_structure(MGO).as_dict()))
    else:
        form = {"POSCAR": "vasp", "MgO.vasp": "vasp"}.get(name)
        write(path, MGO, format=form)
    structures, failures = read_structures([path])
    assert failures == []
    (found,) = structures
    assert found.structure.composition.reduced_formula == "MgO"
    assert found.structure.volume == pytest.approx(4.21**3 / 4, rel=1e-6)
    assert found.structure.get_distance(0, 1) == pytest.approx(4.21 / 2, rel=1e-6)


def test_frame_and_atom_order_are_kept_exactly(tmp_path: Path) -> None:
    rattled = MGO.copy()
    rattled.rattle(0.05, seed=3)
    path = tmp_path / "two.extxyz"
    path.write_text(extxyz(GAAS, rattled))
    structures, _ = read_structures([path])
    assert [item.index for item in structures] == [0, 1]
    assert [item.structure.composition.reduced_formula for item in structures] == ["GaAs", "MgO"]
    np.testing.assert_allclose(structures[1].structure.cart_coords, rattled.positions, atol=1e-7)
    np.testing.assert_allclose(structures[1].structure.lattice.matrix, rattled.cell[:], atol=1e-7)


@pytest.mark.parametrize(("suffix", "module"), [(".gz", gzip), (".xz", lzma)])
def test_compressed_files(tmp_path: Path, suffix: str, module) -> None:
    path = tmp_path / f"MgO.extxyz{suffix}"
    with module.open(path, "wt") as handle:
        handle.write(extxyz(MGO))
    structures, failures = read_structures([path])
    assert (len(structures), failures) == (1, [])


def test_identifier_and_band_gap_travel(tmp_path: Path) -> None:
    crystal = as_structure(MGO).as_dict()
    documents = [{"structure": crystal, "material_id": "mp-1265", "band_gap": 4.4}]
    (tmp_path / "docs.json").write_text(json.dumps(documents))
    (tmp_path / "map.json").write_text(json.dumps({"mp-1265": crystal}))
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps(doc) for doc in documents * 2))
    atoms = MGO.copy()
    atoms.info = {"material_id": "mp-1265", "band_gap": 4.4}
    (tmp_path / "a.extxyz").write_text(extxyz(atoms))
    names = ["docs.json", "map.json", "lines.jsonl", "a.extxyz"]
    structures, failures = read_structures([tmp_path / name for name in names])
    assert failures == []
    assert [item.material_id for item in structures] == ["mp-1265"] * 5
    assert [item.band_gap for item in structures] == [4.4, None, 4.4, 4.4, 4.4]


def test_several_structures_in_one_cif(tmp_path: Path) -> None:
    path = tmp_path / "both.cif"
    path.write_text(as_structure(MGO).to(fmt="cif") + "\n" + as_structure(GAAS).to(fmt="cif"))
    structures, failures = read_structures([path])
    assert failures == []
    assert [item.structure.composition.reduced_formula for item in structures] == ["MgO", "GaAs"]


def test_one_broken_frame_among_many(tmp_path: Path) -> None:
    overlapping = MGO.copy()
    overlapping.positions[1] = overlapping.positions[0] + 0.01
    path = tmp_path / "mixed.extxyz"
    path.write_text(extxyz(MGO, overlapping, GAAS))
    structures, failures = read_structures([path, tmp_path / "missing.cif"])
    assert [item.index for item in structures] == [0, 2]
    assert [item.index for item in failures] == [1, 0]
    assert "apart" in failures[0].message
    assert failures[0].formula == "MgO"
    assert "does not exist" in failures[1].message


def test_truncated_xyz_keeps_the_complete_frames(tmp_path: Path) -> None:
    path = tmp_path / "cut.extxyz"
    path.write_text("\n".join(extxyz(MGO, GAAS).splitlines()[:-1]))
    structures, failures = read_structures([path])
    assert len(structures) == 1
    assert "2 atoms were announced, 1 follow" in failures[0].message


BAD = {
    "empty.cif": ("", "is empty"),
    "blank.extxyz": ("  \n \n", "is empty"),
    "nothing.cif": ("hello\n", "holds no structure"),
    "molecule.xyz": (extxyz(molecule("H2O")), "not periodic"),
    "bohr.extxyz": (
        extxyz(Atoms("MgO", scaled_positions=[[0, 0, 0], [0.5] * 3], cell=[0.8] * 3, pbc=True)),
        "Å³ per atom",
    ),
    "flat.extxyz": (
        '1\nLattice="1 0 0 0 1 0 1 1 0" Properties=species:S:1:pos:R:3 pbc="T T T"\nMg 0 0 0\n',
        "zero volume",
    ),
    "nan.extxyz": (
        '1\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 pbc="T T T"\nMg nan 0 0\n',
        "not finite",
    ),
    "element.extxyz": ('1\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3\nQq 0 0 0\n', "Qq"),
    "x.json": ("{", "no valid JSON"),
    "y.json": ('{"a": 1}', "not a serialized pymatgen Structure"),
    "z.json": ("[]", "holds no structure"),
    "structure.docx": ("hello", "no ending that tells its format"),
    "POSCAR": ("MgO\n1.0\n3 0 0\n0 3 0\n0 0 3\n1 1\nDirect\n0 0 0\n.5 .5 .5\n", "names no elements"),
    "junk.vasp": ("a\nb\nc\n", "cannot be read"),
    "count.extxyz": ("two\n\nMg 0 0 0\n", "line 1: the number of atoms was expected"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_with_the_reason(tmp_path: Path, name: str) -> None:
    text, reason = BAD[name]
    path = tmp_path / name
    path.write_text(text)
    assert reason in only_failure(path)


def test_lengths_in_bohr_are_noticed(tmp_path: Path) -> None:
    wide = MGO.copy()
    wide.set_cell(wide.cell[:] / 0.529177, scale_atoms=True)
    apart = Atoms("Cs", cell=[12.0] * 3, pbc=True)
    argon = bulk("Ar", "fcc", 5.3)
    path = tmp_path / "units.extxyz"
    path.write_text(extxyz(wide, apart, argon, bulk("TlF", "cesiumchloride", 3.5)))
    structures, failures = read_structures([path])
    assert [item.structure.composition.reduced_formula for item in structures] == ["Ar", "TlF"]
    assert all("not bohr" in item.message for item in failures)
    assert "3.98 Å apart" in failures[0].message


def test_partial_occupancy_is_refused(tmp_path: Path) -> None:
    alloy = Structure(Lattice.cubic(4), [{"Ga": 0.5, "Al": 0.5}, "As"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    cif = tmp_path / "alloy.cif"
    alloy.to(filename=str(cif), fmt="cif")
    text = tmp_path / "alloy.json"
    text.write_text(json.dumps(alloy.as_dict()))
    assert "partially occupied" in only_failure(cif)
    assert "partially occupied" in only_failure(text)


def test_dummy_species_folder_binary_and_broken_archive(tmp_path: Path) -> None:
    poscar = tmp_path / "dummy.vasp"
    poscar.write_text("x\n1.0\n3 0 0\n0 3 0\n0 0 3\nXx O\n1 1\nDirect\n0 0 0\n.5 .5 .5\n")
    assert only_failure(poscar)
    assert "is a folder" in only_failure(tmp_path)
    binary = tmp_path / "image.cif"
    binary.write_bytes(bytes(range(256)))
    assert "not a text file" in only_failure(binary)
    archive = tmp_path / "MgO.cif.gz"
    archive.write_bytes(gzip.compress(b"data_x" * 100)[:-20])
    assert "cannot be read" in only_failure(archive)


def test_json_names_no_class_into_being(tmp_path: Path) -> None:
    """A serialized callable or class in user data stays data."""
    crystal = as_structure(MGO).as_dict()
    crystal["sites"][0]["properties"] = {"evil": {"@module": "os", "@callable": "system"}}
    crystal["@module"] = "subprocess"
    crystal["@class"] = "Popen"
    path = tmp_path / "evil.json"
    path.write_text(json.dumps(crystal))
    structures, failures = read_structures([path])
    assert failures == []
    assert type(structures[0].structure) is Structure
    assert structures[0].structure.site_properties == {}


def test_bad_band_gap_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "gap.json"
    path.write_text(json.dumps([{"structure": as_structure(MGO).as_dict(), "band_gap": "wide"}]))
    assert "band gap of 'wide'" in only_failure(path)
