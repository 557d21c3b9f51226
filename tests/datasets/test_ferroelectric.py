"""Published paths and the paper's frames, on a path whose Cartesian polarization is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import build_dataset
from fieldflows.errors import LabelError, SettingsError
from tests.datasets.synthetic import UC_PER_CM2, Crystal, extxyz_text, write

POLAR = np.array([[4.0, 0.0, 0.2], [0.3, 4.2, 0.0], [0.1, -0.2, 4.6]])
NONPOLAR = np.diag([4.1, 4.1, 4.2])
DIRECTION = np.array([0.02, 0.1, 0.35])  # change of f from end to end, in quanta


def crystal(k: int) -> Crystal:
    t = k / 9
    scaled = np.array([[0, 0, 0], [0.5, 0.5, 0.5 + 0.02 * t], [0.5, 0.5, -0.03 * t], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    return Crystal(["Ba", "Ti", "O", "O", "O"], (1 - t) * NONPOLAR + t * POLAR, scaled, np.eye(3), np.zeros((5, 3, 3)))


def fractions(start=(0.0, 0.0, 0.0), jump: float = 0.0) -> np.ndarray:
    f = np.array(start) + np.outer(np.arange(10) / 9, DIRECTION)
    f[5:, 0] += jump
    return f


QUANTA = np.linalg.norm(POLAR, axis=1) / abs(np.linalg.det(POLAR)) * UC_PER_CM2


def path_text(f: np.ndarray, wfid: str = "w1", order=range(10), wraps: bool = True, **info) -> str:
    text = ""
    for k in order:
        c = crystal(k)
        if wraps:
            c = c.copy(scaled=c.scaled % 1.0)
        keys = {
            "wfid": wfid,
            "nonpolar_mpid": "mp-1",
            "polar_mpid": "mp-2",
            "workflow_status": "COMPLETED",
            "category": "smooth",
            "path_index": str(k),
            "energy_per_atom_eV": "-5.0",
            "same_branch_polarization_abc_uC_cm2": f[k] * QUANTA,
            "polarization_quanta_abc_uC_cm2": QUANTA,
        }
        text += extxyz_text(c, keys | info, charges_key="")
    return text


def build(tmp_path, text: str, **settings):
    write(tmp_path / "paths.extxyz", text)
    source = {"type": "ferroelectric_paths", "path": "paths.extxyz"} | settings
    return build_dataset(DatasetConfig.from_dict({"name": "f", "sources": [source]}, base=tmp_path))


def expected(k: int) -> np.ndarray:
    """P relative to the nonpolar end, in the frame's own cell."""
    cell = crystal(k).cell
    return (k / 9 * DIRECTION) @ cell / abs(np.linalg.det(cell))


@pytest.mark.parametrize("start", [(0, 0, 0), (0.5, 0, 0.5), (0.25, 0, -2.0)])
def test_labels_are_cartesian_in_the_own_cell_and_relative_to_the_nonpolar_end(tmp_path, start):
    dataset = build(tmp_path, path_text(fractions(start), order=[3, 1, 2, 0, 9, 8, 7, 6, 5, 4]))
    assert len(dataset) == 10
    for frame in dataset.frames:
        k = frame.extra["path_index"]
        np.testing.assert_allclose(frame.labels["polarization"], expected(k), atol=1e-12)
        assert float(frame.labels["energy"]) == pytest.approx(-25.0)
        cell = crystal(k).cell
        raw = (np.array(start) + k / 9 * DIRECTION) @ cell / abs(np.linalg.det(cell))
        np.testing.assert_allclose(frame.extra["polarization_raw"], raw, atol=1e-12)
    offset = any("path_nonpolar_offset" in frame.flags for frame in dataset.frames)
    assert offset == (start != (0, 0, 0))


def test_branch_jumps_of_a_quantum_are_undone(tmp_path):
    dataset = build(tmp_path, path_text(fractions(jump=1.0)))
    for frame in dataset.frames:
        np.testing.assert_allclose(frame.labels["polarization"], expected(frame.extra["path_index"]), atol=1e-12)


def test_a_jump_that_is_no_quantum_rejects_the_path(tmp_path):
    good, bad = path_text(fractions()), path_text(fractions(jump=0.4), wfid="w2")
    manifest = build(tmp_path, good + bad).manifest
    assert manifest.n_frames == 10
    assert len(manifest.rejects) == 10
    assert {f.code for r in manifest.rejects for f in r.findings} == {"path_second_difference"}
    assert manifest.rejects[0].findings[0].value == pytest.approx(0.4)


def test_flags_of_a_path(tmp_path):
    flags = build(tmp_path, path_text(fractions() * 1e-4, category="not_smooth")).manifest.flags
    assert {f.code for r in flags for f in r.findings} == {"path_small", "path_not_smooth"}
    steep = np.zeros((10, 3))
    steep[:, 2] = np.arange(10) * 0.4
    flags = build(tmp_path, path_text(steep)).manifest.flags
    assert {f.code for r in flags for f in r.findings} == {"path_large_step"}
    assert flags[0].findings[0].value == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (path_text(fractions(), workflow_status="FIZZLED"), "FIZZLED"),
        (path_text(fractions(), order=range(9)), "frames"),
        (path_text(fractions(), same_branch_polarization_abc_uC_cm2="nan 0 0"), "not finite"),
        (path_text(fractions(), polarization_quanta_abc_uC_cm2="0 1 1"), "not positive"),
    ],
)
def test_what_is_no_path_is_rejected_with_its_reason(tmp_path, text, message):
    with pytest.raises(LabelError, match=message):
        build(tmp_path, text)
    manifest = build(tmp_path, path_text(fractions(), wfid="good") + text).manifest
    assert manifest.n_frames == 10
    assert {f.code for r in manifest.rejects for f in r.findings} == {"path_incomplete"}
    assert message in manifest.rejects[0].findings[0].message


def paper_text(k: int, f: np.ndarray, shift: float = 0.0, **info) -> str:
    """A frame as the paper writes it: another rotation of the cell, unwrapped, e/Å² along the polar lattice."""
    c = crystal(k)
    rotation = Rotation.from_euler("xyz", [20, 30, 40], degrees=True).as_matrix()
    scaled = c.scaled + np.array([1, 0, -1])
    scaled[1, 2] += shift
    c = c.copy(cell=c.cell @ rotation.T, scaled=scaled)
    keys = {
        "nonpolar_mpid": "mp-1",
        "polar_mpid": "mp-2",
        "REF_polarisation": f * QUANTA / UC_PER_CM2,
        "REF_electric_field": "0 0 0",
    }
    return extxyz_text(c, keys | info, charges_key="")


def test_paper_frames_are_matched_and_relabeled(tmp_path):
    f = fractions((0.5, 0.0, 0.0))
    write(tmp_path / "paths.extxyz", path_text(f))
    text = paper_text(9, f[9]) + paper_text(4, f[4] + [0, 0, 1])  # the second on another branch
    text += paper_text(9, f[9], shift=0.01)  # no such frame
    text += paper_text(9, f[9] + [0.1, 0, 0])  # another label
    text += paper_text(9, f[9], polar_mpid="mp-3")  # no such path
    write(tmp_path / "paper.extxyz", text)
    source = {"type": "paper_ferroelectric", "path": "paper.extxyz", "paths_file": "paths.extxyz"}
    dataset = build_dataset(DatasetConfig.from_dict({"name": "p", "sources": [source]}, base=tmp_path))
    assert [frame.extra["path_index"] for frame in dataset.frames] == [9, 4]
    for frame in dataset.frames:
        k = frame.extra["path_index"]
        cell = np.array(frame.atoms.cell[:])
        truth = (k / 9 * DIRECTION) @ cell / abs(np.linalg.det(cell))
        np.testing.assert_allclose(frame.labels["polarization"], truth, atol=1e-12)
    rejects = {r.source_index: r.findings[0].code for r in dataset.manifest.rejects}
    assert rejects == {2: "path_no_match", 3: "path_label_mismatch", 4: "path_no_match"}


def test_paper_frames_need_the_paths(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    write(tmp_path / "paper.extxyz", paper_text(9, fractions()[9]))
    source = {"type": "paper_ferroelectric", "path": "paper.extxyz"}
    with pytest.raises(SettingsError, match="paths_file"):
        DatasetConfig.from_dict({"name": "p", "sources": [source]}, base=tmp_path)
    settings = DatasetConfig.from_dict(
        {"name": "p", "sources": [source | {"paths_file": "${NO_SUCH_VARIABLE}/x"}]}, base=tmp_path
    )
    with pytest.raises(SettingsError, match="NO_SUCH_VARIABLE"):
        build_dataset(settings)
