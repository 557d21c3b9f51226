"""At zero field the network is a plain MACE: against mace-torch's own class, built separately with the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fieldflows.backends.mace_field._mace import ScaleShiftMACE, module_construction
from fieldflows.backends.mace_field.derivatives import respond
from fieldflows.backends.mace_field.graphs import build_graph, collate
from fieldflows.backends.mace_field.network import build_network
from fieldflows.errors import BackboneError
from tests.backends.mace_field.models import FIELD, HIDDEN, cubic, small_config, small_network, triclinic

TWO_HEADS = {
    "heads": ["pbe", "r2scan"],
    "scale": [2.8, 1.7],
    "shift": [0.1, -0.3],
    "atomic_energies": [[-1.5, -0.25, 3.75], [0.5, 1.25, -2.0]],
}
NONLINEAR = {
    "interaction_cls_first": "RealAgnosticResidualNonLinearInteractionBlock",
    "interaction_cls": "RealAgnosticResidualNonLinearInteractionBlock",
}
CASES = {
    "residual": {},
    "L2": {"hidden_irreps": HIDDEN["L2"]},
    "first block without residual": {"interaction_cls_first": "RealAgnosticInteractionBlock"},
    "density": {
        "interaction_cls_first": "RealAgnosticDensityInteractionBlock",
        "interaction_cls": "RealAgnosticDensityResidualInteractionBlock",
    },
    "density residual": {
        "interaction_cls_first": "RealAgnosticDensityResidualInteractionBlock",
        "interaction_cls": "RealAgnosticDensityResidualInteractionBlock",
    },
    "two heads": TWO_HEADS,
    "ZBL": {"pair_repulsion": True},
    "Agnesi": {"distance_transform": "Agnesi"},
    "Soft": {"distance_transform": "Soft"},
    "Gaussian": {"radial_type": "gaussian"},
    "envelope on messages": {"apply_cutoff": False},
    "like the 2024 foundations": {
        "interaction_cls_first": "RealAgnosticDensityInteractionBlock",
        "interaction_cls": "RealAgnosticDensityResidualInteractionBlock",
        "pair_repulsion": True,
        "distance_transform": "Agnesi",
        **TWO_HEADS,
    },
    "non-linear block": NONLINEAR,
    "like the 2025 foundations": {
        **NONLINEAR,
        **TWO_HEADS,
        "readout_cls": "NonLinearBiasReadoutBlock",
        "apply_cutoff": False,
        "use_agnostic_product": True,
        "edge_irreps": "3x0e + 3x1o",
        "keep_last_layer_irreps": True,
    },
    "last readout only": {"use_last_readout_only": True},
    "unnatural parity": {"hidden_irreps": "3x0e + 3x0o + 3x1o + 3x1e", "max_ell": 2},
    "first order": {"correlation": 1},
    "three layers": {"num_interactions": 3, "correlation": [2, 1, 2]},
}


def network_of(case):
    return small_network(lively=False, **{"max_ell": 2, **CASES[case]})


def plain_twin(network):
    """A ScaleShiftMACE with the weights of a network, which knows nothing of fields."""
    with module_construction(torch.float64):
        twin = ScaleShiftMACE(**network.config.backbone_arguments())
    weights = {k: v for k, v in network.state_dict().items() if not k.startswith(("field_", "element_"))}
    twin.load_state_dict(weights, strict=True)
    return twin


def graphs(network, head):
    """A batch of two crystals, and the first of them alone; some atoms are close, for the repulsion."""
    squeezed = triclinic()
    squeezed.set_cell(0.75 * squeezed.cell[:], scale_atoms=True)
    config = network.config
    pair = [build_graph(a, config.atomic_numbers, config.r_max, head=head) for a in (squeezed, cubic())]
    return [collate(pair), collate(pair[:1])]


def heads(case):
    return range(len(CASES[case].get("heads", ["one"])))


@pytest.mark.parametrize("case", CASES)
def test_energies_forces_and_stresses_are_those_of_the_backbone(case):
    network = network_of(case)
    twin = plain_twin(network)
    energies = []
    for head in heads(case):
        for graph in graphs(network, head):
            expected = twin({k: v.clone() for k, v in graph.items()}, compute_stress=True)
            for fields in (None, torch.zeros(graph["ptr"].numel() - 1, 3, dtype=torch.float64)):
                names = ["energy", "forces", "stress"] + ([] if fields is None else ["polarization"])
                found = respond(network, graph, names, fields)
                for name in ("energy", "forces", "stress"):
                    scale = max(1.0, float(expected[name].detach().abs().max()))
                    torch.testing.assert_close(
                        found[name], expected[name].detach(), rtol=0, atol=1e-12 * scale, msg=lambda m, n=name: n + m
                    )
        energies.append(float(expected["energy"][0].detach()))
    assert len({round(e, 6) for e in energies}) == len(energies), "the heads must differ"


@pytest.mark.parametrize("case", CASES)
def test_every_backbone_responds_to_a_field(case):
    network = network_of(case)
    (batch, _) = graphs(network, 0)
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
    first, second = (respond(n, graphs(n, 0)[1], ["energy"])["energy"] for n in (plain, repulsive))
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
    graph = graphs(network, 0)[0]
    expected = plain_twin(network)({k: v.clone() for k, v in graph.items()})["energy"].detach()
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
