"""Checkpoints: whole, or refused with a reason; loading one executes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fieldflows.backends.base import load_model
from fieldflows.backends.mace_field.checkpoint import (
    CheckpointMetadata,
    checkpoint_bytes,
    load_checkpoint,
    read_metadata,
    save_checkpoint,
)
from fieldflows.backends.mace_field.model import MACEFieldModel
from fieldflows.backends.mace_field.network import build_network
from fieldflows.errors import CheckpointError, SettingsError
from fieldflows.testing.structures import random_rotation
from tests.backends.mace_field.models import ALL, FIELD, HIDDEN, small_config, small_network, triclinic

TWO_HEADS = {"heads": ["a", "b"], "scale": [1.0, 2.0], "shift": [0.0, 0.5], "atomic_energies": [[1.0, 2.0, 3.0]] * 2}


def metadata_of(network, **changes):
    values = {
        "name": "small",
        "network": network.config,
        "trained_labels": ("polarization", "polarizability"),
        "license": "CC-BY-4.0",
        "provenance": {"dataset": "ab" * 32, "epochs": 3, "symbol": "𝓔 ε∞", "nested": {"list": [1, 2.5, None]}},
    }
    return CheckpointMetadata(**{**values, **changes})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    network = small_network(correlation=3)
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    return path, network, save_checkpoint(path, network, metadata_of(network))


def header_of(data: bytes) -> dict:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def with_header(data: bytes, header: dict) -> bytes:
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :]


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({}, torch.float32),
        ({"hidden_irreps": HIDDEN["L2"], "correlation": 3}, torch.float64),
        ({"element_polarizability": True}, torch.float64),
        ({"field_coupling": False}, torch.float64),
        ({"pair_repulsion": True, "distance_transform": "Agnesi", **TWO_HEADS}, torch.float32),
        ({"num_interactions": 3, "correlation": [1, 2, 3]}, torch.float64),
    ],
)
def test_round_trip_is_exact_to_the_bit(tmp_path, changes, dtype):
    network = _copy(small_network(**changes), dtype)
    path = tmp_path / "m.safetensors"
    sha256 = save_checkpoint(path, network, metadata_of(network))
    loaded, metadata, found = load_checkpoint(path)
    assert sha256 == found == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.dtype == dtype
    assert metadata.network == network.config
    assert metadata.trained_labels == ("polarization", "polarizability")
    assert metadata.provenance["symbol"] == "𝓔 ε∞"
    assert metadata.provenance["nested"] == {"list": [1, 2.5, None]}
    assert metadata.units["born_effective_charges"] == "e"
    mine, theirs = network.state_dict(), loaded.state_dict()
    assert set(mine) == set(theirs)
    for name, value in mine.items():
        assert theirs[name].dtype == value.dtype, name
        assert torch.equal(value, theirs[name]), name
    assert checkpoint_bytes(loaded, metadata) == path.read_bytes()


def _copy(source, dtype):
    network = build_network(source.config, dtype, seed=0)
    network.load_state_dict(source.state_dict())
    return network


def test_a_loaded_model_answers_as_the_saved_one(saved):
    path, network, sha256 = saved
    model = load_model(path)
    assert model.info.sha256 == sha256
    assert model.info.elements == ("O", "Na", "Ti")
    assert model.info.license == "CC-BY-4.0"
    direct = MACEFieldModel(network, metadata_of(network))
    assert direct.info.sha256 == sha256
    for name in ALL:
        ours, theirs = (m.evaluate(triclinic(), FIELD, ALL).get(name) for m in (model, direct))
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    assert load_model(path) is model
    assert load_model(str(path)) is model
    assert load_model(path, dtype="float32") is not model


def test_an_overwritten_file_is_loaded_again(tmp_path):
    path = tmp_path / "m.safetensors"
    network = small_network()
    save_checkpoint(path, network, metadata_of(network, name="first"))
    assert load_model(path).info.name == "first"
    save_checkpoint(path, network, metadata_of(network, name="second one"))
    assert load_model(path).info.name == "second one"


def test_single_precision_is_close_to_double(saved):
    path, _, _ = saved
    single, double = (load_model(path, dtype=d).evaluate(triclinic(), FIELD, ALL) for d in ("float32", "float64"))
    for name in ALL:
        size = np.abs(double.get(name)).max()
        assert 0 < np.abs(single.get(name) - double.get(name)).max() < 1e-4 * size, name


def test_constants_of_a_file_in_single_precision_are_exact_in_double(tmp_path):
    """Weights stay those of the file, to the bit; couplings and radial basis are not learned, and not rounded."""
    exact = small_network(correlation=3)
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, _copy(exact, torch.float32), metadata_of(exact))
    loaded, _, _ = load_checkpoint(path, torch.float64)
    kept, restored = 0, []
    for name, value in loaded.state_dict().items():
        rounded = exact.state_dict()[name]
        rounded = rounded.float().double() if rounded.is_floating_point() else rounded
        if torch.equal(value, rounded):
            kept += 1
        else:
            restored.append(name)
            assert torch.equal(value, exact.state_dict()[name]), name
    assert kept > 20
    assert any("U_matrix" in name for name in restored)
    parameters = dict(loaded.named_parameters())
    assert not set(restored) & set(parameters)

    single, _, _ = load_checkpoint(path, torch.float32)
    assert single.dtype == torch.float32
    stored = _copy(exact, torch.float32).state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in single.state_dict().items())


def test_a_file_in_single_precision_is_covariant_in_double(tmp_path):
    """Rotated crystals have rotated tensors, to rounding of double and not of single precision."""
    network = _copy(small_network(correlation=3), torch.float32)
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, network, metadata_of(network))
    model = MACEFieldModel.from_file(path)
    turn = random_rotation(4)
    turned = triclinic()
    turned.set_cell(turned.cell[:] @ turn.T, scale_atoms=True)
    here, there = (model.evaluate(atoms, observables=ALL) for atoms in (triclinic(), turned))
    for name in ("polarizability", "born_effective_charges", "stress"):
        expected = turn @ here.get(name) @ turn.T
        assert np.abs(there.get(name) - expected).max() < 1e-13 * np.abs(expected).max(), name


def test_constants_that_are_not_those_of_the_architecture_are_left_as_they_are(tmp_path):
    """As an import from a program with another radial basis would need."""
    network = _copy(small_network(), torch.float32)
    changed = {name for name, buffer in network.named_buffers() if "bessel_weights" in name and buffer.numel()}
    assert changed, "there is no such buffer"
    with torch.no_grad():
        for name in changed:
            network.get_buffer(name).mul_(1.0 + 1e-4)
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, network, metadata_of(network))
    loaded, _, _ = load_checkpoint(path, torch.float64)
    for name in changed:
        assert torch.equal(loaded.get_buffer(name), network.get_buffer(name).double()), name


CUTS = {
    "empty": lambda n, h: 0,
    "inside the length": lambda n, h: 5,
    "after the length": lambda n, h: 8,
    "inside the header": lambda n, h: 8 + h // 2,
    "last byte of the header": lambda n, h: 8 + h - 1,
    "before the tensors": lambda n, h: 8 + h,
    "inside the tensors": lambda n, h: 8 + h + (n - h) // 2,
    "last byte": lambda n, h: n - 1,
}


@pytest.mark.parametrize("cut", CUTS)
def test_truncated_files_are_refused(saved, tmp_path, cut):
    data = saved[0].read_bytes()
    end = CUTS[cut](len(data), int.from_bytes(data[:8], "little"))
    path = tmp_path / "cut.safetensors"
    path.write_bytes(data[:end])
    for reader in (load_checkpoint, read_metadata, load_model):
        with pytest.raises(CheckpointError, match=r"cut\.safetensors is (empty|truncated)"):
            reader(path)


@pytest.mark.parametrize("low_byte", [0x80, 0x50, 0x28])
def test_a_header_of_any_length_is_read(tmp_path, low_byte):
    """Its length comes first in the file, and may look like the first byte of a pickle."""
    network = small_network()
    path = tmp_path / "m.safetensors"
    for padding in range(0, 256, 8):
        data = checkpoint_bytes(network, metadata_of(network, name="x" * (1 + padding)))
        if data[0] == low_byte:
            path.write_bytes(data)
            break
    assert path.read_bytes()[0] == low_byte
    assert load_checkpoint(path)[1].network == network.config


def test_appended_bytes_are_refused(saved, tmp_path):
    path = tmp_path / "long.safetensors"
    path.write_bytes(saved[0].read_bytes() + b"\0" * 16)
    with pytest.raises(CheckpointError, match="long"):
        load_checkpoint(path)


@pytest.mark.parametrize("seed", range(8))
def test_any_flipped_bit_is_noticed(saved, tmp_path, seed):
    """Also those that leave tensors and header well formed."""
    data = bytearray(saved[0].read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(seed)
    at = int(rng.integers(header, len(data))) if seed % 2 else int(rng.integers(0, header))
    data[at] ^= 1 << int(rng.integers(0, 8))
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert "flipped.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"r_max":3.4', '"r_max":3.5'),
        ('"trained_labels":["polarization"', '"trained_labels":["energy","forces","polarization"'),
        ("CC-BY-4.0", "CC0-1.0"),
        ('"epochs":3', '"epochs":300'),
        ('"scale":2.8', '"scale":28'),
    ],
)
def test_an_altered_description_is_noticed(saved, tmp_path, before, after):
    data = saved[0].read_bytes()
    header = header_of(data)
    text = header["__metadata__"]["fieldflows"]
    assert text.count(before) == 1
    header["__metadata__"]["fieldflows"] = text.replace(before, after)
    path = tmp_path / "altered.safetensors"
    path.write_bytes(with_header(data, header))
    with pytest.raises(CheckpointError, match=r"altered\.safetensors was altered after it was written"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(surprise=1), "surprise: Extra inputs"),
        (lambda d: d["network"].pop("atomic_numbers"), r"network\.atomic_numbers: Field required"),
        (lambda d: d.update(format="other"), "has format 'other'"),
        (lambda d: d.update(format_version=99), "version 99.*Update"),
        (lambda d: d["network"].update(interaction_cls="os.system"), "unknown interaction block 'os.system'"),
    ],
)
def test_a_foreign_description_is_explained(saved, tmp_path, change, message):
    data = saved[0].read_bytes()
    header = header_of(data)
    document = json.loads(header["__metadata__"]["fieldflows"])
    change(document)
    header["__metadata__"]["fieldflows"] = json.dumps(document)
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(with_header(data, header))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def _rehashed(path: Path, network, drop=(), rename=None, reshape=None):
    """Write a checkpoint whose tensors do not fit, but whose hash does."""
    state = dict(network.state_dict())
    for name in drop:
        state.pop(name)
    for old, new in (rename or {}).items():
        state[new] = state.pop(old)
    for name, shape in (reshape or {}).items():
        state[name] = torch.zeros(shape, dtype=torch.float64)

    class Pretender:
        config = network.config

        @staticmethod
        def state_dict():
            return state

    path.write_bytes(checkpoint_bytes(Pretender, metadata_of(network)))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"drop": ["field_feats.0.weight"]}, r"missing \['field_feats.0.weight'\]"),
        ({"rename": {"field_linear.0.weight": "x.weight"}}, r"unexpected \['x.weight'\]"),
        ({"reshape": {"field_feats.0.weight": (7,)}}, r"wrong shape \['field_feats.0.weight'\]"),
        ({"drop": ["node_embedding.linear.weight"]}, r"missing \['node_embedding.linear.weight'\]"),
    ],
)
def test_tensors_that_do_not_fit_the_architecture_are_named(saved, tmp_path, kwargs, message):
    path = tmp_path / "misfit.safetensors"
    _rehashed(path, saved[1], **kwargs)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def _foreign_files(folder: Path) -> dict[str, tuple[Path, str]]:
    files = {}

    def add(name: str, data: bytes, message: str) -> None:
        path = folder / name
        path.write_bytes(data)
        files[name] = (path, message)

    add("text.safetensors", b"this is not a model, but it is long enough to look at\n" * 20, "truncated, or no safet")
    add("zeros.safetensors", b"\0" * 4096, "no safetensors file")
    add("list.safetensors", (8).to_bytes(8, "little") + b"[1,2,3] ", "no JSON object")
    add("pickle.safetensors", pickle.dumps({"a": 1}), "is a pickle.*--trust-pickle")
    torch.save({"a": torch.ones(2)}, folder / "torch.safetensors")
    files["torch.safetensors"] = (folder / "torch.safetensors", "is a pickle.*--trust-pickle")
    save_file({"weight": torch.ones(3)}, folder / "other.safetensors")
    files["other.safetensors"] = (folder / "other.safetensors", "of another program")
    save_file({"weight": torch.ones(3)}, folder / "json.safetensors", metadata={"fieldflows": "{not json"})
    files["json.safetensors"] = (folder / "json.safetensors", "damaged or of another version")
    save_file({"weight": torch.ones(3)}, folder / "bare.safetensors", metadata={"fieldflows": "{}"})
    files["bare.safetensors"] = (folder / "bare.safetensors", "Field required")
    return files


def test_foreign_files_are_refused_with_a_reason(tmp_path):
    files = _foreign_files(tmp_path)
    assert len(files) == 8
    for path, message in files.values():
        for reader in (load_checkpoint, read_metadata, load_model):
            with pytest.raises(CheckpointError, match=message) as caught:
                reader(path)
            assert str(path) in str(caught.value)


def test_missing_files_and_names(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        load_checkpoint(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="directory"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"No model 'no-such-model'.*Known"):
        load_model("no-such-model")
    with pytest.raises(CheckpointError, match="No model"):
        load_model("sha256:" + "0" * 64)
    with pytest.raises(SettingsError, match="float32 or float64"):
        load_model("no-such-model", dtype="float16")


@pytest.mark.parametrize("name", ["model.pt", "model", "model.safetensors.bak"])
def test_wrong_names_of_output_are_refused(tmp_path, name):
    network = small_network()
    with pytest.raises(SettingsError, match=r"must be named \*\.safetensors"):
        save_checkpoint(tmp_path / name, network, metadata_of(network))
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    network = small_network()
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, network, metadata_of(network))
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_checkpoint(path, network, metadata_of(network, name="other"))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_an_unwritable_place_is_an_error(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    network = small_network()
    with pytest.raises(CheckpointError, match="Cannot write"):
        save_checkpoint(blocker / "m.safetensors", network, metadata_of(network))


class Bomb:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("form", ["pickle", "torch", "torch-legacy"])
def test_a_planted_pickle_does_not_run(tmp_path, form):
    mark = tmp_path / "ran"
    for suffix in (".safetensors", ".model"):
        path = tmp_path / f"bomb{suffix}"
        if form == "pickle":
            path.write_bytes(pickle.dumps(Bomb(str(mark))))
        else:
            torch.save(Bomb(str(mark)), path, _use_new_zipfile_serialization=form == "torch")
        for reader in (load_checkpoint, read_metadata, load_model):
            with pytest.raises(CheckpointError, match="is a pickle"):
                reader(path)
            assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(str(mark))))  # the bomb works
    assert mark.exists()


def test_loading_needs_no_unpickler_at_all(saved, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("something was unpickled")

    for target in ("torch.load", "pickle.load", "pickle.loads", "torch.jit.load"):
        monkeypatch.setattr(target, forbidden)
    network, metadata, _ = load_checkpoint(saved[0])
    assert metadata.name == "small"
    assert torch.equal(network.state_dict()["field_feats.0.weight"], saved[1].state_dict()["field_feats.0.weight"])


SCRIPT = """
import os, sys
before = {before!r}
os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
if before is not None:
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = before
import torch, numpy as np
from fieldflows import load_model
from fieldflows.calculators import FieldCalculator
import fieldflows.backends.mace_field.foundation as foundation, fieldflows.backends.mace_field.pickles
from ase import Atoms
foundation.foundation_names()
model = load_model(sys.argv[1])
atoms = Atoms("NaO", cell=[3.4, 3.4, 3.4], scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5]], pbc=True)
atoms.calc = FieldCalculator(model, electric_field=(0, 0, 0.01), allow_untrained=True)
atoms.get_potential_energy()
assert os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD") == before, os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"]
class Bomb:
    def __reduce__(self):
        return print, ("BOMB",)
torch.save(Bomb(), sys.argv[2])
try:
    torch.load(sys.argv[2])
    print("loaded")
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize(
    ("before", "outcome"), [(None, "UnpicklingError"), pytest.param("1", "BOMB", marks=pytest.mark.slow)]
)
def test_safe_loading_stays_as_the_user_set_it(saved, tmp_path, before, outcome):
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT.format(before=before), str(saved[0]), str(tmp_path / "bomb.pt")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[0] == outcome, run.stdout


def test_the_header_can_be_read_by_any_safetensors_reader(saved):
    from safetensors import safe_open

    with safe_open(saved[0], framework="numpy") as file:
        document = json.loads(file.metadata()["fieldflows"])
        names = set(file.keys())
    assert document["format"] == "fieldflows-mace-field"
    assert document["network"]["hidden_irreps"] == small_config().hidden_irreps
    assert {"field_feats.0.weight", "field_linear.0.weight", "node_embedding.linear.weight"} <= names
