"""`fieldflows model register, list, show, fetch, remove`; `train --register` and `dataset build --keep`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fieldflows import load_model
from fieldflows.store import get_store
from fieldflows.store.artifacts import StoreArtifacts
from tests.flows.test_training_maker import folder  # noqa: F401  (a fixture)
from tests.models.checkpoints import alter, write_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, str]:
    path = tmp_path / "m.safetensors"
    return path, write_checkpoint(path)


def listed(cli) -> dict[str, dict]:
    rows = json.loads(cli("model", "list", "--json").out)
    return {row["name"] + (f"@{row['version']}" if row["version"] else ""): row for row in rows}


def test_register_list_show_remove(cli, checkpoint, tmp_path: Path) -> None:
    path, sha256 = checkpoint
    answer = cli("model", "register", path, "oxide")
    assert (answer.code, answer.out) == (0, f"Registered oxide@1\nsha256 {sha256}\n")
    row = listed(cli)["oxide@1"]
    assert (row["sha256"], row["elements"], row["origin"]) == (sha256, 2, "registered")
    assert row["trained_labels"] == ["born_effective_charges", "polarizability"]
    assert row["errors"] == {"born_charge_diagonal": "0.1 e (valid)"}
    table = cli("model", "list").out
    assert "oxide@1" in table
    assert sha256[:12] in table
    path.unlink()
    facts = json.loads(cli("model", "show", "oxide", "--json").out)
    assert facts["registered"] == ["oxide@1"]
    assert Path(facts["file"]).is_file()
    assert "not registered" in cli("model", "show", "toy").out

    second = write_checkpoint(tmp_path / "n.safetensors", seed=1)
    taken = cli("model", "register", "n.safetensors", "oxide")
    assert taken.code == 2
    assert "--new-version" in taken.err
    assert cli("model", "register", "n.safetensors", "oxide", "--new-version").out.startswith("Registered oxide@2")
    assert load_model("oxide").info.sha256 == second
    assert cli("model", "remove", "oxide@2").out == f"Removed oxide@2 (sha256 {second})\n"
    assert cli("model", "remove", "oxide").code == 0
    assert not any(name.startswith("oxide") for name in listed(cli))
    assert cli("model", "remove", "oxide").code == 2


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("register", "{path}", "dielectric"), "comes with the package"),
        (("register", "none.safetensors", "x"), "No model 'none.safetensors'"),
        (("register", "toy", "x"), "is no file"),
        (("remove", "dielectric"), "cannot be removed"),
        (("fetch", "oxide"), "Name its store with --store"),
        (("fetch", "sha256:1234"), "is no sha256"),
        (("fetch", "sha256:" + "0" * 64), "No model sha256:000"),
        (("fetch", "file:///none.safetensors"), "does not say which file"),
        (("fetch", "oxide", "--sha256", "0" * 64), "--sha256 is for an address"),
        (("fetch", "oxide", "--store", "none.db"), "There is no store"),
    ],
)
def test_mistakes_are_one_line(cli, checkpoint, words, found) -> None:
    answer = cli("model", *(word.format(path=checkpoint[0]) for word in words))
    assert answer.code == 2
    assert found in answer.err
    assert answer.err.count("\n") == 1


def test_a_damaged_checkpoint_is_not_registered(cli, checkpoint) -> None:
    alter(checkpoint[0])
    answer = cli("model", "register", checkpoint[0], "oxide")
    assert answer.code == 2
    assert "altered" in answer.err
    assert "oxide@1" not in listed(cli)


def test_fetch_from_a_store_and_from_an_address(cli, checkpoint) -> None:
    path, sha256 = checkpoint
    StoreArtifacts.of(get_store("s.db")).put(path, label="model/oxide")
    address = path.absolute().as_uri()
    assert cli("model", "fetch", address, "--sha256", "1" * 64).code == 2
    assert cli("model", "fetch", "oxide", "--store", "s.db").out.startswith("Registered oxide@1")
    answer = cli("model", "fetch", address, "--sha256", sha256)
    assert f"sha256:{sha256}" in answer.out
    path.unlink()
    assert cli("model", "fetch", f"sha256:{sha256}", "--store", "s.db", "--name", "mine").code == 0
    assert load_model("oxide").info.sha256 == load_model("mine").info.sha256 == sha256


def test_from_a_kept_dataset_to_a_registered_model(cli, folder: Path) -> None:  # noqa: F811
    built = cli("dataset", "build", folder / "data.yaml", "--out", "built", "--keep")
    digest = re.search(r"digest: ([0-9a-f]{64})", built.out).group(1)
    text = (folder / "train.yaml").read_text().replace("{config: data.yaml}", f"{{digest: {digest}}}")
    Path("train.yaml").write_text(text.replace("epochs: 2", "epochs: 1"))
    assert cli("train", "train.yaml", "--register", "dielectric").code == 2
    assert not Path("runs").exists()
    answer = cli("train", "train.yaml", "--out", "run", "--register", "halides")
    assert answer.code == 0
    assert "Registered halides@1" in answer.out
    assert load_model("halides").info.provenance["dataset_digest"] == digest
