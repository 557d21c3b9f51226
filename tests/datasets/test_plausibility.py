"""The gate: a wrong convention of the polarizability stops the build and is named."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms

from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.consistency import check_charges, require_consistent
from fieldflows.datasets.dataset import build_dataset
from fieldflows.datasets.frame import LabeledFrame
from fieldflows.errors import ConventionError
from tests.datasets.synthetic import EPS0, FORMULAS, extxyz_text, perovskite, write

WRITERS = {
    "gaussian": lambda c: (c.epsilon - np.eye(3)) / (4 * np.pi),
    "e_per_volt_angstrom": lambda c: (c.epsilon - np.eye(3)) * EPS0,
    "susceptibility": lambda c: c.epsilon - np.eye(3),
    "per_cell": lambda c: (c.epsilon - np.eye(3)) * EPS0 * c.volume,
}


def config(tmp_path, written: str, declared: str) -> DatasetConfig:
    crystals = [perovskite(*spec) for spec in FORMULAS]
    text = "".join(extxyz_text(c, {"alpha": WRITERS[written](c)}) for c in crystals)
    write(tmp_path / "a.extxyz", text)
    labels = {
        "polarizability": {"key": "alpha", "convention": declared},
        "born_effective_charges": "polarization_displacement",
    }
    return DatasetConfig.from_dict(
        {"name": "d", "sources": [{"type": "extxyz", "path": "a.extxyz", "labels": labels}]}, base=tmp_path
    )


@pytest.mark.parametrize("convention", WRITERS)
def test_the_right_convention_passes(tmp_path, convention):
    dataset = build_dataset(config(tmp_path, convention, convention))
    expected = np.median([spec[4] for spec in FORMULAS])
    assert dataset.manifest.sources[0].median_epsilon_electronic == pytest.approx(expected)
    for frame, spec in zip(dataset.frames, FORMULAS, strict=True):
        np.testing.assert_allclose(np.eye(3) + frame.labels["polarizability"] / EPS0, np.eye(3) * spec[4])


@pytest.mark.parametrize(
    ("written", "declared"),
    [
        ("gaussian", "e_per_volt_angstrom"),
        ("gaussian", "susceptibility"),
        ("e_per_volt_angstrom", "gaussian"),
        ("e_per_volt_angstrom", "susceptibility"),
        ("susceptibility", "gaussian"),
        ("susceptibility", "e_per_volt_angstrom"),
        ("per_cell", "e_per_volt_angstrom"),
        ("per_cell", "gaussian"),
    ],
)
def test_a_wrong_convention_stops_and_the_right_one_is_named(tmp_path, written, declared):
    with pytest.raises(ConventionError, match="median ε∞ of") as caught:
        build_dataset(config(tmp_path, written, declared))
    message = str(caught.value)
    assert f"read as {declared!r}" in message
    assert f"{written!r}" in message.split("likely")[1]


def test_hopeless_labels_are_said_to_be_hopeless(tmp_path):
    write(tmp_path / "a.extxyz", extxyz_text(perovskite(), {"alpha": np.eye(3) * 1e9}))
    labels = {"polarizability": {"key": "alpha", "convention": "gaussian"}}
    settings = DatasetConfig.from_dict(
        {"name": "d", "sources": [{"type": "extxyz", "path": "a.extxyz", "labels": labels}]}, base=tmp_path
    )
    with pytest.raises(ConventionError, match="No known convention"):
        build_dataset(settings)


def trajectory(n: int = 30) -> list[LabeledFrame]:
    """Frames whose P follows from constant, asymmetric Z* exactly: P = Σ Z*·u/Ω, folded at random."""
    rng = np.random.default_rng(1)
    crystal = perovskite()
    charges = crystal.charges + 0.4 * rng.normal(size=(5, 3, 3))
    charges -= charges.mean(axis=0)
    frames = []
    for k in range(n):
        u = 0.1 * rng.normal(size=(5, 3))
        polarization = np.einsum("kij,kj->i", charges, u) / crystal.volume
        polarization += rng.integers(-1, 2, size=3) @ crystal.cell / crystal.volume
        atoms = Atoms(crystal.symbols, positions=crystal.positions + u, cell=crystal.cell, pbc=True)
        atoms.wrap()
        labels = {"polarization": polarization, "born_effective_charges": charges}
        frames.append(LabeledFrame(atoms, labels, "SrTiO3", "md", k))
    return frames


def changed(frames, **changes):
    return [f.with_(labels=f.labels | {name: change(f.labels[name]) for name, change in changes.items()})
            for f in frames]  # fmt: skip


def test_charges_and_polarization_of_a_trajectory_agree():
    check = check_charges(trajectory())
    assert check.slope == pytest.approx(1.0, abs=1e-9)
    assert check.error < 1e-9
    assert check.error_transposed > 0.1
    assert check.n_steps == 29
    assert "slope 1.000" in require_consistent("md", trajectory())[0]


def test_a_drift_of_the_whole_crystal_does_not_enter():
    # Charges as published, off the sum rule, and a crystal that wanders.
    frames = changed(trajectory(), born_effective_charges=lambda z: z + 0.1)
    for k, frame in enumerate(frames):
        frame.atoms.positions += 0.3 * k
    check = check_charges(frames)
    assert check.slope == pytest.approx(1.0, abs=1e-9)
    assert check.error < 1e-9


def test_transposed_charges_are_found():
    wrong = changed(trajectory(), born_effective_charges=lambda z: z.transpose(0, 2, 1))
    with pytest.raises(ConventionError, match="displacement_polarization"):
        require_consistent("md", wrong)


@pytest.mark.parametrize("factor", [0.3, -1.0])
def test_polarization_of_another_size_or_sign_is_found(factor):
    # Without folding, so that the factor acts on the change itself.
    rng = np.random.default_rng(2)
    frames = []
    for frame in trajectory():
        u = 0.01 * rng.normal(size=(5, 3))
        atoms = frame.atoms.copy()
        atoms.positions = perovskite().positions + u
        exact = np.einsum("kij,kj->i", frame.labels["born_effective_charges"], u) / perovskite().volume
        frames.append(frame.with_(atoms=atoms, labels=frame.labels | {"polarization": factor * exact}))
    with pytest.raises(ConventionError, match="another unit"):
        require_consistent("md", frames)


def test_stresses_in_kbar_are_found():
    frames = [f.with_(labels=f.labels | {"stress": np.eye(3) * 20.0}) for f in trajectory()]
    with pytest.raises(ConventionError, match="vasp_kbar"):
        require_consistent("md", frames)


def test_too_few_frames_say_nothing():
    assert check_charges(trajectory(3)) is None
    assert require_consistent("md", trajectory(3)) == []


@pytest.mark.parametrize(
    ("label", "right", "wrong", "advice"),
    [
        ("stress", "GPa", "eV_per_angstrom3", "kbar.*GPa"),
        ("polarization", "uC_per_cm2", "e_per_angstrom2", "uC_per_cm2"),
        ("polarization", "dipole_e_angstrom", "e_per_angstrom2", "per cell"),
    ],
)
def test_labels_in_another_unit_than_declared_are_refused(tmp_path, label, right, wrong, advice):
    """10 GPa, 25 µC/cm² and 3 e·Å per cell are ordinary; the same numbers in eV/Å³ or e/Å² are not."""
    value = {"GPa": 10 * np.eye(3), "uC_per_cm2": np.array([0, 0, 25.0]), "dipole_e_angstrom": np.array([0, 3.0, 0])}[
        right
    ]
    crystals = [perovskite(), perovskite("Ba")]
    text = "".join(extxyz_text(crystal, {f"my_{label}": value}) for crystal in crystals)
    path = write(tmp_path / "a.extxyz", text)

    def build(convention: str):
        labels = {label: {"key": f"my_{label}", "convention": convention}}
        source = {"type": "extxyz", "path": str(path), "labels": labels}
        return build_dataset(DatasetConfig.from_dict({"name": "d", "sources": [source]}))

    assert len(build(right)) == 2
    with pytest.raises(ConventionError, match=advice):
        build(wrong)
