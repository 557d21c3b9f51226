"""The fast engine is the same function as the network: values, Hessians and parameter gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fieldflows.backends.mace_field.derivatives import hessian, respond
from fieldflows.backends.mace_field.engine.engine import FastEngine, fastest, uncovered
from fieldflows.backends.mace_field.engine.layout import neighbor_layout
from fieldflows.backends.mace_field.graphs import build_graph, collate
from fieldflows.backends.mace_field.network import NetworkConfig, build_network

ELEMENTS = [8, 12, 22]
OBSERVABLES = ("energy", "forces", "stress", "polarization", "born_effective_charges", "polarizability")
VARIANTS = {
    "L1": {"hidden_irreps": "4x0e + 4x1o"},
    "L2": {"hidden_irreps": "4x0e + 4x1o + 4x2e", "element_polarizability": True},
    "three layers, two heads": {
        "hidden_irreps": "4x0e + 4x1o",
        "num_interactions": 3,
        "heads": ["a", "b"],
        "atomic_energies": [[1.0, 2.0, 3.0], [-1.0, 0.5, 0.0]],
        "scale": [1.0, 2.5],
        "shift": [0.1, -0.3],
    },
    "no residual": {
        "hidden_irreps": "4x0e + 4x1o",
        "interaction_cls": "RealAgnosticInteractionBlock",
        "interaction_cls_first": "RealAgnosticInteractionBlock",
    },
    "correlation 2": {"hidden_irreps": "4x0e + 4x1o", "correlation": 2, "use_last_readout_only": True},
}


def make_network(**changes):
    values = {
        "atomic_numbers": ELEMENTS,
        "atomic_energies": [0.0, -1.0, 2.0],
        "r_max": 3.6,
        "avg_num_neighbors": 9.0,
        "max_ell": 2,
        "radial_MLP": [8],
        "num_bessel": 4,
    }
    network = build_network(NetworkConfig(**{**values, **changes}), seed=3)
    if network.config.element_polarizability:
        with torch.no_grad():
            network.element_polarizability.copy_(torch.tensor([0.3, 0.1, 0.7], dtype=torch.float64))
    return network


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda name: name.replace(" ", "-"))
def network(request):
    return make_network(**VARIANTS[request.param])


def random_crystal(seed: int) -> Atoms:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 5))
    cell = np.diag(rng.uniform(2.6, 4.2, 3)) + rng.uniform(-0.7, 0.7, (3, 3))
    positions = rng.uniform(-1.0, 2.0, (n, 3))  # also outside the cell
    return Atoms(numbers=rng.choice(ELEMENTS, n), cell=cell, scaled_positions=positions, pbc=True)


def graphs_of(network, *crystals: Atoms):
    last = len(network.config.heads) - 1
    return collate([build_graph(a, ELEMENTS, network.config.r_max, head=last) for a in crystals])


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative to the largest component, with a floor for tensors that vanish."""
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-6))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), strength=st.sampled_from([0.0, 0.05]))
def test_engine_equals_network_on_random_triclinic_batches(network, seed, strength):
    batch = graphs_of(network, random_crystal(seed), random_crystal(seed + 1), random_crystal(seed + 2))
    field = strength * torch.tensor(np.random.default_rng(seed).normal(size=(3, 3)), dtype=torch.float64)
    expected = respond(network, batch, OBSERVABLES, field)
    found = respond(FastEngine(network), batch, OBSERVABLES, field)
    for name in OBSERVABLES:
        assert largest_difference(expected[name], found[name]) < 1e-10, name


def test_hessian_equals_that_of_the_network(network):
    batch = graphs_of(network, random_crystal(11), random_crystal(12))
    for expected, found in zip(hessian(network, batch), hessian(FastEngine(network, order=2), batch), strict=True):
        assert largest_difference(expected, found) < 1e-10


def test_parameter_gradients_of_a_loss_on_everything_equal_those_of_the_network(network):
    batch = graphs_of(network, random_crystal(21), random_crystal(22))
    parameters = list(network.parameters())

    def gradients(model):
        results = respond(model, batch, OBSERVABLES, create_graph=True)
        loss = sum(value.square().mean() for value in results.values())
        return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)

    expected, found = gradients(network), gradients(FastEngine(network))
    assert max(float(g.abs().max()) for g in expected) > 0
    for a, b in zip(expected, found, strict=True):
        assert largest_difference(a, b) < 1e-9


def test_gradient_by_positions_past_the_order_is_not_a_number_rather_than_wrong():
    network = make_network(**VARIANTS["L1"])
    blocks = hessian(FastEngine(network, order=1), graphs_of(network, random_crystal(4)))
    assert torch.isnan(blocks[0]).any()


def test_isolated_atom_has_no_response_but_its_own_polarizability():
    network = make_network(**VARIANTS["L2"])
    atom = Atoms("O", cell=[20.0, 21.0, 22.0], pbc=True)
    results = respond(fastest(network), graphs_of(network, atom), OBSERVABLES)
    assert float(results["forces"].abs().max()) == 0
    assert float(results["born_effective_charges"].abs().max()) == 0
    expected = 0.3 * torch.eye(3, dtype=torch.float64) / (20.0 * 21.0 * 22.0)
    assert largest_difference(expected, results["polarizability"][0]) < 1e-8
    reference = respond(network, graphs_of(network, atom), OBSERVABLES)
    for name in OBSERVABLES:
        assert torch.allclose(reference[name], results[name], atol=1e-12), name


def test_every_edge_has_one_place_in_the_padded_layout():
    crystals = [random_crystal(s) for s in range(5)] + [Atoms("O", cell=[20.0] * 3, pbc=True)]
    batch = collate([build_graph(a, ELEMENTS, 3.6) for a in crystals])
    layout = neighbor_layout(batch)
    real = layout.distance < len(batch["distances"])
    sender, receiver = layout.order[layout.sender[real]], layout.order[layout.receiver[real]]
    found = sorted(map(tuple, torch.cat([torch.stack([sender, receiver], 1), layout.shifts[real]], 1).tolist()))
    edges = torch.cat([batch["edge_index"].T, batch["shifts"]], 1)
    assert found == sorted(map(tuple, edges.tolist()))
    assert sum(atoms for atoms, _ in layout.groups) == len(batch["positions"])


@pytest.mark.parametrize(
    "changes",
    [
        {"interaction_cls": "RealAgnosticDensityResidualInteractionBlock"},
        {"pair_repulsion": True},
        {"distance_transform": "Agnesi"},
        {"hidden_irreps": "4x0e + 2x1o"},
    ],
)
def test_what_is_not_covered_falls_back_with_a_reason(changes, caplog):
    config = NetworkConfig(**{"atomic_numbers": ELEMENTS, "atomic_energies": [0.0] * 3, **changes})
    assert uncovered(config)
    network = make_network(**{"hidden_irreps": "4x0e + 4x1o", **changes}) if "hidden_irreps" not in changes else None
    if network is not None:
        with caplog.at_level("INFO"):
            assert fastest(network) is network
        assert "does not cover" in caplog.text
