"""The Gaussian process over composition and volume inside the enthalpy: an independent sum, and the identities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from fieldflows.backends.mace_field.checkpoint import CheckpointMetadata, load_checkpoint, save_checkpoint
from fieldflows.backends.mace_field.composition import CompositionPolarizability
from fieldflows.backends.mace_field.model import MACEFieldModel
from fieldflows.backends.mace_field.network import MACEFieldNetwork, NetworkConfig, build_network
from fieldflows.units import EPSILON_VACUUM

EVERYTHING = ("energy", "forces", "stress", "polarization", "born_effective_charges", "polarizability")


def network(dtype: torch.dtype = torch.float64, points: int = 3) -> MACEFieldNetwork:
    config = NetworkConfig(
        atomic_numbers=[8, 12],
        atomic_energies=[0.0, 0.0],
        hidden_irreps="4x0e + 4x1o",
        r_max=4.0,
        composition_polarizability=points,
    )
    made = build_network(config, dtype=dtype, seed=0)
    module = made.composition_polarizability
    generator = torch.Generator().manual_seed(0)
    module.properties.copy_(torch.rand(module.properties.shape, generator=generator))
    module.fractions.copy_(torch.tensor([[0.5, 0.5], [0.2, 0.8], [1.0, 0.0]]))
    module.volumes.copy_(torch.tensor([9.0, 10.0, 11.0]))
    module.weights.copy_(torch.tensor([0.3, -0.2, 0.5]))
    module.center.copy_(torch.rand(module.center.shape, generator=generator))
    module.center[0] = 10.0
    module.spread[0] = 2.0
    module.lengths.copy_(torch.tensor([1.5, 4.0, 0.8]))
    module.mean.fill_(0.7)
    return made


def crystal() -> Atoms:
    atoms = bulk("MgO", "rocksalt", a=4.2, cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.set_cell(atoms.cell[:] @ np.array([[1, 0.05, 0.02], [0, 1.03, 0], [0, 0, 0.96]]), scale_atoms=True)
    return atoms


def model(**switches: object) -> MACEFieldModel:
    return MACEFieldModel(network(), CheckpointMetadata(name="x", network=network().config), **switches)  # type: ignore[arg-type]


def by_hand(module: CompositionPolarizability, fractions: np.ndarray, volume: float) -> float:
    """χ₀ from loops over reference compositions and atoms."""
    table = module.properties.numpy()

    def features(share: np.ndarray) -> np.ndarray:
        atoms = np.repeat(table, np.round(share * 1000).astype(int), axis=0)
        values = [atoms.mean(0), atoms.std(0), atoms.min(0), atoms.max(0)]
        return (np.concatenate(values) - module.center.numpy()[1:]) / module.spread.numpy()[1:]

    total = float(module.mean)
    for share, known, weight in zip(
        module.fractions.numpy(), module.volumes.numpy(), module.weights.numpy(), strict=True
    ):
        dv = (volume - known) / module.spread.numpy()[0] / module.lengths.numpy()[0]
        dp = np.linalg.norm(features(fractions) - features(share)) / module.lengths.numpy()[1]
        dc = np.linalg.norm(fractions - share) / module.lengths.numpy()[2]
        r = np.sqrt(3 * (dv**2 + dp**2 + dc**2))
        total += weight * (1 + r) * np.exp(-r)
    return float(np.exp(total))


def test_the_susceptibility_is_the_written_sum() -> None:
    module = network().composition_polarizability
    shares = np.array([[0.5, 0.5], [0.375, 0.625], [0.0, 1.0]])
    volumes = np.array([9.3, 12.0, 10.0])
    found = module(torch.as_tensor(shares), torch.as_tensor(volumes)).numpy()
    expected = [by_hand(module, share, volume) for share, volume in zip(shares, volumes, strict=True)]
    assert found == pytest.approx(expected, rel=1e-6)
    assert np.ptp(found) > 0.1


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_it_adds_its_isotropic_tensor_and_nothing_else_at_zero_field(engine: str) -> None:
    with_it, atoms = model(engine=engine), crystal()
    silent = network()
    silent.composition_polarizability.mean.fill_(-200.0)  # χ₀ = 0
    without = MACEFieldModel(silent, with_it.metadata, engine=engine)  # type: ignore[arg-type]
    found, plain = (m.evaluate(atoms, observables=EVERYTHING) for m in (with_it, without))
    chi = by_hand(with_it.network.composition_polarizability, np.array([0.5, 0.5]), atoms.get_volume() / len(atoms))
    assert found.polarizability - plain.polarizability == pytest.approx(chi * EPSILON_VACUUM * np.eye(3), rel=1e-6)
    for name in ("energy", "forces", "stress", "polarization", "born_effective_charges"):
        assert np.asarray(found.get(name)) == pytest.approx(np.asarray(plain.get(name)), abs=1e-12)


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_under_a_field_all_is_one_derivative_of_the_enthalpy(engine: str) -> None:
    m, atoms, field = model(engine=engine), crystal(), np.array([0.02, -0.01, 0.03])
    response = m.evaluate(atoms, fields=field, observables=EVERYTHING)
    step, volume = 1e-4, atoms.get_volume()

    def energy(strain: np.ndarray, applied: np.ndarray) -> float:
        moved = atoms.copy()
        moved.set_cell(atoms.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
        return m.evaluate(moved, fields=applied, observables=("energy",)).energy

    for i in range(3):
        change = np.zeros((3, 3))
        change[i, i] = step
        slope = (energy(change, field) - energy(-change, field)) / (2 * step * volume)
        assert response.stress[i, i] == pytest.approx(slope, abs=1e-7)
        shift = step * np.eye(3)[i]
        slope = -(energy(0 * change, field + shift) - energy(0 * change, field - shift)) / (2 * step * volume)
        assert response.polarization[i] == pytest.approx(slope, abs=1e-8)


def test_it_is_intensive_and_batches_change_nothing() -> None:
    m, atoms = model(), crystal()
    alone = m.evaluate(atoms).polarizability
    double, again = m.evaluate([atoms.repeat((1, 2, 1)), atoms])
    assert double.polarizability == pytest.approx(alone, abs=1e-12)
    assert again.polarizability == pytest.approx(alone, abs=1e-13)


def test_references_follow_the_buffers() -> None:
    module = network().composition_polarizability
    share, volume = torch.tensor([[0.5, 0.5]], dtype=torch.float64), torch.tensor([9.0], dtype=torch.float64)
    before = float(module(share, volume))
    module.properties.mul_(3.0)
    after = float(module(share, volume))
    assert after != pytest.approx(before, rel=1e-3)
    assert after == pytest.approx(by_hand(module, share.numpy()[0], 9.0), rel=1e-6)


def test_it_travels_with_the_checkpoint(tmp_path) -> None:  # type: ignore[no-untyped-def]
    single = network(torch.float32)
    save_checkpoint(tmp_path / "x.safetensors", single, CheckpointMetadata(name="x", network=single.config))
    loaded, _, _ = load_checkpoint(tmp_path / "x.safetensors", torch.float64)
    share, volume = torch.tensor([[0.4, 0.6]], dtype=torch.float64), torch.tensor([9.5], dtype=torch.float64)
    expected = single.composition_polarizability(share, volume)
    assert float(loaded.composition_polarizability(share, volume)) == pytest.approx(float(expected), rel=1e-14)


def test_a_network_without_it_keeps_its_document() -> None:
    """The hashes of older files cover the architecture as they wrote it."""
    plain = NetworkConfig(atomic_numbers=[8, 12], atomic_energies=[0.0, 0.0])
    assert "composition_polarizability" not in plain.model_dump()
    assert network().config.model_dump()["composition_polarizability"] == 3
