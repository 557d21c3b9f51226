"""At zero field the network is a plain MACE: against mace-torch's own class, built separately with the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fieldflows.backends.mace_field.derivatives import respond
from fieldflows.backends.mace_field.network import build_network
from fieldflows.errors import BackboneError
from tests.backends.mace_field.backbones import (
    cases,
    graphs_of,
    heads_of,
    network_of,
    plain_results,
    plain_twin,
)
from tests.backends.mace_field.models import FIELD, HIDDEN, small_config, small_network


@pytest.mark.parametrize("case", cases())
def test_energies_forces_and_stresses_are_those_of_the_backbone(case):
    network = network_of(case)
    twin = plain_twin(network)
    energies = []
    for head in heads_of(case):
        batch, single = graphs_of(network, head)
        zero = torch.zeros(1, 3, dtype=torch.float64)
        for graph, fields in ((batch, None), (single, zero)):
            expected = plain_results(twin, graph)
            names = ["energy", "forces", "stress"] + ([] if fields is None else ["polarization"])
            found = respond(network, graph, names, fields)
            for name in ("energy", "forces", "stress"):
                limit = 1e-12 * max(1.0, float(expected[name].abs().max()))
                assert float((found[name] - expected[name]).abs().max()) <= limit, (name, head)
        energies.append(float(expected["energy"][0]))
    assert len({round(e, 6) for e in energies}) == len(energies), "the heads must differ"


@pytest.mark.parametrize("case", cases())
def test_every_backbone_responds_to_a_field(case):
    network = network_of(case)
    (batch, _) = graphs_of(network, 0)
    field = torch.tensor(np.stack([FIELD, 0.5 * FIELD]))
    found = respond(network, batch, ["polarization", "born_effective_charges", "polarizability"], field)
    volume = torch.linalg.det(batch["cell"].view(-1, 3, 3)).abs()
    slopes = []
    for axis in torch.eye(3, dtype=torch.float64):
        step = 1e-3
        far, near = (
            respond(network, batch, ["energy"], field + k * step * axis)["energy"]
            - respond(network, batch, ["energy"], field - k * step * axis)["energy"]
            for k in (2, 1)
        )
        slopes.append(-(8 * near - far) / (12 * step) / volume)
    expected = torch.stack(slopes, dim=1)
    torch.testing.assert_close(found["polarization"], expected, rtol=0, atol=1e-10)
    assert found["born_effective_charges"].abs().max() > 1e-4
    size = found["born_effective_charges"].abs().max()
    assert found["born_effective_charges"][:3].sum(0).abs().max() < 1e-11 * size


def test_the_repulsion_takes_part():
    plain, repulsive = (network_of(case) for case in ("residual", "ZBL"))
    first, second = (respond(n, graphs_of(n, 0)[1], ["energy"])["energy"] for n in (plain, repulsive))
    assert float(second - first) > 1.0


@pytest.mark.parametrize("hidden", ["8x0e", "4x0e + 4x1e", "4x0e + 4x2e"])
def test_backbones_without_vectors_are_refused(hidden):
    with pytest.raises(BackboneError, match=r"without vector features \(1o\).*identically zero.*L >= 1"):
        build_network(small_config(hidden_irreps=hidden))


def test_backbones_with_one_layer_are_refused():
    with pytest.raises(BackboneError, match=r"1 interaction layer.*identically zero.*at least two"):
        build_network(small_config(num_interactions=1))


@pytest.mark.parametrize("changes", [{"hidden_irreps": "8x0e"}, {"num_interactions": 1}])
def test_what_is_refused_with_a_field_is_a_plain_mace_without(changes):
    network = small_network(field_coupling=False, **changes)
    graph = graphs_of(network, 0)[0]
    expected = plain_results(plain_twin(network), graph)["energy"]
    torch.testing.assert_close(respond(network, graph, ["energy"])["energy"], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interaction_cls": "RealAgnosticResidualInteraction"}, "Did you mean 'RealAgnosticResidualInteractionBlock'"),
        ({"readout_cls": "NonLinear"}, "unknown readout"),
        ({"gate": "relu"}, "unknown gate"),
        ({"atomic_energies": [1.0, 2.0]}, "2 atomic energies for 3 elements"),
        ({"atomic_numbers": [8, 8, 22]}, "twice"),
        ({"r_max": -1.0}, "greater than 0"),
        ({"cutoff": 5.0}, "Extra inputs"),
    ],
)
def test_wrong_configurations_are_explained(changes, message):
    with pytest.raises(ValidationError, match=message):
        small_config(**changes)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone():
    torch.manual_seed(11)
    first = build_network(small_config(), seed=5)
    drawn = torch.rand(3)
    torch.manual_seed(11)
    assert torch.equal(drawn, torch.rand(3))
    second = build_network(small_config(), seed=5)
    third = build_network(small_config(), seed=6)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.node_embedding.linear.weight, third.node_embedding.linear.weight)


def test_precision_of_the_default_is_restored():
    before = torch.get_default_dtype()
    assert build_network(small_config(), torch.float64, seed=0).dtype == torch.float64
    assert build_network(small_config(), torch.float32, seed=0).dtype == torch.float32
    assert torch.get_default_dtype() == before


def test_state_names_are_those_of_the_publication():
    network = small_network(hidden_irreps=HIDDEN["L2"], num_interactions=3)
    plain = set(plain_twin(network).state_dict())
    added = {name: tuple(value.shape) for name, value in network.state_dict().items() if name not in plain}
    weights = {name: shape for name, shape in added.items() if name.endswith(".weight")}
    # paths 0e-1o, 1o-0e, 1o-2e, 2e-1o of 4 x 4 channels; three degrees of 4 x 4 in the linear map
    assert weights == {
        **{f"field_feats.{t}.weight": (64,) for t in range(2)},
        **{f"field_linear.{t}.weight": (48,) for t in range(2)},
    }
    assert set(dict(network.named_parameters())) - set(dict(plain_twin(network).named_parameters())) == set(weights)
