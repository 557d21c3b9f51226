"""Energies against forces and stresses: closed-form energies, rotated cells, jumps, and what contradicts."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones
from scipy.spatial.transform import Rotation

from fieldflows.datasets.frame import LabeledFrame
from fieldflows.datasets.path_work import check_path, require_work, step_work
from fieldflows.errors import ConventionError


def frame(k: int, step: float, wfid: str = "w", turn: float = 5.0) -> LabeledFrame:
    """A strained, distorted and turned cell with the answers of ASE's Lennard-Jones calculator."""
    t = k * step
    strain = np.eye(3) + t * np.array([[0.05, 0.02, 0.0], [0.02, -0.03, 0.01], [0.0, 0.01, 0.04]])
    rotation = Rotation.from_euler("xyz", [turn * t, 0, 2 * turn * t], degrees=True).as_matrix()
    scaled = np.array([[0.0, 0, 0], [0.5, 0.5, 0.02 * t], [0.5, 0.03 * t, 0.5], [0, 0.5, 0.5 - 0.02 * t]])
    atoms = Atoms("Ar4", cell=5.0 * np.eye(3) @ strain @ rotation, scaled_positions=scaled % 1.0, pbc=True)
    atoms.calc = LennardJones(sigma=3.2, epsilon=0.1, rc=8.0, smooth=True)
    labels = {
        "energy": np.array(atoms.get_potential_energy()),
        "forces": atoms.get_forces(),
        "stress": atoms.get_stress(voigt=False),
    }
    atoms.calc = None
    return LabeledFrame(atoms, labels, "Ar", "lj", k, extra={"wfid": wfid, "path_index": k})


@pytest.mark.parametrize("turn", [0.0, 5.0, 60.0])
def test_the_work_of_a_step_is_the_change_of_energy_to_third_order(turn):
    errors = []
    for step in (0.4, 0.2, 0.1):
        a, b = frame(1, step, turn=turn), frame(2, step, turn=turn)
        change = float(b.labels["energy"] - a.labels["energy"])
        errors.append(abs(change - sum(step_work(a, b))))
        assert abs(step_work(a, b)[0]) > 1e-4
        assert abs(step_work(a, b)[1]) > 1e-4
    assert errors[0] > 4 * errors[1] > 16 * errors[2]  # 8 for pure third order
    assert errors[2] < 1e-4


def path(**changes) -> list[LabeledFrame]:
    frames = [frame(k, 0.2) for k in range(10)]
    return [f.with_(labels={name: changes.get(name, 1.0) * value for name, value in f.labels.items()}) for f in frames]


def test_slopes_see_through_single_jumps():
    frames = path()
    check = check_path(frames)
    assert check.n_steps == 9
    assert check.slope == pytest.approx(1.0, abs=0.02)
    assert check.error < 0.02 * check.size
    jump = [f.with_(labels=f.labels | {"energy": f.labels["energy"] + 3.0 * (k > 4)}) for k, f in enumerate(frames)]
    assert check_path(jump).slope == pytest.approx(1.0, abs=0.02)  # as where a moment flips
    (note,), flags = require_work("lj", frames)
    assert note.startswith("along 1 paths")
    assert flags == {}
    assert check_path(frames[::2]) is None  # no neighbors
    assert check_path(path(forces=np.nan)) is None


def test_a_broken_path_is_flagged_and_stops_nothing():
    """However large the numbers of one path, the others are judged by themselves."""
    frames = path()
    frames += [made.with_(extra=made.extra | {"wfid": "broken"}) for made in path(forces=1e5)]
    notes, flags = require_work("lj", frames[::-1])
    assert notes[0].startswith("along 2 paths")
    assert set(flags) == {"broken"}
    assert flags["broken"].code == "path_work"
    assert flags["broken"].value < 0.01


@pytest.mark.parametrize(
    "changes",
    [
        {"stress": -1.0},
        {"stress": 10.0},
        {"stress": 0.01},
        {"energy": 0.25},  # per atom in place of per cell
        {"forces": -1.0, "stress": -1.0},
    ],
)
def test_what_contradicts_is_refused(changes):
    with pytest.raises(ConventionError, match="other sign, or energies, forces or stresses in another unit") as caught:
        require_work("lj", path(**changes))
    assert ("−σ fits better" in str(caught.value)) or changes != {"stress": -1.0}


def test_a_source_without_work_says_nothing():
    assert require_work("lj", path(energy=1e-6, forces=1e-6, stress=1e-6)) == ([], {})
    bare = [f.with_(labels={"energy": f.labels["energy"]}) for f in path()]
    assert require_work("lj", bare) == ([], {})
