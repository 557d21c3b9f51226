"""Import of foreign pickles: only on explicit request, and one to one."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from fieldflows.backends.base import load_model
from fieldflows.backends.mace_field._mace import contained_imports
from fieldflows.backends.mace_field.checkpoint import load_checkpoint
from fieldflows.backends.mace_field.derivatives import respond
from fieldflows.backends.mace_field.network import NetworkConfig
from fieldflows.backends.mace_field.pickles import convert, import_pickle
from fieldflows.errors import BackboneError, CheckpointError, SettingsError, UntrustedPickleError
from tests.backends.mace_field.backbones import TWO_HEADS, graphs_of, plain_results, plain_twin
from tests.backends.mace_field.models import FIELD, small_config, small_network

LABELS = ("energy", "forces", "polarization", "born_effective_charges", "polarizability")

# Written out without the package, the way the public code builds and saves its models: a class of mace.modules.models
# that PyPI's mace does not have, with the two lists of blocks as attributes, pickled whole.
SCRIPT = """
import sys
import mace.modules.models as models
import numpy as np
import torch
from e3nn import o3
from mace.modules import gate_dict, interaction_classes

folder, weights = sys.argv[1:3]


class Forked(models.ScaleShiftMACE):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        hidden = o3.Irreps(str(kwargs["hidden_irreps"]))
        count = kwargs["num_interactions"] - 1
        self.field_feats = torch.nn.ModuleList(
            [o3.FullyConnectedTensorProduct(hidden, o3.Irreps("1o"), hidden) for _ in range(count)]
        )
        self.field_linear = torch.nn.ModuleList([o3.Linear(hidden, hidden) for _ in range(count)])

    def forward(self, data, **kwargs):
        raise NotImplementedError("the forward pass of the fork is not needed to read its weights")


torch.set_default_dtype(torch.float64)
block = interaction_classes["RealAgnosticResidualInteractionBlock"]
model = Forked(
    atomic_inter_scale=[2.8, 1.7],
    atomic_inter_shift=[0.1, -0.3],
    r_max=3.4,
    num_bessel=4,
    num_polynomial_cutoff=5,
    max_ell=2,
    interaction_cls=block,
    interaction_cls_first=block,
    num_interactions=3,
    num_elements=3,
    hidden_irreps=o3.Irreps("4x0e + 4x1o"),
    MLP_irreps=o3.Irreps("4x0e"),
    atomic_energies=np.array([[-1.5, -0.25, 3.75], [0.5, 1.25, -2.0]]),
    avg_num_neighbors=9.0,
    atomic_numbers=[8, 11, 22],
    correlation=2,
    gate=gate_dict["silu"],
    heads=["pbe", "r2scan"],
    radial_MLP=[8, 8],
)
model.load_state_dict(torch.load(weights))
Forked.__module__ = "mace.modules.models"
for name in ("MACEField", "ScaleShiftFieldMACE"):
    Forked.__name__ = Forked.__qualname__ = name
    setattr(models, name, Forked)
    torch.save(model, f"{folder}/{name}.model")
"""


@pytest.fixture(scope="module")
def source():
    return small_network(lively=False, num_interactions=3, **TWO_HEADS)


@pytest.fixture(scope="module")
def forks(tmp_path_factory, source):
    """Pickles of classes that do not exist in this process, with the weights of a network of ours."""
    folder = tmp_path_factory.mktemp("fork")
    torch.save({key: value.clone() for key, value in source.state_dict().items()}, folder / "weights.pt")
    (folder / "fork.py").write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TORCH_FORCE")}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "fork.py", str(folder), "weights.pt"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=folder,
    )
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture(scope="module")
def published(forks):
    return forks / "MACEField.model"


@pytest.fixture
def plain(tmp_path):
    network = small_network(lively=False)
    path = tmp_path / "plain.model"
    torch.save(plain_twin(network), path)
    return path, network


def test_the_class_of_the_fork_does_not_exist_here(published):
    with contained_imports():
        import mace.modules.models as models

        assert not hasattr(models, "MACEField")
        with pytest.raises(AttributeError, match="MACEField"):
            torch.load(published, weights_only=False)


def test_state_names_of_the_fork_map_one_to_one(published, source):
    network, metadata = convert(published, trust=True, labels=LABELS)
    assert metadata.provenance["imported_class"] == "MACEField"
    assert network.config.field_coupling
    assert network.config.heads == ["pbe", "r2scan"]
    ours, theirs = network.state_dict(), source.state_dict()
    assert set(ours) == set(theirs)
    assert {"field_feats.0.weight", "field_feats.1.weight", "field_linear.0.weight", "field_linear.1.weight"} < set(
        ours
    )
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_an_imported_fork_answers_as_the_weights_say(published, source, tmp_path):
    out = tmp_path / "field.safetensors"
    path, sha256 = import_pickle(published, out, trust=True, labels=LABELS, name="published")
    assert path == out
    network, metadata, found = load_checkpoint(out)
    assert found == sha256
    assert metadata.name == "published"
    assert metadata.trained_labels == LABELS
    assert len(metadata.provenance["imported_sha256"]) == 64
    names = ["energy", "forces", "stress", "polarization", "born_effective_charges", "polarizability"]
    for head in (0, 1):
        graph = graphs_of(source, head)[0]
        field = torch.tensor(np.array([FIELD, -FIELD]))
        expected, got = (respond(n, graph, names, field) for n in (source, network))
        for name in names:
            assert torch.equal(got[name], expected[name]), name


def test_the_labels_of_a_fork_must_be_named(published, tmp_path):
    with pytest.raises(SettingsError, match=r"does not say what it was trained on.*--labels"):
        import_pickle(published, tmp_path / "x.safetensors", trust=True)
    with pytest.raises(SettingsError, match="Did you mean 'polarization'"):
        import_pickle(published, tmp_path / "x.safetensors", trust=True, labels=["polarisation"])
    assert not list(tmp_path.iterdir())


def test_the_earlier_snapshot_is_refused_with_the_reason(forks):
    path = forks / "ScaleShiftFieldMACE.model"
    with pytest.raises(BackboneError, match=r"2025 snapshot.*not covariant"):
        convert(path, trust=True, labels=LABELS)


def test_plain_models_are_imported_with_their_usual_labels(plain, tmp_path):
    path, original = plain
    target, _ = import_pickle(path, trust=True)
    assert target == tmp_path / "plain.safetensors"
    model = load_model(target)
    assert model.info.trained_labels == ("energy", "forces", "stress")
    assert model.info.has_energy_surface
    assert not model.network.config.field_coupling
    assert model.metadata.provenance["imported_from"] == "plain.model"
    graph = graphs_of(original)[0]
    expected = plain_results(plain_twin(original), graph)
    found = respond(model.network, graph, ["energy", "forces", "stress"])
    for name, value in expected.items():
        assert float((found[name] - value).abs().max()) <= 1e-12, name


@pytest.mark.parametrize("call", [convert, import_pickle])
def test_without_trust_nothing_is_opened(plain, published, tmp_path, call, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("the file was opened")

    monkeypatch.setattr(torch, "load", forbidden)
    for path in (plain[0], published):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(UntrustedPickleError, match=r"can run any code with your rights.*--trust-pickle"):
            call(path, trust=False)
        assert sorted(tmp_path.iterdir()) == before


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_a_pickle_runs_only_when_it_is_trusted(tmp_path):
    mark = tmp_path / "ran"
    path = tmp_path / "bomb.model"
    torch.save(Bomb(str(mark)), path)
    with pytest.raises(UntrustedPickleError):
        import_pickle(path)
    with pytest.raises(CheckpointError):
        load_model(path)
    assert not mark.exists()
    with pytest.raises(CheckpointError, match="type NoneType, not a model"):
        import_pickle(path, trust=True)
    assert mark.exists(), "this is what trust means"


def test_other_files_are_refused(tmp_path, plain):
    files = {
        "text.model": (b"no model at all\n" * 10, "cannot be unpickled"),
        "empty.model": (b"", "cannot be unpickled"),
        "cut.model": (plain[0].read_bytes()[:3000], "cannot be unpickled"),
    }
    for name, (data, message) in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=message):
            convert(tmp_path / name, trust=True)
    torch.save({"model": {}, "optimizer": {}, "epoch": 3}, tmp_path / "train.pt")
    with pytest.raises(CheckpointError, match=r"dictionary \(model, optimizer, epoch\).*exported \.model"):
        convert(tmp_path / "train.pt", trust=True)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "linear.pt")
    with pytest.raises(BackboneError, match="only ScaleShiftMACE"):
        convert(tmp_path / "linear.pt", trust=True)
    with pytest.raises(CheckpointError, match="no file"):
        convert(tmp_path / "absent.model", trust=True)


def test_the_loading_switch_of_torch_is_put_back(published, monkeypatch):
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", raising=False)
    convert(published, trust=True, labels=LABELS)
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ


def test_the_configuration_of_the_fork_is_read(published):
    network, _ = convert(published, trust=True, labels=LABELS)
    expected = small_config(num_interactions=3, **TWO_HEADS)
    found = network.config.model_dump()
    found.update(hidden_irreps=expected.hidden_irreps, use_reduced_cg=expected.use_reduced_cg)
    assert NetworkConfig(**found) == expected
