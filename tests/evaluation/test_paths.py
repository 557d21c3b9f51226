"""Spontaneous polarization of made paths, whose answers are known, and of published ones."""

from __future__ import annotations

import os

import numpy as np
import pytest
from ase import Atoms

from fieldflows.datasets.frame import LabeledFrame
from fieldflows.datasets.paths import N_FRAMES
from fieldflows.evaluation.paths import (
    evaluate_paths,
    path_quantities,
    polarization_of_displacements,
    raw_quantity,
)
from fieldflows.physics.branches import polarization_fractions, spontaneous_polarization
from fieldflows.testing.structures import random_rotation
from fieldflows.units import E_PER_A2_TO_UC_PER_CM2

CELL = np.array([[4.0, 0.0, 0.0], [0.6, 4.1, 0.0], [0.2, -0.3, 4.4]])


def made_path(wfid: str, polar: np.ndarray, offset: np.ndarray, split: str = "test", strain: float = 0.05):
    """Return ten frames whose fractions of the quanta run from 0 to ``polar``; published ones are off by ``offset``."""
    frames = []
    for k in range(N_FRAMES):
        part = k / (N_FRAMES - 1)
        cell = CELL @ np.diag([1, 1, 1 + strain * part])
        atoms = Atoms("PbTiO3", positions=np.linspace(0, 3, 15).reshape(5, 3), cell=cell, pbc=True)
        quanta = cell / abs(np.linalg.det(cell))
        labels = {"polarization": part * polar @ quanta}
        extra = {"wfid": wfid, "path_index": k, "polarization_raw": (part * polar + offset) @ quanta}
        frames.append(LabeledFrame(atoms, labels, "TiPbO3", "made", k, split=split, extra=extra))
    return frames


def test_fractions_are_those_that_made_the_polarization():
    f = np.array([0.3, -1.2, 2.4])
    polarization = f @ CELL / abs(np.linalg.det(CELL))
    assert polarization_fractions(polarization, CELL) == pytest.approx(f)
    assert polarization_fractions(polarization, CELL * [[1], [1], [-1]]) == pytest.approx(f * [1, 1, -1])


def test_the_ends_are_taken_in_their_own_cells():
    """Rotating and straining the nonpolar end along with its polarization changes nothing."""
    polar, nonpolar = np.array([0.1, 0.2, 0.9]), np.array([0.5, 0.0, 0.5])
    volume = abs(np.linalg.det(CELL))
    expected = (polar - nonpolar) @ CELL / volume
    turn, stretch = random_rotation(3), np.diag([1.1, 0.95, 1.02])
    other = CELL @ stretch @ turn.T
    found = spontaneous_polarization(polar @ CELL / volume, CELL, nonpolar @ other / abs(np.linalg.det(other)), other)
    assert found == pytest.approx(expected, abs=1e-14)


def test_a_model_that_returns_the_labels_scores_zero():
    frames = made_path("a", np.array([0.0, 0.1, 0.8]), np.zeros(3)) + made_path(
        "b", np.array([0.4, 0, 1.7]), np.zeros(3)
    )
    paths, incomplete = evaluate_paths(frames, [frame.labels for frame in frames])
    assert incomplete == []
    assert [path.path for path in paths] == ["a", "b"]
    found = path_quantities(paths)
    for name in found:
        assert found[name].model.rmse < 1e-12
        assert found[name].baselines["zero"].rmse > 10
    assert found["spontaneous_polarization"].count == 6
    expected = np.array([0.4, 0, 1.7]) @ frames[-1].atoms.cell[:] / frames[-1].atoms.get_volume()
    assert paths[1].label == pytest.approx(expected * E_PER_A2_TO_UC_PER_CM2)
    assert paths[1].label_norm == pytest.approx(np.linalg.norm(expected) * E_PER_A2_TO_UC_PER_CM2)


def test_errors_of_a_path_by_hand():
    frames = made_path("a", np.array([0.0, 0.0, 0.6]), np.zeros(3), strain=0.0)
    predictions = [{"polarization": 0.5 * frame.labels["polarization"]} for frame in frames]
    (path,), _ = evaluate_paths(frames, predictions)
    size = 0.6 * np.linalg.norm(CELL[2]) / np.linalg.det(CELL) * E_PER_A2_TO_UC_PER_CM2
    assert (path.label_norm, path.predicted_norm) == pytest.approx((size, size / 2))
    assert path.distance == pytest.approx(size / 2)
    found = path_quantities([path])
    assert found["spontaneous_polarization_norm"].factor("zero") == pytest.approx(2.0)
    assert found["spontaneous_polarization"].factor("zero", "mae") == pytest.approx(2.0)
    assert found["spontaneous_polarization"].model.distance == pytest.approx(size / 2)


def test_a_whole_quantum_is_an_error_of_the_path_and_none_modulo_quanta():
    frames = made_path("a", np.array([0.0, 0.0, 1.0]), np.zeros(3))
    (path,), _ = evaluate_paths(frames, [{"polarization": np.zeros(3)} for _ in frames])
    assert path.distance == pytest.approx(path.label_norm)
    assert path.label_norm > 10
    assert path.folded_distance < 1e-10
    assert np.array(path.quanta)[2] == pytest.approx(path.label)
    found = path_quantities([path])
    assert found["spontaneous_polarization"].model.rmse > 10
    assert found["spontaneous_polarization_folded"].model.rmse < 1e-10
    assert found["spontaneous_polarization_folded"].baselines["zero"].rmse < 1e-10


def displaced_path(quanta: int, charge: float, turn: np.ndarray | None = None):
    """Return a path on which an ion of a tetragonal cell moves along c, and the Born charges at its ends.

    Labels follow the ion, less so many quanta at the polar end; the ends may be turned against each other.
    """
    cell = np.diag([4.0, 4.0, 5.0])
    shift = 0.4 * cell[2]
    charges = np.stack([charge * np.eye(3), -charge * np.eye(3)])
    frames, at_ends = [], {}
    for k in range(N_FRAMES):
        part = k / (N_FRAMES - 1)
        rotation = np.eye(3) if turn is None or k == N_FRAMES - 1 else turn
        atoms = Atoms("NaCl", positions=[part * shift, [2.0, 2.0, 2.5]], cell=cell, pbc=True)
        atoms.set_cell(cell @ rotation.T, scale_atoms=True)
        change = (charge * part * shift - (quanta * cell[2] if k == N_FRAMES - 1 else 0)) / 80.0
        frames.append(
            LabeledFrame(atoms, {"polarization": rotation @ change}, "NaCl", "made", k, split="test",
                         extra={"wfid": "a", "path_index": k})
        )  # fmt: skip
        at_ends["made", "a", k] = np.einsum("ia,nab,jb->nij", rotation, charges, rotation)
    return frames, at_ends


def test_charges_at_the_ends_tell_the_branch():
    """An ion of charge 2 that moves by 0.4 c changes P by 0.8 quantum; a model that is one quantum off is put right."""
    frames, charges = displaced_path(0, 2.0)
    off, _ = displaced_path(1, 2.0)
    (path,), _ = evaluate_paths(frames, [frame.labels for frame in off], charges)
    size = 2.0 * 0.4 * 5.0 / 80.0 * E_PER_A2_TO_UC_PER_CM2
    assert path.label == pytest.approx((0, 0, size))
    assert path.predicted_norm == pytest.approx(size / 4)
    assert path.from_charges == pytest.approx((0, 0, size))
    assert path.guided == pytest.approx((0, 0, size))
    found = path_quantities([path])
    assert found["spontaneous_polarization_norm"].model.mae == pytest.approx(0.75 * size)
    assert found["spontaneous_polarization_guided_norm"].model.mae < 1e-9
    assert found["spontaneous_polarization_charges"].model.rmse < 1e-9


def test_charges_of_a_turned_end_are_turned_back():
    anisotropic = np.stack([np.diag([1.0, 2.0, 3.0]), -np.diag([1.0, 2.0, 3.0])])
    turn = random_rotation(5)
    frames, _ = displaced_path(0, 2.0, turn)
    polar, nonpolar = frames[-1].atoms, frames[0].atoms
    turned = np.einsum("ia,nab,jb->nij", turn, anisotropic, turn)
    found = polarization_of_displacements(polar, anisotropic, nonpolar, turned)
    assert found == pytest.approx([0, 0, 3.0 * 0.4 * 5.0 / 80.0])


def test_a_path_without_charges_at_both_ends_is_not_guided():
    frames, charges = displaced_path(0, 2.0)
    del charges["made", "a", 0]
    (path,), _ = evaluate_paths(frames, [frame.labels for frame in frames], charges)
    assert path.guided is None
    assert not [name for name in path_quantities([path]) if "guided" in name or "charges" in name]


def test_a_model_with_charges_guides_itself():
    """The charges of the closed-form model at both ends are those that integrate its polarization over a short path."""
    from fieldflows import load_model
    from fieldflows.evaluation.predict import predict_charges

    toy = load_model("toy")
    frames, _ = displaced_path(0, 1.0)
    start = frames[0].atoms.copy()
    start.positions[1] += (0.1, -0.2, 0.3)
    end = start.copy()
    end.positions[0] += (0.02, 0.01, -0.015)
    pair = [frames[0].with_(atoms=start), frames[-1].with_(atoms=end)]
    charges = predict_charges(toy, pair)
    found = polarization_of_displacements(end, charges[1], start, charges[0])
    change = toy.evaluate(end, observables=("polarization",)).polarization
    change = change - toy.evaluate(start, observables=("polarization",)).polarization
    assert np.linalg.norm(change) > 1e-5
    assert found == pytest.approx(change, rel=1e-3)


def test_flags_of_frames_are_those_of_the_path():
    frames = made_path("a", np.array([0.0, 0.0, 0.5]), np.zeros(3))
    frames[3] = frames[3].with_(flags=("path_large_step",))
    (path,), _ = evaluate_paths(frames, [frame.labels for frame in frames])
    assert path.flags == ("path_large_step",)


def test_paths_without_an_end_are_named():
    frames = made_path("a", np.array([0.0, 0.0, 0.5]), np.zeros(3))[1:] + made_path("b", np.ones(3) / 3, np.zeros(3))
    paths, incomplete = evaluate_paths(frames, [frame.labels for frame in frames])
    assert [path.path for path in paths] == ["b"]
    assert incomplete == ["made:a"]
    assert evaluate_paths([], []) == ([], [])
    assert path_quantities([]) == {}


def test_half_a_quantum_at_the_nonpolar_end_is_what_a_perfect_model_scores_on_raw_labels():
    half = np.array([0.0, 0.0, 0.5])
    frames = made_path("a", np.array([0.0, 0.0, 0.3]), half)
    found = raw_quantity(frames, [frame.labels for frame in frames])["polarization_raw"]
    quanta = [np.linalg.norm(f.atoms.cell[2] / f.atoms.get_volume()) * E_PER_A2_TO_UC_PER_CM2 for f in frames]
    assert found.model.distance == pytest.approx(np.mean(quanta) / 2)
    whole = made_path("a", np.array([0.0, 0.0, 0.3]), np.array([0.0, -2.0, 1.0]))
    assert raw_quantity(whole, [frame.labels for frame in whole])["polarization_raw"].model.rmse < 1e-10
    assert raw_quantity([frame.with_(extra={}) for frame in frames], [frame.labels for frame in frames]) == {}


@pytest.mark.skipif(not os.environ.get("FIELDFLOWS_DATA"), reason="needs the shared data")
def test_published_paths():
    """P_s of the labels is that of the file's own definition, and 17 or so references lie at half a quantum."""
    from fieldflows.datasets.config import DatasetConfig
    from fieldflows.datasets.extxyz import read_extxyz
    from fieldflows.datasets.paths import read_paths
    from fieldflows.datasets.source import expand_path

    config = DatasetConfig.from_yaml("workflows/dataset_ferroelectric.yaml")
    source = config.sources[0].model_copy(update={"limit": 300})
    file = expand_path(source.path, config.base)
    frames = [frame.with_(split="test") for frame in source.read(file, config.base).frames]
    paths, incomplete = evaluate_paths(frames, [frame.labels for frame in frames])
    assert not incomplete
    published = {path.wfid: path.spontaneous_polarization for path in read_paths([*_first(read_extxyz(file), 300)])[0]}
    assert len(paths) > 20
    for path in paths:
        assert path.label == pytest.approx(published[path.path], abs=1e-4), path.path
        assert path.distance == pytest.approx(0, abs=1e-9)
    assert raw_quantity(frames, [frame.labels for frame in frames])["polarization_raw"].frames == len(frames)


def _first(frames, number):
    from itertools import islice

    return islice(frames, number)
