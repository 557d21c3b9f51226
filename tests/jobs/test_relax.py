"""Relaxation: to the minimum of the model, atoms in order, with an honest record."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk

from fieldflows import load_model
from fieldflows.errors import StructureError
from fieldflows.jobs.relax import RelaxSettings, relax_structure


def test_forces_and_stress_vanish() -> None:
    crystal = bulk("NaCl", "rocksalt", 5.5)
    crystal.rattle(0.05, seed=2)
    relaxed, record = relax_structure(crystal, load_model("toy"), RelaxSettings(force_threshold=1e-3))
    response = load_model("toy").evaluate(relaxed, observables=("energy", "forces", "stress"))
    assert record.converged
    assert np.linalg.norm(response.forces, axis=1).max() <= 1e-3
    assert np.abs(response.stress).max() * relaxed.volume / len(relaxed) <= 1e-2
    assert record.energy_change < 0
    assert record.volume_change == pytest.approx(relaxed.volume / crystal.get_volume() - 1, abs=1e-12)
    assert [site.specie.symbol for site in relaxed] == crystal.get_chemical_symbols()


def test_a_fixed_cell_stays() -> None:
    crystal = bulk("NaCl", "rocksalt", 5.5)
    crystal.rattle(0.05, seed=2)
    relaxed, record = relax_structure(crystal, load_model("toy"), RelaxSettings(relax_cell=False))
    np.testing.assert_array_equal(relaxed.lattice.matrix, crystal.cell[:])
    assert record.volume_change == 0
    assert not record.relax_cell


def test_running_out_of_steps_is_said() -> None:
    crystal = bulk("NaCl", "rocksalt", 5.5)
    crystal.rattle(0.1, seed=2)
    _, record = relax_structure(crystal, load_model("toy"), RelaxSettings(max_steps=1, force_threshold=1e-6))
    assert not record.converged
    assert record.n_steps == 1
    assert record.max_force > 1e-6


def test_a_broken_crystal_is_refused() -> None:
    crystal = bulk("NaCl", "rocksalt", 5.5)
    crystal.positions[1] = crystal.positions[0]
    with pytest.raises(StructureError, match="apart"):
        relax_structure(crystal, load_model("toy"))
