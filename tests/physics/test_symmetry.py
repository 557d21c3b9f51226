"""Space groups, operations and the IEEE orientation, beside pymatgen and emmet."""

from __future__ import annotations

import lzma
import os
from pathlib import Path

import numpy as np
import pytest

from fieldflows.errors import EvaluationError
from fieldflows.physics import symmetry
from fieldflows.structures import as_structure
from fieldflows.testing import structures

GROUPS = {
    "rocksalt_mgo": (225, "Fm-3m", "m-3m", "cubic"),
    "cesium_chloride": (221, "Pm-3m", "m-3m", "cubic"),
    "zincblende_gaas": (216, "F-43m", "-43m", "cubic"),
    "wurtzite_zno": (186, "P6_3mc", "6mm", "hexagonal"),
    "perovskite_srtio3": (221, "Pm-3m", "m-3m", "cubic"),
    "tetragonal_batio3": (99, "P4mm", "4mm", "tetragonal"),
    "alpha_quartz": (154, "P3_221", "32", "trigonal"),
}


def arrays(atoms):
    return atoms.cell[:], atoms.positions, atoms.numbers


def more_crystals():
    """Return one crystal of each remaining system: orthorhombic, monoclinic, triclinic, rhombohedral."""
    from ase.spacegroup import crystal

    return {
        # aragonite CaCO3: De Villiers, Am. Mineral. 56, 758 (1971), rounded, axes of Pnma
        "orthorhombic": crystal(
            ["Ca", "C", "O", "O"],
            [(0.7597, 0.25, 0.415), (-0.0862, 0.25, 0.7622), (-0.0962, 0.25, 0.9225), (-0.0873, 0.4736, 0.681)],
            spacegroup=62,
            cellpar=[5.7404, 4.9614, 7.9671, 90, 90, 90],
        ),
        # monoclinic ZrO2 (baddeleyite): Howard, Hill and Reichert, Acta Cryst. B 44, 116 (1988), rounded
        "monoclinic": crystal(
            ["Zr", "O", "O"],
            [(0.2754, 0.0395, 0.2083), (0.07, 0.3317, 0.3447), (0.4496, 0.7569, 0.4792)],
            spacegroup=14,
            cellpar=[5.1505, 5.2116, 5.3173, 90, 99.23, 90],
        ),
        # corundum Al2O3: Newnham and de Haan, Z. Krist. 117, 235 (1962), primitive rhombohedral cell
        "rhombohedral": crystal(
            ["Al", "O"],
            [(0, 0, 0.3520), (0.3064, 0, 0.25)],
            spacegroup=167,
            cellpar=[4.7589, 4.7589, 12.991, 90, 90, 120],
            primitive_cell=True,
        ),
        "triclinic": structures.random_crystal(3),
    }


def all_crystals():
    return structures.named_structures() | more_crystals()


@pytest.mark.parametrize("name", list(GROUPS))
def test_space_group(name):
    group = symmetry.space_group(*arrays(structures.named_structures()[name]))
    assert (group.number, group.symbol, group.point_group, group.crystal_system) == GROUPS[name]


def test_space_group_of_the_others():
    found = {name: symmetry.space_group(*arrays(atoms)).number for name, atoms in more_crystals().items()}
    assert found == {"orthorhombic": 62, "monoclinic": 14, "rhombohedral": 167, "triclinic": 1}


@pytest.mark.parametrize("name", list(GROUPS))
def test_operations_map_the_crystal_on_itself_in_its_own_frame(name):
    atoms = structures.named_structures()[name]
    turn = structures.random_rotation(5)
    atoms.set_cell(atoms.cell[:] @ turn.T, scale_atoms=True)
    space = symmetry.symmetry_operations(*arrays(atoms), symprec=1e-3)
    inverse = np.linalg.inv(atoms.cell[:])
    assert len(space.rotations) > 1
    for rotation, permutation in zip(space.rotations, space.permutations, strict=True):
        assert rotation @ rotation.T == pytest.approx(np.eye(3), abs=1e-12)
        assert (atoms.numbers[permutation] == atoms.numbers).all()
        vectors = (atoms.positions - atoms.positions[0]) @ rotation.T
        images = atoms.positions[permutation] - atoms.positions[permutation[0]]
        delta = (vectors - images) @ inverse
        assert delta == pytest.approx(np.round(delta), abs=1e-3)


@pytest.mark.parametrize("name", list(GROUPS))
def test_polar_axis_survives_only_in_polar_crystals(name):
    space = symmetry.symmetry_operations(*arrays(structures.named_structures()[name]), symprec=1e-3)
    mean = space.symmetrize_vector([0.3, -0.7, 1.0])
    expected = [0.0, 0.0, 1.0] if GROUPS[name][2] in ("6mm", "4mm") else [0.0, 0.0, 0.0]
    assert mean == pytest.approx(np.array(expected), abs=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", list(all_crystals()))
def test_ieee_tensor_is_the_one_of_pymatgen(name, seed):
    """Rotated crystals too: the tensor in IEEE orientation does not depend on the frame of the input."""
    from pymatgen.core.tensors import Tensor

    atoms = all_crystals()[name]
    matrix = np.random.default_rng(seed).normal(size=(3, 3))
    matrix = matrix @ matrix.T
    if seed:
        turn = structures.random_rotation(seed)
        atoms.set_cell(atoms.cell[:] @ turn.T, scale_atoms=True)
        matrix = turn @ matrix @ turn.T
    fitted = symmetry.symmetrize_tensor(matrix, *arrays(atoms))
    ours = symmetry.rotate_tensor(fitted, symmetry.ieee_rotation(*arrays(atoms)))
    theirs = Tensor(matrix).convert_to_ieee(as_structure(atoms))
    assert fitted == pytest.approx(np.array(Tensor(matrix).fit_to_structure(as_structure(atoms))), abs=2e-3)
    assert ours == pytest.approx(np.array(theirs), abs=2e-3)


def test_ieee_orientation_is_independent_of_the_input_frame():
    atoms = structures.alpha_quartz()
    epsilon = np.diag([2.35, 2.35, 2.38])
    turn = structures.random_rotation(9, improper=False)
    turned = atoms.copy()
    turned.set_cell(atoms.cell[:] @ turn.T, scale_atoms=True)
    rotation = symmetry.ieee_rotation(*arrays(turned))
    assert symmetry.rotate_tensor(turn @ epsilon @ turn.T, rotation) == pytest.approx(epsilon, abs=1e-10)


def test_fields_agree_with_emmet():
    """total, ionic, electronic, e_* and n of emmet's own builder."""
    emmet = pytest.importorskip("emmet.core.polar")
    from fieldflows.physics.optics import refractive_index

    atoms = more_crystals()["monoclinic"]
    electronic = np.array([[5.1, 0.0, 0.2], [0.0, 4.9, 0.0], [0.2, 0.0, 4.6]])
    ionic = 3.0 * electronic
    doc = emmet.DielectricDoc.from_ionic_and_electronic(ionic, electronic, as_structure(atoms), deprecated=False)
    rotation = symmetry.ieee_rotation(*arrays(atoms))
    fitted = symmetry.symmetrize_tensor(electronic, *arrays(atoms))
    assert symmetry.rotate_tensor(fitted, rotation) == pytest.approx(np.array(doc.electronic), abs=1e-8)
    assert 4 * symmetry.rotate_tensor(fitted, rotation) == pytest.approx(np.array(doc.total), abs=1e-8)
    assert refractive_index(electronic) == pytest.approx(doc.n)
    assert np.trace(electronic) / 3 == pytest.approx(doc.e_electronic)


@pytest.mark.skipif("FIELDFLOWS_DATA" not in os.environ, reason="FIELDFLOWS_DATA does not name the real data")
def test_ieee_tensors_of_real_crystals_are_those_of_pymatgen():
    """Crystals of the Materials Project; at the edge of a tolerance spglib may find one group or the other."""
    import ase.io
    from pymatgen.core.tensors import Tensor

    path = Path(os.environ["FIELDFLOWS_DATA"]) / "dielectric_test_dev.extxyz.xz"
    with lzma.open(path, "rt") as file:
        crystals = ase.io.read(file, "::10", format="extxyz")
    matrix = np.array([[3.0, 0.4, -0.7], [0.4, 5.0, 0.2], [-0.7, 0.2, 8.0]])
    differ = []
    for atoms in crystals:
        fitted = symmetry.symmetrize_tensor(matrix, *arrays(atoms))
        ours = symmetry.rotate_tensor(fitted, symmetry.ieee_rotation(*arrays(atoms)))
        theirs = np.array(Tensor(matrix).convert_to_ieee(as_structure(atoms)))
        if np.abs(ours - theirs).max() > 0.02:
            differ.append(atoms.get_chemical_formula())
    assert len(crystals) == 42
    assert len(differ) <= 1, differ


def test_overlapping_atoms_have_no_space_group():
    with pytest.raises(EvaluationError, match="No space group"):
        symmetry.space_group(4 * np.eye(3), [[0, 0, 0], [0, 0, 0.001]], [8, 8])


def test_a_large_supercell_has_one_operation_for_each_rotation(monkeypatch):
    """All of them took seconds and a gigabyte for 512 atoms; tensors are averaged as before."""
    atoms = structures.rocksalt_mgo().repeat(3)
    atoms.rattle(1e-3, seed=1)
    tensor = np.random.default_rng(2).normal(size=(3, 3))
    every = symmetry.symmetry_operations(*arrays(atoms))
    monkeypatch.setattr(symmetry, "MOST_IMAGES", 1000)
    few = symmetry.symmetry_operations(*arrays(atoms))
    assert (len(every.rotations), len(few.rotations)) == (27 * 48, 48)
    assert few.symmetrize(tensor) == pytest.approx(every.symmetrize(tensor), abs=1e-12)
    assert few.symmetrize_site_tensors(np.tile(np.eye(3), (54, 1, 1)))[0] == pytest.approx(np.eye(3))
