"""IEEE orientation and back, against pymatgen."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from pymatgen.core.tensors import Tensor
from scipy.spatial.transform import Rotation

from fieldflows.datasets.orientation import from_ieee, symmetrization_residual, to_ieee
from fieldflows.structures import as_structure

CRYSTALS = {
    "wurtzite": bulk("ZnO", "wurtzite", a=3.25, c=5.207, u=0.38),
    "zincblende": bulk("GaAs", "zincblende", a=5.65),
    "orthorhombic": bulk("MgO", "rocksalt", a=4.2, orthorhombic=True),
    "rutile-like": bulk("TiO", "cesiumchloride", a=3.0),
}
CRYSTALS["orthorhombic"].set_cell(np.diag([2.9, 3.4, 4.2]), scale_atoms=True)
CRYSTALS["rutile-like"].set_cell(np.diag([3.0, 3.0, 3.7]), scale_atoms=True)
TRICLINIC = bulk("MgO", "rocksalt", a=4.2)
TRICLINIC.set_cell([[3.0, 0.1, 0.2], [0.3, 3.5, 0.4], [0.5, 0.6, 4.1]], scale_atoms=True)
TRICLINIC.positions[1] += [0.05, 0.11, -0.07]
CRYSTALS["triclinic"] = TRICLINIC


@pytest.mark.parametrize("name", CRYSTALS)
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_round_trip_in_any_frame(name, seed):
    atoms = CRYSTALS[name].copy()
    if seed is not None:
        rotation = Rotation.random(random_state=seed).as_matrix()
        atoms.set_cell(atoms.cell[:] @ rotation.T, scale_atoms=True)
    structure = as_structure(atoms)
    raw = np.array([[5.0, 0.2, -0.1], [0.2, 6.0, 0.3], [-0.1, 0.3, 7.0]])
    symmetrized = np.array(Tensor(raw).fit_to_structure(structure))
    ieee = np.array(Tensor(raw).convert_to_ieee(structure))
    np.testing.assert_allclose(from_ieee(ieee, structure), symmetrized, atol=1e-9)
    np.testing.assert_allclose(from_ieee(ieee, atoms), symmetrized, atol=1e-9)
    np.testing.assert_allclose(to_ieee(raw, structure), ieee, atol=1e-6)
    np.testing.assert_allclose(symmetrization_residual(raw, structure), np.abs(raw - symmetrized).max(), atol=1e-6)


def test_the_frame_matters():
    atoms = CRYSTALS["wurtzite"].copy()
    rotation = Rotation.from_euler("x", 40, degrees=True).as_matrix()
    atoms.set_cell(atoms.cell[:] @ rotation.T, scale_atoms=True)
    ieee = np.diag([3.6, 3.6, 3.8])
    back = from_ieee(ieee, as_structure(atoms))
    axis = rotation @ [0, 0, 1]
    np.testing.assert_allclose(back, 3.6 * np.eye(3) + 0.2 * np.outer(axis, axis), atol=1e-9)
    assert np.abs(back - ieee).max() > 0.05
