"""References that symmetry proposes: known parents, an independent space group, sizes, refusals."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from fieldflows.errors import PathError
from fieldflows.physics.bare import BareCrystal
from fieldflows.physics.distortion import DistortionLimits, bare_crystal
from fieldflows.physics.paths import build_path
from fieldflows.physics.pseudosymmetry import lattice_isometries, pseudosymmetric_crystals
from fieldflows.physics.references import is_polar, propose_references
from fieldflows.testing.structures import random_crystal, random_rotation, rocksalt_mgo, wurtzite_zno, zincblende_gaas
from tests.physics.pairs import PAIRS, lead_titanate

PARENTS = {"BaTiO3": {123, 221}, "PbTiO3": {123, 221}, "LiNbO3": {167}, "AlN": {194}}
"""Nonpolar supergroups that textbooks name."""


@pytest.mark.parametrize("name", PARENTS)
def test_the_known_parents_are_among_the_proposals(name):
    polar = PAIRS[name]()[1]
    found = propose_references(polar)
    assert PARENTS[name] <= {item.group.number for item in found}
    costs = [item.cost for item in found]
    assert costs == sorted(costs)
    for item in found:
        assert not item.group.is_polar
        assert SpacegroupAnalyzer(item.structure, symprec=0.01).get_space_group_number() == item.group.number
        path = build_path(item.structure, polar, match="given")
        assert path.distortion.largest == pytest.approx(item.distortion.largest, abs=1e-6)
        assert path.relation.related


def test_displacements_of_lead_titanate_by_hand():
    """P4/mmm keeps the cell; shifts of 0.0377, 0.1118 and 0.1174 c, less their mean, as in the file."""
    found = {item.group.number: item for item in propose_references(lead_titanate()[1])}
    shifts = 4.156 * np.array([0.0, 0.0377, 0.1118, 0.1174, 0.1174])
    expected = np.abs(shifts - shifts.mean())
    np.testing.assert_allclose(np.sort(found[123].distortion.norms), np.sort(expected), atol=1e-6)
    assert found[123].distortion.largest_strain < 1e-9
    length = (3.902**2 * 4.156) ** (1 / 3)
    strain = np.diag([3.902 / length - 1, 3.902 / length - 1, 4.156 / length - 1])
    # the cell of Pm-3m has the mean metric, not the same volume
    assert found[221].distortion.largest_strain == pytest.approx(np.abs(strain).max(), rel=0.05)


def test_a_turned_and_shuffled_supercell_has_the_same_proposals():
    polar = lead_titanate()[1]
    other = polar.repeat((1, 2, 1))[[3, 1, 0, 2, 4, 9, 8, 7, 6, 5]]
    rotation = random_rotation(2)
    other.set_cell(other.cell[:] @ rotation.T, scale_atoms=True)
    found, expected = propose_references(other), propose_references(polar)
    assert [item.group.number for item in found[:2]] == [item.group.number for item in expected[:2]]
    np.testing.assert_allclose([item.cost for item in found[:2]], [item.cost for item in expected[:2]], atol=1e-4)
    assert not found[0].same_cell
    assert expected[0].same_cell
    path = build_path(found[0].structure, other)
    assert path.distortion.largest == pytest.approx(expected[0].distortion.largest, abs=1e-4)


def test_refusals_name_the_numbers():
    with pytest.raises(PathError, match="allows no polarization"):
        propose_references(rocksalt_mgo())
    with pytest.raises(PathError, match=r"within 0\.01 Å"):
        propose_references(lead_titanate()[1], DistortionLimits(displacement=0.01))
    with pytest.raises(PathError, match="No nonpolar crystal is near"):
        propose_references(random_crystal(3), DistortionLimits(displacement=0.05, strain=0.02))


def test_noise_is_taken_off_a_crystal_in_p1():
    polar = lead_titanate()[1]
    polar.positions += np.random.default_rng(1).normal(0, 0.01, (5, 3))
    numbers = {item.group.number for item in propose_references(polar)}
    assert numbers & {2, 47, 65, 123, 221}  # nonpolar groups of the perovskite


@pytest.mark.parametrize(("crystal", "polar"), [(wurtzite_zno, True), (rocksalt_mgo, False), (zincblende_gaas, False)])
def test_is_polar(crystal, polar):
    assert is_polar(crystal()) is polar


def test_an_ill_cell_is_not_polar():
    flat = Atoms("NaCl", positions=[[0, 0, 0], [1, 1, 1e-4]], cell=[3, 3, 1e-7], pbc=True)
    assert is_polar(flat) is False


def test_isometries_of_lattices():
    """48 of a cube, 16 of a tetragonal prism, 24 of a hexagonal one, 2 of a triclinic cell."""
    assert len(lattice_isometries(4 * np.eye(3), 0.01)) == 48
    assert len(lattice_isometries(np.diag([4.0, 4.0, 4.4]), 0.01)) == 16
    assert len(lattice_isometries(np.diag([4.0, 4.0, 4.2]), 0.1)) == 48
    hexagonal = np.array([[3, 0, 0], [-1.5, 1.5 * np.sqrt(3), 0], [0, 0, 5.0]])
    assert len(lattice_isometries(hexagonal, 0.01)) == 24
    assert len(lattice_isometries(np.array([[4, 0, 0], [1.1, 4.6, 0], [0.7, 0.9, 5.3]]), 0.01)) == 2


def test_an_added_operation_holds_exactly():
    crystal = bare_crystal(PAIRS["LiNbO3"]()[1])
    found = list(pseudosymmetric_crystals(crystal, 0.01, 3.0, 0.1))
    assert found
    for item in found:
        assert isinstance(item.crystal, BareCrystal)
        structure = Atoms(crystal.numbers, positions=item.crystal.positions, cell=item.crystal.cell, pbc=True)
        from fieldflows.structures import as_structure

        operations = SpacegroupAnalyzer(as_structure(structure), symprec=1e-4).get_symmetry_operations()
        assert len(operations) >= item.n_operations > 6


@pytest.mark.slow
def test_published_polar_crystals():
    """Every fourth of the 209: all get proposals, three of four the published parent among them."""
    folder = os.environ.get("FIELDFLOWS_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FIELDFLOWS_DATA is not set: the real data are not at hand")
    from fieldflows.datasets.extxyz import read_extxyz
    from fieldflows.datasets.paths import read_paths

    paths, _ = read_paths(list(read_extxyz(Path(folder) / "ferroelectric_paths_dev.extxyz.xz")))
    chosen = paths[::4]
    same = 0
    for path in chosen:
        found = propose_references(path.frames[-1].atoms())
        assert not any(item.group.is_polar for item in found)
        same += int(path.frames[0].info["nonpolar_spacegroup"]) in {item.group.number for item in found}
    assert len(chosen) == 53
    assert same >= 38
