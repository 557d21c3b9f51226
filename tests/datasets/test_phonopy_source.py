"""Files of phonopy: what the toy model says in closed form goes in and comes back; phonopy's own index order."""

from __future__ import annotations

import io
import lzma
import sys
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from scipy import constants

from fieldflows.backends.toy import ToyModel
from fieldflows.datasets.dataset import Dataset, build_dataset
from fieldflows.datasets.extxyz import file_sha256
from fieldflows.datasets.phonopy_files import FORCES, LENGTHS, find_phonopy_files, read_phonopy_file
from fieldflows.datasets.sources.phonopy import PhonopySource
from fieldflows.errors import DataError, SettingsError
from fieldflows.structures import as_atoms
from fieldflows.testing.structures import random_crystal, rocksalt_mgo, wurtzite_zno
from tests.datasets.synthetic import EPS0

phonopy = pytest.importorskip("phonopy")
from phonopy.file_IO import get_BORN_lines, write_FORCE_SETS  # noqa: E402
from phonopy.structure.atoms import PhonopyAtoms  # noqa: E402

SUPERCELL = np.diag([2, 1, 1])


def skewed() -> Atoms:
    """A crystal without symmetry: its Z* are far from symmetric matrices."""
    return random_crystal(7, ("Mg", "O", "Ti", "O"), volume_per_atom=11.0)


@cache
def response(name: str):
    return ToyModel().evaluate(CRYSTALS[name](), observables=("born_effective_charges", "polarizability", "forces"))


CRYSTALS = {"skewed": skewed, "ZnO": wurtzite_zno, "MgO": rocksalt_mgo}


def epsilon(name: str) -> np.ndarray:
    return np.eye(3) + response(name).polarizability / EPS0


def to_phonopy(atoms: Atoms) -> PhonopyAtoms:
    return PhonopyAtoms(numbers=atoms.numbers, cell=atoms.cell[:], scaled_positions=atoms.get_scaled_positions())


@cache
def calculation(name: str, charges: bool = True):
    """phonopy's object of a crystal: displacements along every axis, forces, Born charges, ε∞."""
    crystal = CRYSTALS[name]()
    made = phonopy.Phonopy(to_phonopy(crystal), supercell_matrix=SUPERCELL, primitive_matrix=np.eye(3), log_level=0)
    if charges:
        made.nac_params = {
            "born": response(name).born_effective_charges, "dielectric": epsilon(name), "factor": 14.399652,
        }  # fmt: skip
    made.generate_displacements(distance=0.02)
    cells = [ase_atoms(cell) for cell in made.supercells_with_displacements]
    made.forces = np.array([ToyModel().evaluate(cell, observables=("forces",)).forces for cell in cells])
    return made


def ase_atoms(cell: PhonopyAtoms) -> Atoms:
    return Atoms(numbers=cell.numbers, cell=cell.cell, scaled_positions=cell.scaled_positions, pbc=True)


def save(folder: Path, name: str, file: str = "phonopy_params.yaml", charges: bool = True, **settings) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file.removesuffix(".xz")
    calculation(name, charges).save(path, settings={"force_sets": True, "displacements": True} | settings)
    if file.endswith(".xz"):
        (folder / file).write_bytes(lzma.compress(path.read_bytes()))
        path.unlink()
    return folder / file


@pytest.mark.parametrize(("name", "file"), [("skewed", "phonopy_params.yaml"), ("ZnO", "phonopy_params.yaml.xz")])
def test_charges_and_permittivity_come_back(tmp_path, name, file):
    path = save(tmp_path, name, file)
    (frame,) = PhonopySource(path=str(path)).read(path).frames
    crystal = CRYSTALS[name]()
    assert (frame.atoms.numbers == crystal.numbers).all()
    np.testing.assert_allclose(frame.atoms.cell[:], crystal.cell[:], atol=1e-12)
    scaled = frame.atoms.get_scaled_positions() - crystal.get_scaled_positions()
    np.testing.assert_allclose(scaled, np.round(scaled), atol=1e-12)
    np.testing.assert_allclose(frame.labels["born_effective_charges"], response(name).born_effective_charges, atol=1e-7)
    np.testing.assert_allclose(frame.labels["polarizability"], response(name).polarizability, atol=1e-9)
    charges = frame.labels["born_effective_charges"]
    assert name == "ZnO" or np.abs(charges - charges.transpose(0, 2, 1)).max() > 0.03  # else the order is untested


def test_index_order_is_that_in_which_phonopy_uses_it(tmp_path):
    """Of a field along q, the force on atom κ is Σ_i q_i Z_κ[i, :]; the non-analytical term is its outer product."""
    path = save(tmp_path, "skewed")
    charges = read_phonopy_file(path).primitive.born_charges
    made = phonopy.load(path, produce_fc=False, log_level=0)
    n = len(made.supercell)
    made.force_constants = np.zeros((n, n, 3, 3))
    q = np.array([0.3, -0.5, 0.8]) @ np.linalg.inv(made.primitive.cell).T  # Cartesian direction of this reduced one
    found = made.run_qpoints([[0, 0, 0]], nac_q_direction=[0.3, -0.5, 0.8], with_dynamical_matrices=True)
    matrix = (found or made.qpoints).dynamical_matrices[0].real
    force = np.einsum("i,kij->kj", q, charges) / np.sqrt(made.primitive.masses)[:, None]
    scale = 4 * np.pi * 14.399652 / made.primitive.volume / (q @ epsilon("skewed") @ q)
    np.testing.assert_allclose(matrix, scale * np.outer(force.ravel(), force.ravel()), atol=1e-6)
    other = np.einsum("j,kij->ki", q, charges) / np.sqrt(made.primitive.masses)[:, None]
    assert np.abs(matrix - scale * np.outer(other.ravel(), other.ravel())).max() > 1e-3


def test_displaced_supercells_are_frames_with_forces(tmp_path):
    path = save(tmp_path, "skewed")
    source = PhonopySource(path=str(path), displaced=True)
    frames = source.read(path).frames
    made = calculation("skewed")
    assert source.trajectory
    assert len(frames) == 1 + len(made.supercells_with_displacements)
    for frame, cell in zip(frames[1:], made.supercells_with_displacements, strict=True):
        assert set(frame.labels) == {"forces"}
        exact = ToyModel().evaluate(frame.atoms, observables=("forces",)).forces
        np.testing.assert_allclose(frame.labels["forces"], exact, atol=1e-6)
        np.testing.assert_allclose(frame.atoms.positions, cell.positions, atol=1e-9)


def test_displacements_of_all_atoms_at_once(tmp_path):
    made = phonopy.Phonopy(to_phonopy(skewed()), supercell_matrix=SUPERCELL, primitive_matrix=np.eye(3), log_level=0)
    made.generate_displacements(distance=0.03, number_of_snapshots=3, random_seed=1)
    cells = [ase_atoms(cell) for cell in made.supercells_with_displacements]
    made.forces = np.array([ToyModel().evaluate(cell, observables=("forces",)).forces for cell in cells])
    made.save(tmp_path / "phonopy_params.yaml", settings={"force_sets": True, "displacements": True})
    frames = PhonopySource(path="x", displaced=True).read(tmp_path / "phonopy_params.yaml").frames
    assert len(frames) == 3
    for frame in frames:
        exact = ToyModel().evaluate(frame.atoms, observables=("forces",)).forces
        np.testing.assert_allclose(frame.labels["forces"], exact, atol=1e-6)


def test_born_and_force_sets_beside_an_older_file(tmp_path):
    """PhononDB of 2018: ``phonon.yaml``, ``BORN`` with the independent atoms only, ``FORCE_SETS``."""
    path = save(tmp_path, "ZnO", "phonon.yaml", charges=False, force_sets=False, displacements=False)
    lines = get_BORN_lines(to_phonopy(wurtzite_zno()), response("ZnO").born_effective_charges, epsilon("ZnO"))
    (tmp_path / "BORN").write_text("\n".join(lines) + "\n")
    write_FORCE_SETS(calculation("ZnO").dataset, filename=tmp_path / "FORCE_SETS")
    assert len(lines) == 4  # two of the four atoms are independent
    data = PhonopySource(path="x", displaced=True).read(tmp_path)
    np.testing.assert_allclose(
        data.frames[0].labels["born_effective_charges"], response("ZnO").born_effective_charges, atol=1e-6
    )
    np.testing.assert_allclose(data.frames[0].labels["polarizability"], response("ZnO").polarizability, atol=1e-8)
    assert len(data.frames) == 1 + len(calculation("ZnO").supercells_with_displacements)
    assert any("BORN" in note for note in data.notes)
    assert path.is_file()


@pytest.mark.parametrize(("ending", "form"), [("lzma", lzma.FORMAT_ALONE), ("xz", lzma.FORMAT_XZ)])
def test_archives_are_read_as_they_are(tmp_path, ending, form):
    """The form of PhononDB: mp-…-20180417.tar.lzma with a folder in it."""
    folder = tmp_path / "mp-1-20180417"
    save(folder, "ZnO", "phonon.yaml", charges=False, force_sets=False, displacements=False)
    lines = get_BORN_lines(to_phonopy(wurtzite_zno()), response("ZnO").born_effective_charges, epsilon("ZnO"))
    (folder / "BORN").write_text("\n".join(lines) + "\n")
    (folder / "KPOINTS").write_text("0\n")
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        archive.add(folder, arcname="../mp-1-20180417")  # a name that leads elsewhere is harmless
    many = tmp_path / "many"
    many.mkdir()
    path = many / f"mp-1-20180417.tar.{ending}"
    path.write_bytes(lzma.compress(plain.getvalue(), format=form))
    for place in (path, many):
        (frame,) = PhonopySource(path="x").read(place).frames
        np.testing.assert_allclose(
            frame.labels["born_effective_charges"], response("ZnO").born_effective_charges, atol=1e-6
        )
        assert frame.extra["origin"] == path.name
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="cannot be unpacked"):
        PhonopySource(path="x").read(path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["many", "mp-1-20180417"]


def test_atomic_units(tmp_path):
    bohr = constants.value("Bohr radius") / constants.angstrom
    rydberg = constants.value("Rydberg constant times hc in eV")
    crystal = skewed()
    cell = PhonopyAtoms(
        numbers=crystal.numbers, cell=crystal.cell[:] / bohr, scaled_positions=crystal.get_scaled_positions()
    )
    made = phonopy.Phonopy(cell, supercell_matrix=np.eye(3), primitive_matrix=np.eye(3), calculator="qe", log_level=0)
    made.generate_displacements(distance=0.04)
    forces = np.random.default_rng(0).normal(size=(len(made.supercells_with_displacements), len(crystal), 3))
    made.forces = forces
    path = tmp_path / "phonopy_params.yaml"
    made.save(path, settings={"force_sets": True, "displacements": True})
    frames = PhonopySource(path="x", displaced=True).read(path).frames
    np.testing.assert_allclose(frames[0].atoms.cell[:], crystal.cell[:], rtol=1e-6)
    np.testing.assert_allclose(frames[0].labels["forces"], forces[0] * rydberg / bohr, rtol=1e-5, atol=1e-6)
    moved = frames[0].atoms.positions - crystal.positions
    steps = moved @ np.linalg.inv(crystal.cell[:])
    moved = (steps - np.round(steps)) @ crystal.cell[:]
    assert np.linalg.norm(moved, axis=1).max() == pytest.approx(0.04 * bohr, rel=1e-4)
    assert LENGTHS["angstrom"] == FORCES["eV/angstrom"] == 1.0
    path.write_text(path.read_text().replace('length: "au"', 'length: "furlong"'))
    with pytest.raises(DataError, match="furlong"):
        PhonopySource(path="x", displaced=True).read(path)


def test_a_folder_of_many_becomes_a_dataset(tmp_path):
    archive = tmp_path / "archive"
    for name in CRYSTALS:
        save(archive / f"mp-{name}", name)
    save(archive / "mp-none", "MgO", charges=False, force_sets=False)
    (archive / "mp-broken").mkdir()
    (archive / "mp-broken" / "phonopy_params.yaml").write_text("unit_cell: [1, 2")
    config = {"name": "p", "sources": [{"type": "phonopy", "path": str(archive), "plausible_epsilon": [1.0, 20.0]}]}
    from fieldflows.datasets.config import DatasetConfig

    dataset = build_dataset(DatasetConfig.from_dict({**config, "cleaning": {"reject_sum_rule": 50.0,
                            "reject_sum_rule_per_atom": 50.0, "reject_charge_symmetry": 50.0}}))  # fmt: skip
    assert {frame.material for frame in dataset.frames} == {"MgO", "ZnO", "MgTiO2"}
    assert {frame.extra["origin"] for frame in dataset.frames} == {f"mp-{x}/phonopy_params.yaml" for x in CRYSTALS}
    codes = sorted(reject.findings[0].code for reject in dataset.manifest.rejects)
    assert codes == ["malformed", "no_label"]
    assert dataset.manifest.sources[0].n_frames == 5
    assert dataset.manifest.sources[0].sha256 == file_sha256(archive)
    assert Dataset.load(dataset.save(tmp_path / "out")).digest == dataset.digest
    before = file_sha256(archive)
    (archive / "mp-none" / "phonopy_params.yaml").unlink()
    assert file_sha256(archive) != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2\n", "no file of phonopy"),
        ("a: [1, 2", "cannot be read as YAML"),
        ("a: !!python/object/apply:os.mkdir [made]", "cannot be read as YAML"),
        ("phonopy: {version: '2'}\n", "holds no crystal"),
        ("primitive_cell: {lattice: 3, points: 4}\n", "cannot interpret"),
    ],
)
def test_broken_files(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "phonopy_params.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        PhonopySource(path="x").read(path)
    assert not (tmp_path / "made").exists()


def test_what_cannot_be_used_is_said(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no file of phonopy"):
        find_phonopy_files(tmp_path)
    with pytest.raises(DataError, match="There is no file"):
        PhonopySource(path="x").read(tmp_path / "nothing.yaml")
    path = save(tmp_path, "MgO", charges=False)
    with pytest.raises(DataError, match=r"holds no label; .* no Born charges"):
        PhonopySource(path="x").read(path)
    (tmp_path / "BORN").write_text("default\n1 0 0\n")
    with pytest.raises(DataError, match="phonopy cannot read"):
        PhonopySource(path="x").read(path)
    text = save(tmp_path, "MgO").read_text().replace("born_effective_charge:", "born_effective_charge:\n  - *extra", 1)
    path.write_text("extra: &extra [[1, 0, 0], [0, 1, 0], [0, 0, 1]]\n" + text)
    with pytest.raises(DataError, match="3 Born charges for 2 atoms"):
        PhonopySource(path="x").read(path)
    monkeypatch.setitem(sys.modules, "phonopy.interface.phonopy_yaml", None)
    with pytest.raises(SettingsError, match=r"fieldflows\[phonons\]"):
        PhonopySource(path="x").read(path)


def test_the_cell_is_the_primitive_one(tmp_path):
    cubic = as_atoms(rocksalt_mgo())
    conventional = Atoms("Mg4O4", cell=np.eye(3) * 4.2112, pbc=True, scaled_positions=[
        [0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0], [0.5, 0.5, 0.5], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5],
    ])  # fmt: skip
    made = phonopy.Phonopy(to_phonopy(conventional), supercell_matrix=np.eye(3), primitive_matrix="F", log_level=0)
    made.nac_params = {"born": [np.eye(3) * 2, np.eye(3) * -2], "dielectric": np.eye(3) * 3, "factor": 14.4}
    made.save(tmp_path / "phonopy_params.yaml")
    (frame,) = PhonopySource(path="x").read(tmp_path / "phonopy_params.yaml").frames
    assert frame.atoms.get_volume() == pytest.approx(cubic.get_volume())
    assert frame.labels["born_effective_charges"].shape == (2, 3, 3)
