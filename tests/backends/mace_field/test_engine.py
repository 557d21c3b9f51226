"""The fast engine is the same function as the network: values, Hessians and parameter gradients."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matscipy.neighbours import neighbour_list

from fieldflows.backends.mace_field._mace import o3
from fieldflows.backends.mace_field.derivatives import hessian, respond
from fieldflows.backends.mace_field.engine.engine import FastEngine, fastest, uncovered
from fieldflows.backends.mace_field.engine.harmonics import Harmonics
from fieldflows.backends.mace_field.engine.layout import distinct_rows, neighbor_layout
from fieldflows.backends.mace_field.engine.neighbors import BLOCK
from fieldflows.backends.mace_field.engine.radial import Table
from fieldflows.backends.mace_field.graphs import build_graph, collate
from fieldflows.backends.mace_field.network import NetworkConfig, build_network
from fieldflows.errors import EvaluationError
from tests.backends.mace_field.backbones import CASES, FAMILIES

ELEMENTS = [8, 12, 22]
OBSERVABLES = ("energy", "forces", "stress", "polarization", "born_effective_charges", "polarizability")
ELECTRIC = OBSERVABLES[3:]
PLAIN = {"field_coupling": False}
VARIANTS = {
    **CASES,
    "scalars only": {"hidden_irreps": "4x0e", **PLAIN},
    "one layer": {"num_interactions": 1, **PLAIN},
    "pseudovectors": {"hidden_irreps": "4x0e + 4x1e", "use_so3": True, **PLAIN},
    "three layers, two heads": {**CASES["two heads"], "num_interactions": 3, "correlation": [2, 1, 2]},
    "polarizable elements": {"element_polarizability": True, "max_ell": 3, "correlation": 3},
    "no residual": {
        "interaction_cls": "RealAgnosticInteractionBlock",
        "interaction_cls_first": "RealAgnosticInteractionBlock",
    },
    "density without residual": {
        "interaction_cls": "RealAgnosticDensityInteractionBlock",
        "interaction_cls_first": "RealAgnosticDensityInteractionBlock",
        "apply_cutoff": False,
    },
    "unequal features on edges": {"edge_irreps": "3x0e + 2x1o + 2x2e", "use_edge_irreps_first": True},
    "non-linear block with a transform": {
        **CASES["non-linear block"],
        "distance_transform": "Soft",
        "hidden_irreps": CASES["L2"]["hidden_irreps"],
    },
}
DEFAULT = {*FAMILIES, "L2", "scalars only", "polarizable elements", "unequal features on edges"} - {"two heads"}
"""Variants of the default suite; the others run with ``-m slow``."""

GAINS = {"symmetric_contractions": 6.0, "field_linear": 8.0, "_embedding.weight": 300.0, ".linear.weight": 2.5}
"""Random weights are enlarged so that responses have the size of those of a real crystal; else they drown.

Blocks that divide by a density keep theirs: their messages are larger by the number of neighbors."""


@cache
def make_network(name: str):
    """The network of a variant, its weights enlarged and its biases away from zero."""
    values = {
        "atomic_numbers": ELEMENTS,
        "atomic_energies": [0.0, -1.0, 2.0],
        "r_max": 3.6,
        "avg_num_neighbors": 9.0,
        "max_ell": 2,
        "radial_MLP": [8],
        "num_bessel": 4,
        "correlation": 2,
        "hidden_irreps": "4x0e + 4x1o",
    }
    network = build_network(NetworkConfig(**{**values, **VARIANTS[name]}), seed=3)
    generator = torch.Generator().manual_seed(5)
    special = {"alpha": 3.0, "beta": 0.7}
    block = network.interactions[-1]
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            last = key.rsplit(".", 1)[-1]
            if last in special:
                parameter.fill_(special[last])
            elif last == "bias":
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
            elif key == "element_polarizability":
                parameter.copy_(torch.tensor([0.3, 0.1, 0.7], dtype=parameter.dtype))
            elif not key.startswith(("node", "readouts", "products.0.linear")):
                for part, gain in GAINS.items():
                    wanted = part in key and not (part == "symmetric_contractions" and hasattr(block, "density_fn"))
                    parameter.mul_(gain if wanted else 1.0)
    return network.eval()


@pytest.fixture(
    scope="module",
    params=[name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS],
)
def network(request):
    return make_network(request.param)


def random_crystal(seed: int, skewed: bool = False, atoms: int | None = None) -> Atoms:
    """A triclinic crystal of one to four atoms, some of them outside the cell, none closer than 1 Å."""
    rng = np.random.default_rng(seed)
    while True:
        n = int(rng.integers(1, 5)) if atoms is None else atoms
        cell = np.diag(rng.uniform(2.6, 4.2, 3)) + rng.uniform(-0.7, 0.7, (3, 3))
        crystal = Atoms(numbers=rng.choice(ELEMENTS, n), cell=cell, pbc=True)
        crystal.set_scaled_positions(rng.uniform(-1.0, 2.0, (n, 3)))
        if not len(neighbour_list("i", crystal, 1.0)):
            break
    if skewed:  # the same lattice by other vectors
        crystal.set_cell(np.array([[1, 0, 0], [3, 1, 0], [-2, 4, 1]]) @ crystal.cell[:])
    return crystal


def random_batch(network, seed: int):
    """Four different crystals: any, a very skewed cell, a single atom, and an atom without neighbors."""
    isolated = Atoms("O", cell=[20.0, 21.0, 22.0], pbc=True)
    crystals = [
        random_crystal(seed),
        random_crystal(seed + 1, skewed=True),
        random_crystal(seed + 2, atoms=1),
        isolated,
    ]
    last = len(network.config.heads) - 1
    return collate(
        [build_graph(a, ELEMENTS, network.config.r_max, head=last if i else 0) for i, a in enumerate(crystals)]
    )


def random_field(seed: int, strength: float) -> torch.Tensor:
    return strength * torch.tensor(np.random.default_rng(seed).normal(size=(4, 3)))


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative to the largest component, with a floor for tensors that vanish."""
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-2))


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), strength=st.sampled_from([0.0, 0.05]))
def test_engine_equals_network_on_random_triclinic_batches(network, seed, strength):
    batch = random_batch(network, seed)
    field = random_field(seed, strength)
    expected = respond(network, batch, OBSERVABLES, field)
    found = respond(FastEngine(network), batch, OBSERVABLES, field)
    for name in OBSERVABLES:
        assert largest_difference(expected[name], found[name]) < 1e-10, name


def test_what_is_compared_is_not_tiny(network):
    """Else agreement would say nothing; a plain MACE has no response to a field."""
    results = respond(FastEngine(network), random_batch(network, 1), OBSERVABLES, random_field(1, 0.05))
    for name in OBSERVABLES:
        size = float(results[name].abs().max())
        if name in ELECTRIC and not network.config.field_coupling:
            assert size == 0, name
        else:
            assert size > 1e-3, (name, size)


def test_hessian_equals_that_of_the_network(network):
    batch, field = random_batch(network, 11), random_field(11, 0.05)
    engine = FastEngine(network, order=2)
    for expected, found in zip(hessian(network, batch, field), hessian(engine, batch, field), strict=True):
        assert largest_difference(expected, found) < 1e-8


def test_parameter_gradients_of_a_loss_on_everything_equal_those_of_the_network(network):
    batch, field = random_batch(network, 21), random_field(21, 0.05)
    names, parameters = zip(*[(k, p) for k, p in network.named_parameters() if p.requires_grad], strict=True)

    def gradients(model):
        results = respond(model, batch, OBSERVABLES, field, create_graph=True)
        parts = [v.square().mean() / v.detach().square().mean().clamp_min(1e-12) for v in results.values()]
        return torch.autograd.grad(sum(parts), parameters, allow_unused=True, materialize_grads=True)

    expected, found = gradients(network), gradients(FastEngine(network))
    assert sum(float(g.abs().max()) > 1e-3 for g in expected if g.numel()) > 0.7 * len(expected)
    for name, a, b in zip(names, expected, found, strict=True):
        if a.numel():
            assert largest_difference(a, b) < 1e-9, name


@pytest.mark.parametrize("evaluator", [FastEngine, lambda network, order: network], ids=["engine", "network"])
def test_geometry_is_double_whatever_the_precision_of_the_network(evaluator):
    """A crystal 1000 Å away from the origin loses no digits; single precision would leave 1e-4 of each position."""
    exact = make_network("polarizable elements")
    single = build_network(exact.config, torch.float32, seed=0)
    single.load_state_dict(exact.state_dict())
    rounded = build_network(exact.config, torch.float64, seed=0)
    rounded.load_state_dict(dict(single.named_parameters()), strict=False)
    crystal = random_crystal(3, atoms=3)
    crystal.positions += 1000.0
    graph = build_graph(crystal, ELEMENTS, exact.config.r_max, torch.float32)
    assert {graph[key].dtype for key in ("positions", "shifts", "cell", "distances")} == {torch.float64}
    assert graph["node_attrs"].dtype == torch.float32
    field = 0.05 * torch.tensor([[0.3, -0.5, 0.8]], dtype=torch.float64)
    found = respond(evaluator(single, order=2), graph, OBSERVABLES, field)
    found["hessian"] = hessian(evaluator(single, order=2), graph, field)[0]
    graph = build_graph(crystal, ELEMENTS, exact.config.r_max)
    expected = respond(rounded, graph, OBSERVABLES, field)
    expected["hessian"] = hessian(rounded, graph, field)[0]
    for name, value in expected.items():
        assert found[name].dtype == torch.float64
        assert 0 < largest_difference(value, found[name]) < 1e-5, name


def test_gradient_by_positions_past_the_order_is_not_a_number_rather_than_wrong():
    network = make_network("residual")
    blocks = hessian(FastEngine(network, order=1), random_batch(network, 4))
    assert torch.isnan(blocks[0]).any()


def fresh_network():
    network = build_network(make_network("residual").config, seed=0)
    network.load_state_dict(make_network("residual").state_dict())
    return network


@pytest.mark.parametrize("change", ["in place", "state", "precision", "assigned"])
def test_fixed_weights_are_remembered_until_they_change(change):
    """The memory must notice whatever torch can do to a parameter."""
    network, batch = fresh_network().requires_grad_(False), random_batch(make_network("residual"), 5)
    engine = FastEngine(network)
    before = respond(engine, batch, OBSERVABLES)
    remembered = engine.weights.linear(network.interactions[1].linear)
    assert engine.weights.linear(network.interactions[1].linear) is remembered
    # the tables of the contraction are state as well
    state = {k: v * 1.01 if k.endswith("weight") or "U_matrix" in k else v for k, v in network.state_dict().items()}
    with torch.no_grad():
        if change == "in place":
            for parameter in network.parameters():
                parameter.mul_(1.01)
        elif change == "state":
            network.load_state_dict(state)
        elif change == "precision":
            network.to(torch.float32).to(torch.float64)
        else:
            for parameter in network.parameters():
                parameter.data = 1.01 * parameter.data
    expected, found = respond(network, batch, OBSERVABLES), respond(engine, batch, OBSERVABLES)
    for name in OBSERVABLES:
        assert largest_difference(before[name], found[name]) > 1e-9, name
        # a network that was rounded holds its constants rounded as well; those of the engine are exact
        assert largest_difference(expected[name], found[name]) < (1e-6 if change == "precision" else 1e-10), name


def test_remembered_weights_are_those_of_the_elements_at_hand():
    network = fresh_network().requires_grad_(False)
    engine = FastEngine(network)
    for seed in (1, 2, 3, 1):
        graph = build_graph(random_crystal(seed), ELEMENTS, network.config.r_max)
        expected, found = respond(network, graph, ("energy",)), respond(engine, graph, ("energy",))
        assert largest_difference(expected["energy"], found["energy"]) < 1e-12


def test_weights_that_are_trained_are_not_remembered():
    network = fresh_network()
    engine = FastEngine(network)
    linear = network.interactions[1].linear
    assert engine.weights.linear(linear) is not engine.weights.linear(linear)
    assert all(matrix.requires_grad for matrix in engine.weights.linear(linear).values())


def test_no_gradient_is_computed_that_nobody_asked_for():
    """A loss differentiated by the weights must not differentiate the radial functions by positions once more."""
    network, batch = fresh_network(), random_batch(make_network("residual"), 7)
    engine = FastEngine(network, order=1)
    results = respond(engine, batch, OBSERVABLES, create_graph=True)
    loss = sum(value.square().sum() for value in results.values())
    orders = []
    original = Table.derivative
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Table, "derivative", lambda table, k: orders.append(k) or original(table, k))
        loss.backward(inputs=list(network.parameters()))
    assert max(orders) == 1
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in network.parameters())


def test_second_derivatives_by_parameters_are_refused():
    network, batch = fresh_network(), random_batch(make_network("residual"), 7)
    energy = respond(FastEngine(network), batch, ("energy",), create_graph=True)["energy"]
    with pytest.raises(EvaluationError, match="second derivatives by parameters"):
        torch.autograd.grad(energy.sum(), list(network.parameters()), create_graph=True, allow_unused=True)


def test_blocks_of_atoms_do_not_change_results(monkeypatch):
    """Sums over neighbors go through a few atoms at a time; here one at a time."""
    network, batch = make_network("L2"), random_batch(make_network("L2"), 8)
    expected = hessian(FastEngine(network, order=2), batch)
    monkeypatch.setitem(BLOCK, "cpu", 1)
    found = hessian(FastEngine(network, order=2), batch)
    for a, b in zip(expected, found, strict=True):
        assert largest_difference(a, b) < 1e-12


def test_isolated_atom_has_no_response_but_its_own_polarizability():
    network = make_network("polarizable elements")
    graph = build_graph(Atoms("O", cell=[20.0, 21.0, 22.0], pbc=True), ELEMENTS, network.config.r_max)
    results = respond(fastest(network), graph, OBSERVABLES)
    assert float(results["forces"].abs().max()) == 0
    assert float(results["born_effective_charges"].abs().max()) == 0
    expected = 0.3 * torch.eye(3, dtype=torch.float64) / (20.0 * 21.0 * 22.0)
    assert largest_difference(expected, results["polarizability"][0]) < 1e-8
    reference = respond(network, graph, OBSERVABLES)
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


@pytest.mark.parametrize("by_receiver", [True, False])
def test_rows_of_pairs_name_distance_and_elements_of_every_edge(by_receiver):
    crystals = [random_crystal(s) for s in range(4)] + [Atoms("O", cell=[20.0] * 3, pbc=True)]
    batch = collate([build_graph(a, ELEMENTS, 3.6) for a in crystals])
    layout = neighbor_layout(batch)
    rows = distinct_rows(layout, len(batch["distances"]), by_receiver)
    real = layout.distance < len(batch["distances"])
    assert (~real).any()
    assert (rows.index[~real] == len(rows.distance)).all()
    at = rows.index[real]
    assert torch.equal(rows.distance[at], layout.distance[real])
    assert torch.equal(rows.sender[at], layout.species[layout.sender[real]])
    receivers = layout.species[layout.receiver[real]]
    assert torch.equal(rows.receiver[at], receivers if by_receiver else 0 * receivers)
    assert sorted(set(at.tolist())) == list(range(len(rows.distance)))


@pytest.mark.parametrize("degree", range(5))
def test_harmonics_are_those_of_the_library(degree):
    vectors = torch.tensor(np.random.default_rng(degree).normal(size=(50, 3)))
    unit = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    expected = o3.spherical_harmonics(list(range(degree + 1)), vectors, True, "component")
    torch.testing.assert_close(Harmonics(degree, unit.device)(unit.T).T, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"interaction_cls": "RealAgnosticAttResidualInteractionBlock"}, "RealAgnosticAttResidualInteractionBlock"),
        ({"radial_type": "chebyshev"}, "radial basis chebyshev"),
        ({"hidden_irreps": "4x0e + 2x1o"}, "hidden irreps"),
        ({"hidden_irreps": "4x0e + 4x0o + 4x1o", **CASES["non-linear block"]}, "pseudoscalars"),
        ({"readout_cls": "LinearReadoutBlock"}, "readout LinearReadoutBlock"),
        ({"edge_irreps": "2x0e + 1x0e"}, "edge irreps"),
        ({"distance_transform": "Power"}, "distance transform Power"),
    ],
)
def test_what_is_not_covered_is_named(changes, reason):
    assert reason in uncovered(NetworkConfig(atomic_numbers=ELEMENTS, atomic_energies=[0.0] * 3, **changes))


def test_what_is_not_covered_falls_back_with_one_logged_reason(caplog):
    config = {"atomic_numbers": ELEMENTS, "atomic_energies": [0.0] * 3, "hidden_irreps": "2x0e + 2x1o", "max_ell": 1}
    changes = {"interaction_cls": "RealAgnosticAttResidualInteractionBlock", "radial_type": "chebyshev"}
    network = build_network(NetworkConfig(**config, **changes, correlation=1), seed=0)
    with caplog.at_level("INFO"):
        assert fastest(network) is network
    assert [record.message.count("does not cover") for record in caplog.records] == [1]
