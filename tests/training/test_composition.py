"""The fit of the composition baseline: what it leaves out, what it finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.data import atomic_numbers as NUMBERS

from fieldflows.backends.mace_field.network import NetworkConfig, build_network
from fieldflows.datasets.frame import LabeledFrame
from fieldflows.errors import SettingsError
from fieldflows.training import composition
from fieldflows.training.data import make_batch, make_frames
from fieldflows.units import EPSILON_VACUUM

CATIONS, ANIONS = ("Li", "Na", "K", "Rb", "Be", "Mg", "Ca", "Sr"), ("F", "Cl", "Br", "I", "O", "S", "Se")
ELEMENTS = sorted(NUMBERS[symbol] for symbol in CATIONS + ANIONS)


def frames(noise: float = 0.0) -> list[LabeledFrame]:
    """Binary crystals whose polarizability is a smooth function of electronegativity and volume."""
    rng = np.random.default_rng(0)
    made = []
    for i, cation in enumerate(CATIONS):
        for k, anion in enumerate(ANIONS):
            volume = 8.0 + 1.5 * i + 2.0 * k + rng.uniform(0, 1)
            chi = np.exp(0.3 * k - 0.05 * volume + 1.0 + noise * rng.normal())
            atoms = Atoms(cation + anion, cell=(2 * volume) ** (1 / 3) * np.eye(3), pbc=True)
            labels = {"polarizability": chi * EPSILON_VACUUM * np.eye(3)}
            made.append(LabeledFrame(atoms, labels, cation + anion, "made", len(made)))
    return made


def predicted(fit: composition.CompositionFit, data: list[LabeledFrame]) -> np.ndarray:
    counts = np.array([[np.count_nonzero(f.atoms.numbers == z) for z in ELEMENTS] for f in data], float)
    volumes = np.array([f.atoms.get_volume() for f in data]) / 2
    return fit.module(torch.as_tensor(counts / 2), torch.as_tensor(volumes)).numpy()


def truth(data: list[LabeledFrame]) -> np.ndarray:
    return np.array([f.labels["polarizability"][0, 0] for f in data]) / EPSILON_VACUUM


def test_it_learns_what_composition_and_volume_decide() -> None:
    data = frames()
    seen, unseen = [f for i, f in enumerate(data) if i % 4], data[::4]
    fit = composition.fit_composition_polarizability(seen, ELEMENTS)
    errors = np.abs(predicted(fit, unseen) - truth(unseen))
    assert errors.mean() < 0.2 * np.abs(truth(unseen) - np.median(truth(seen))).mean()


def test_leaving_a_formula_out_is_a_fit_without_it() -> None:
    """The closed form against fits that really lack the formula, with the same kernel."""
    data = frames(noise=0.2)
    data.append(data[3].with_(source_index=99))
    target = np.log(truth(data))
    names = [f.material for f in data]
    module = composition._standardized_module(
        ELEMENTS,
        np.array([[np.count_nonzero(f.atoms.numbers == z) / 2 for z in ELEMENTS] for f in data]),
        np.array([f.atoms.get_volume() / 2 for f in data]),
    )
    kernel = composition._kernel(composition._distance_parts(module), np.array([2.0, 9.0, 1.0]))
    matrix, mean = kernel + 0.04 * np.eye(len(data)), target.mean()
    inverse = np.linalg.inv(matrix)
    found = composition._left_out(inverse, inverse @ (target - mean), target, names)
    for name in (names[3], names[10]):
        out = np.array([other == name for other in names])
        weights = np.linalg.solve(matrix[np.ix_(~out, ~out)], target[~out] - mean)
        assert found[out] == pytest.approx(kernel[np.ix_(out, ~out)] @ weights + mean, rel=1e-8)


def test_few_formulas_are_refused() -> None:
    with pytest.raises(SettingsError, match="at least 30 different formulas, the training frames have 7"):
        composition.fit_composition_polarizability(frames()[:7], ELEMENTS)


def test_properties_of_elements_are_finite_and_tell_elements_apart() -> None:
    table = composition.element_properties(range(1, 95))
    assert table.shape == (94, 16)
    assert np.isfinite(table).all()
    assert len(np.unique(table, axis=0)) == 94


def test_the_loss_takes_the_isotropic_part_from_the_process_and_errors_that_of_the_labels() -> None:
    data = frames()
    anisotropic = np.diag([1.0, -0.25, -0.75]) * EPSILON_VACUUM
    data = [f.with_(labels={"polarizability": f.labels["polarizability"] + anisotropic}) for f in data]
    fit = composition.fit_composition_polarizability(data, ELEMENTS)
    config = NetworkConfig(
        atomic_numbers=ELEMENTS,
        atomic_energies=[0.0] * len(ELEMENTS),
        hidden_irreps="4x0e + 4x1o",
        r_max=4.0,
        composition_polarizability=fit.n_frames,
    )
    network = build_network(config, seed=0)
    network.composition_polarizability.load_state_dict(fit.module.state_dict())
    made = make_frames(data[:3], ["polarizability"], ELEMENTS, 4.0, torch.float64)
    found = composition.isotropic_part_of_composition(made, network)
    targets = make_batch(found, ["polarizability"]).targets["polarizability"].numpy()
    expected = predicted(fit, data[:3])[:, None, None] * EPSILON_VACUUM * np.eye(3) + anisotropic
    assert targets == pytest.approx(expected, rel=1e-10)
    for frame, original in zip(found, data, strict=False):
        assert (frame.labels["polarizability"] == original.labels["polarizability"]).all()
    plain = build_network(config.model_copy(update={"composition_polarizability": 0}), seed=0)
    with pytest.raises(SettingsError, match="network has no composition_polarizability"):
        composition.isotropic_part_of_composition(made, plain)
