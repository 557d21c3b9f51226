"""Field blocks on top of plain MACE models: modules, files and downloads."""

from __future__ import annotations

import http.server
import threading

import numpy as np
import pytest
import torch

from fieldflows.backends.mace_field._mace import contained_imports
from fieldflows.backends.mace_field.checkpoint import checkpoint_bytes, load_checkpoint, save_checkpoint
from fieldflows.backends.mace_field.derivatives import respond
from fieldflows.backends.mace_field.engine.engine import FastEngine
from fieldflows.backends.mace_field.foundation import (
    describe,
    foundation_names,
    from_plain_mace,
    load_backbone,
    network_config,
    with_field,
)
from fieldflows.backends.mace_field.model import MACEFieldModel
from fieldflows.backends.mace_field.pickles import import_pickle
from fieldflows.errors import BackboneError, CapabilityError, CheckpointError, UntrustedPickleError
from tests.backends.mace_field.backbones import CASES, TWO_HEADS, cases, graphs_of, heads_of, network_of, plain_results
from tests.backends.mace_field.backbones import plain_twin as twin_of
from tests.backends.mace_field.models import small_network

UNREADABLE = ("Gaussian",)
"""Cases that mace's own reader of architectures does not know."""

OLD_ATTRIBUTES = (
    "heads",
    "lammps_mliap",
    "apply_cutoff",
    "edge_irreps",
    "use_reduced_cg",
    "use_agnostic_product",
    "use_so3",
    "use_last_readout_only",
    "use_edge_irreps_first",
)


def aged(twin):
    """A module as a release of 2023 or 2024 would have pickled it: fewer attributes, unread state."""
    with contained_imports():
        from mace.modules.radial import PolynomialCutoff

    for module in twin.modules():
        for name in [key for key in module._buffers if key.endswith("_zeroed")]:
            del module._buffers[name]
        for name in ("cueq_config", "oeq_config", "use_agnostic_product"):
            module.__dict__.pop(name, None)
    for name in OLD_ATTRIBUTES:
        twin.__dict__.pop(name, None)
    twin.radial_embedding.__dict__.pop("apply_cutoff", None)
    twin.readouts[-1].__dict__.pop("num_heads", None)
    twin.atomic_energies_fn.atomic_energies = twin.atomic_energies_fn.atomic_energies.reshape(-1)
    if hasattr(twin, "pair_repulsion_fn"):
        twin.pair_repulsion_fn.cutoff = PolynomialCutoff(3.4, 5)
        twin.pair_repulsion_fn.register_buffer("r_max", torch.tensor(3.4))
        twin.pair_repulsion_fn.p = torch.tensor(5.0)
    return twin


def reduced(twin):
    """The same function in a smaller basis of each contraction, as mace builds it next to cuequivariance."""
    for product in twin.products:
        for contraction in product.symmetric_contractions.contractions:
            for order in range(2, contraction.correlation + 1):
                table = contraction.U_tensors(order)
                first = table.dim() - 1 - order
                symmetric = sum(
                    table.permute(*range(first), *(first + i for i in order_of), table.dim() - 1)
                    for order_of in _permutations(order)
                )
                flat = symmetric.reshape(-1, symmetric.shape[-1]) / len(_permutations(order))
                left, sizes, right = torch.linalg.svd(flat, full_matrices=False)
                rank = int((sizes > 1e-10 * sizes[0]).sum())
                assert rank < table.shape[-1] or order < 3
                basis = (left[:, :rank]).reshape(*table.shape[:-1], rank)
                change = sizes[:rank, None] * right[:rank]
                top = order == contraction.correlation
                weight = contraction.weights_max if top else contraction.weights[contraction.correlation - 1 - order]
                new = torch.nn.Parameter(torch.einsum("qp,zpc->zqc", change, weight.detach()))
                contraction.register_buffer(f"U_matrix_{order}", basis)
                if top:
                    contraction.weights_max = new
                else:
                    contraction.weights[contraction.correlation - 1 - order] = new
    return twin


def _permutations(order):
    from itertools import permutations

    return list(permutations(range(order)))


def assert_unchanged(network, twin, heads=(0,), tolerance=1e-12):
    """Energies, forces and stresses of a network at zero field are those of the backbone."""
    for head in heads:
        for graph, with_zero in zip(graphs_of(network, head), (False, True), strict=True):
            graph = {k: v.to(network.dtype) if v.is_floating_point() else v for k, v in graph.items()}
            expected = plain_results(twin, graph)
            fields = torch.zeros(1, 3, dtype=network.dtype) if with_zero else None
            found = respond(network, graph, ["energy", "forces", "stress"], fields)
            for name, value in expected.items():
                limit = tolerance * max(1.0, float(value.abs().max()))
                assert float((found[name] - value).abs().max()) <= limit, (name, head)


def response_of(network):
    graph = graphs_of(network)[0]
    return respond(network, graph, ["polarization", "born_effective_charges", "polarizability"])


@pytest.mark.parametrize("case", cases(*UNREADABLE))
def test_energies_do_not_change_when_blocks_are_added(case):
    original = network_of(case)
    twin = twin_of(original)
    network = from_plain_mace(twin, seed=4)
    assert network.config.heads == original.config.heads
    assert_unchanged(network, twin, heads_of(case))
    response = response_of(network)
    assert response["born_effective_charges"].abs().max() > 1e-5
    state = network.state_dict()
    for name, value in twin.state_dict().items():
        assert torch.equal(state[name], value), name


def test_the_architecture_is_read_back():
    for case in ("like the 2024 foundations", "three layers", "L2"):
        config = network_of(case).config
        found = network_config(twin_of(network_of(case))).model_dump()
        expected = config.model_dump()
        for document in (found, expected):
            document["hidden_irreps"] = document["hidden_irreps"].replace(" ", "")
            for key in ("field_coupling", "use_reduced_cg"):
                document.pop(key)
        assert found == expected


@pytest.mark.parametrize("case", ["residual", "like the 2024 foundations"])
def test_pickles_of_older_releases_are_read(tmp_path, case):
    changes = {key: value for key, value in CASES[case].items() if key not in TWO_HEADS}
    original = small_network(lively=False, **changes)
    twin = aged(twin_of(original, fresh=True))
    assert not any(name.endswith("_zeroed") for name in twin.state_dict())
    assert_unchanged(from_plain_mace(twin), twin_of(original))
    path = tmp_path / "old.model"
    torch.save(twin, path)
    network, metadata = load_backbone(path, trust_pickle=True)
    assert_unchanged(network, twin_of(original))
    assert metadata.trained_labels == ("energy", "forces", "stress")
    assert network.config.heads == ["default"]


@pytest.mark.parametrize("order", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_backbones_in_the_reduced_basis_are_read(tmp_path, order):
    original = small_network(lively=False, correlation=order)
    twin = reduced(twin_of(original, fresh=True))
    shapes = {name: value.shape for name, value in twin.state_dict().items()}
    assert any(shapes[name] != value.shape for name, value in twin_of(original).state_dict().items())
    graph = graphs_of(original)[0]
    torch.testing.assert_close(  # the same function, else the rest would prove nothing
        plain_results(twin, graph)["forces"], plain_results(twin_of(original), graph)["forces"], rtol=0, atol=1e-12
    )
    network = from_plain_mace(twin)
    assert_unchanged(network, twin)
    path = tmp_path / "reduced.safetensors"
    save_checkpoint(path, network, describe(network, "reduced", ["energy"]))
    loaded, metadata, _ = load_checkpoint(path)
    assert checkpoint_bytes(loaded, metadata) == path.read_bytes()
    assert_unchanged(loaded, twin)
    fast = respond(FastEngine(loaded), graph, ["energy", "polarization"])
    slow = respond(network, graph, ["energy", "polarization"])
    for name in fast:
        torch.testing.assert_close(fast[name], slow[name], rtol=0, atol=1e-12)


def test_single_precision_backbones_keep_their_energies():
    original = network_of("like the 2024 foundations")
    single = twin_of(original, fresh=True).float()
    network = from_plain_mace(single)
    assert network.dtype == torch.float32
    assert_unchanged(network, single, tolerance=1e-5)
    assert_unchanged(network.to(torch.float64), single.double())


def test_initialization_zero_is_the_backbone_at_any_field_and_can_be_trained():
    twin = twin_of(network_of("residual"))
    network = from_plain_mace(twin, initialization="zero").requires_grad_(True)
    graph = graphs_of(network)[0]
    field = torch.full((2, 3), 0.02, dtype=torch.float64)
    found = respond(network, graph, ["energy", "polarization"], field, create_graph=True)
    torch.testing.assert_close(found["energy"], plain_results(twin, graph)["energy"], rtol=0, atol=1e-12)
    assert not found["polarization"].any()
    found["polarization"].square().sum().backward()
    assert not network.field_linear[0].weight.grad.any(), "the square of zero is flat"
    network.zero_grad()
    found = respond(network, graph, ["polarization"], field, create_graph=True)
    (found["polarization"] - 0.01).square().sum().backward()
    assert network.field_linear[0].weight.grad.abs().max() > 0


def test_the_seed_decides_on_the_blocks():
    twin = twin_of(network_of("residual"))
    first, again, other = (from_plain_mace(twin, seed=seed) for seed in (1, 1, 2))
    name = "field_feats.0.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_blocks_that_exist_are_kept():
    network = network_of("residual")
    extended = with_field(network, element_polarizability=True)
    for name, value in network.state_dict().items():
        assert torch.equal(extended.state_dict()[name], value), name
    assert not extended.element_polarizability.any()
    assert with_field(extended).config.element_polarizability


def test_a_plain_checkpoint_receives_blocks(tmp_path):
    twin = twin_of(network_of("two heads"))
    plain = from_plain_mace(twin, field_coupling=False)
    path = tmp_path / "plain.safetensors"
    save_checkpoint(path, plain, describe(plain, "plain", ["energy", "forces"], source="test"))
    loaded, metadata = load_backbone(path)
    assert not loaded.config.field_coupling
    assert metadata.provenance == {"source": "test"}
    assert not response_of(loaded)["polarization"].any()
    network = with_field(loaded, seed=2)
    assert_unchanged(network, twin, heads=(0, 1))
    assert response_of(network)["polarization"].abs().max() > 0


def refused():
    return {
        "scalars": ({"hidden_irreps": "8x0e"}, r"8x0e; without vector features \(1o\)"),
        "one layer": ({"num_interactions": 1}, "1 interaction layer"),
    }


@pytest.mark.parametrize("case", refused())
def test_backbones_that_cannot_carry_a_field_are_refused(tmp_path, case):
    changes, message = refused()[case]
    twin = twin_of(small_network(lively=False, field_coupling=False, **changes))
    with pytest.raises(BackboneError, match=message):
        from_plain_mace(twin)
    path = tmp_path / "small.model"
    torch.save(twin, path)
    network, _ = load_backbone(path, trust_pickle=True)  # fine as a plain model, say for Hessians
    with pytest.raises(BackboneError, match=message):
        with_field(network)


def test_other_modules_are_refused():
    with contained_imports():
        from mace.modules.models import MACE

    with pytest.raises(BackboneError, match="Linear; only ScaleShiftMACE"):
        from_plain_mace(torch.nn.Linear(2, 2))
    twin = twin_of(network_of("residual"), fresh=True)
    twin.__class__ = MACE
    with pytest.raises(BackboneError, match="is a MACE; only ScaleShiftMACE"):
        from_plain_mace(twin)
    for case in UNREADABLE:
        with pytest.raises(BackboneError, match="cannot be read"):
            from_plain_mace(twin_of(network_of(case)))
    embedded = twin_of(network_of("residual"), fresh=True)
    embedded.joint_embedding = torch.nn.Identity()
    with pytest.raises(BackboneError, match="charge, spin"):
        from_plain_mace(embedded)


def test_a_function_that_is_not_reproduced_is_refused():
    twin = twin_of(network_of("residual"), fresh=True)
    original = type(twin.products[0]).forward

    class Other(type(twin.products[0])):
        def forward(self, node_feats, sc, node_attrs):
            return 1.01 * original(self, node_feats, sc, node_attrs)

    twin.products[0].__class__ = Other
    with pytest.raises(BackboneError, match="energy of the backbone is not reproduced"):
        from_plain_mace(twin)


# --- files and downloads ----------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on loopback that stands in for the place of the foundation models; counts its requests."""
    folder = tmp_path / "site"
    folder.mkdir()
    torch.save(twin_of(network_of("like the 2024 foundations")), folder / "good.model")
    (folder / "broken.model").write_bytes((folder / "good.model").read_bytes()[:5000])
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            requests.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        with contained_imports():
            from mace.calculators import foundations_models
        address = f"http://127.0.0.1:{running.server_port}"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        for name, file in (("medium-0b3", "good"), ("medium", "broken"), ("large", "absent")):
            monkeypatch.setitem(foundations_models.mace_mp_urls, name, f"{address}/{file}.model")
        monkeypatch.setattr(foundations_models, "get_cache_dir", lambda: str(tmp_path / "cache"))
        yield requests
        running.shutdown()
        thread.join()


def test_a_foundation_is_downloaded_once_by_name(server, capsys):
    twin = twin_of(network_of("like the 2024 foundations"))
    network, metadata = load_backbone("medium-0b3", trust_pickle=True)
    assert_unchanged(network, twin, heads=(0, 1))
    assert_unchanged(with_field(network), twin, heads=(0, 1))
    assert metadata.name == "medium-0b3"
    assert metadata.provenance["foundation"] == "medium-0b3"
    assert metadata.trained_labels == ("energy", "forces", "stress")
    assert len(server) == 1
    load_backbone("medium-0b3", trust_pickle=True)
    assert len(server) == 1, "the second time it comes from mace's cache"


def test_a_foundation_is_imported_by_name_with_blocks(server, tmp_path):
    out = tmp_path / "foundation.safetensors"
    path, _ = import_pickle("medium-0b3", out, trust=True, field_blocks="random", name="start")
    assert path == out
    network, metadata, _ = load_checkpoint(out)
    assert_unchanged(network, twin_of(network_of("like the 2024 foundations")), heads=(0, 1))
    assert response_of(network)["polarization"].any()
    assert metadata.name == "start"
    info = MACEFieldModel(network, metadata).info
    info.require(["energy", "forces", "hessian"])
    with pytest.raises(CapabilityError, match="would be meaningless"):
        info.require(["polarization"])
    with pytest.raises(CheckpointError, match="Did you mean 'medium-0b3'"):
        import_pickle("medium-0b2x3", out, trust=True)


def test_nothing_is_downloaded_without_trust(server):
    with pytest.raises(UntrustedPickleError, match=r"medium-0b3 is a pickled.*--trust-pickle"):
        load_backbone("medium-0b3")
    assert server == []


def test_failing_downloads_are_explained(server):
    with pytest.raises(CheckpointError, match=r"'large' could not be downloaded.*404"):
        load_backbone("large", trust_pickle=True)
    with pytest.raises(CheckpointError, match=r"cannot be unpickled"):
        load_backbone("medium", trust_pickle=True)


def test_unknown_names_get_a_suggestion(tmp_path):
    assert {"medium-0b3", "medium-mpa-0"} <= set(foundation_names())
    with pytest.raises(CheckpointError, match="Did you mean 'medium-0b3'"):
        load_backbone("medium-0b33", trust_pickle=True)
    with pytest.raises(CheckpointError, match="no such file"):
        load_backbone(tmp_path / "absent.model", trust_pickle=True)


def test_describe_states_where_it_comes_from():
    network = network_of("residual")
    document = describe(network, "mine", ["energy"], foundation="medium-0b3", epochs=2)
    assert document.provenance == {"foundation": "medium-0b3", "epochs": 2}
    assert document.network == network.config
    np.testing.assert_array_equal(document.trained_labels, ["energy"])
