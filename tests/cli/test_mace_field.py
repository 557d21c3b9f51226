"""The commands with a real MACE-Field network: small, untrained, but of the kind that people use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ase.build import bulk
from ase.io import write

from fieldflows import load_model
from fieldflows.backends.mace_field.checkpoint import CheckpointMetadata, save_checkpoint
from fieldflows.backends.mace_field.network import NetworkConfig, build_network
from tests.backends.mace_field.backbones import plain_twin
from tests.backends.mace_field.models import small_network

ELECTRONIC = ("born_effective_charges", "polarizability")
EVERYTHING = ("energy", "forces", "stress", "polarization", *ELECTRONIC)


def checkpoint(path: Path, labels: tuple[str, ...]) -> str:
    config = NetworkConfig(
        atomic_numbers=[8, 12],
        r_max=4.0,
        num_bessel=4,
        max_ell=1,
        hidden_irreps="4x0e + 4x1o",
        MLP_irreps="4x0e",
        correlation=2,
        radial_MLP=[8],
        atomic_energies=[0.0, 0.0],
        avg_num_neighbors=10.0,
    )
    return save_checkpoint(
        path,
        build_network(config, dtype=torch.float64, seed=1),
        CheckpointMetadata(name="tiny", network=config, trained_labels=labels, license="MIT"),
    )


@pytest.fixture
def mgo(tmp_path: Path) -> Path:
    path = tmp_path / "MgO.extxyz"
    write(path, [bulk("MgO", "rocksalt", 4.21), bulk("NaCl", "rocksalt", 5.64)], format="extxyz")
    return path


def test_screen_with_electronic_labels_only(cli, mgo: Path) -> None:
    sha256 = checkpoint(Path("tiny.safetensors"), ELECTRONIC)
    answer = cli("screen", mgo, "--model", "tiny.safetensors", "--store", "s.db", "--json")
    assert answer.code == 1
    content = json.loads(answer.out)
    (document,) = content["results"]
    assert document["status_ionic"] == "no_energy_surface"
    assert (document["e_ionic"], document["modes"]) == (None, None)
    assert document["provenance"]["model"]["sha256"] == sha256
    assert "does not know Cl, Na" in content["failures"][0]["message"]
    for words in (["--ionic"], ["--relax"]):
        refused = cli("screen", mgo, "--model", "tiny.safetensors", "--store", "s.db", *words)
        assert refused.code == 2
        assert "hessian_model" in refused.err
        assert refused.err.count("\n") == 1


def test_screen_with_a_separate_hessian_model(cli, mgo: Path) -> None:
    checkpoint(Path("field.safetensors"), ELECTRONIC)
    checkpoint(Path("surface.safetensors"), EVERYTHING)
    words = ("screen", mgo, "--model", "field.safetensors", "--store", "s.db", "--json")
    (document,) = json.loads(cli(*words, "--hessian-model", "surface.safetensors").out)["results"]
    assert document["status_ionic"] in ("ok", "unstable", "soft")
    assert document["provenance"]["hessian_model"]["trained_labels"] == list(EVERYTHING)
    reference = load_model("field.safetensors").evaluate(bulk("MgO", "rocksalt", 4.21), observables=("polarizability",))
    assert document["polarizability"][0][0] == pytest.approx(reference.polarizability[0, 0], rel=1e-9)


@pytest.mark.parametrize("damage", ["truncated", "altered", "foreign", "empty"])
def test_a_wrong_checkpoint_is_one_line(cli, mgo: Path, damage: str) -> None:
    path = Path("tiny.safetensors")
    checkpoint(path, ELECTRONIC)
    content = bytearray(path.read_bytes())
    if damage == "altered":
        content[-5] ^= 0xFF
    path.write_bytes(
        {"truncated": content[:-100], "altered": content, "foreign": b"PK\x03\x04" * 50, "empty": b""}[damage]
    )
    answer = cli("screen", mgo, "--model", path, "--store", "s.db")
    assert answer.code == 2
    assert answer.err.startswith("Error: ")
    assert "tiny.safetensors" in answer.err
    assert answer.err.count("\n") == 1
    assert not Path("s.db").exists()


def test_info_of_a_checkpoint(cli) -> None:
    sha256 = checkpoint(Path("tiny.safetensors"), ELECTRONIC)
    facts = json.loads(cli("model", "info", "tiny.safetensors", "--json").out)
    assert facts["sha256"] == sha256
    assert facts["elements"] == ["O", "Mg"]
    assert facts["has_energy_surface"] is False
    assert "no forces, modes" in cli("model", "info", "tiny.safetensors").out


def test_import_of_a_trusted_pickle(cli) -> None:
    network = small_network()
    torch.save(plain_twin(network), "plain.model")
    assert cli("model", "import", "plain.model").code == 2
    answer = cli("model", "import", "plain.model", "--trust-pickle", "--out", "new.safetensors", "--name", "mine")
    assert answer.code == 0, answer.err
    card = load_model("new.safetensors").info
    assert card.sha256 in answer.out
    assert (card.name, set(card.trained_labels)) == ("mine", {"energy", "forces", "stress"})
    labeled = cli(
        "model", "import", "plain.model", "--trust-pickle", "--out", "e.safetensors", "--labels", "energy, forces"
    )
    assert labeled.code == 0, labeled.err
    assert set(load_model("e.safetensors").info.trained_labels) == {"energy", "forces"}
    wrong = cli("model", "import", "plain.model", "--trust-pickle", "--labels", "energies")
    assert wrong.code == 2
    assert "Did you mean 'energy'" in wrong.err
