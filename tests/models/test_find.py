"""What `load_model` takes for a name: paths, hashes, addresses, registered names, heads."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from fieldflows import artifacts, load_model
from fieldflows.artifacts import FileArtifacts, file_sha256
from fieldflows.backends.mace_field.checkpoint import load_checkpoint
from fieldflows.backends.mace_field.foundation import load_backbone
from fieldflows.backends.mace_field.model import MACEFieldModel
from fieldflows.errors import ArtifactError, CheckpointError, SettingsError
from fieldflows.jobs.models import ModelReference
from fieldflows.models import bundled_models
from fieldflows.models.find import registry
from tests.models.checkpoints import alter, write_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, str]:
    path = tmp_path / "m.safetensors"
    return path, write_checkpoint(path)


def test_by_name_version_and_hash(checkpoint, tmp_path: Path) -> None:
    path, sha256 = checkpoint
    second = write_checkpoint(tmp_path / "second.safetensors", seed=1)
    registry().register(path, "oxide")
    registry().register(tmp_path / "second.safetensors", "oxide", new_version=True)
    assert load_model("oxide").info.sha256 == second
    assert load_model("oxide@1").info.sha256 == sha256
    path.unlink()
    assert load_model(f"sha256:{sha256}").info.sha256 == sha256
    assert load_model(f"sha256:{sha256[:8].upper()}").info.sha256 == sha256
    assert load_model(f"sha256:{sha256}") is load_model("oxide@1")


def test_bundled_models_by_hash() -> None:
    for name, path in bundled_models().items():
        sha256 = file_sha256(path)
        assert load_model(f"sha256:{sha256[:10]}") is load_model(name)


def test_by_hash_from_a_folder_or_server(checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sha256 = checkpoint
    FileArtifacts(tmp_path / "shared").put(path, label="model/oxide")
    with pytest.raises(CheckpointError, match="No model sha256"):
        load_model(f"sha256:{sha256}")
    with pytest.raises(CheckpointError, match="Give all 64 digits"):
        load_model(f"sha256:{sha256[:12]}")
    monkeypatch.setenv("FIELDFLOWS_ARTIFACT_SOURCES", str(tmp_path / "shared"))
    assert load_model("oxide").info.sha256 == sha256
    monkeypatch.delenv("FIELDFLOWS_ARTIFACT_SOURCES")
    assert load_model(f"sha256:{sha256[:12]}").info.sha256 == sha256  # it was kept
    with pytest.raises(CheckpointError, match="No model 'oxide'"):
        load_model("oxide")


def test_a_hash_that_stands_for_two(checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = checkpoint
    own = registry()
    first = own.register(path, "a")
    twin = first.model_copy(update={"name": "b", "sha256": first.sha256[:12] + "f" * 52})
    own._write_index([first, twin])
    with pytest.raises(CheckpointError, match="stands for several models"):
        load_model(f"sha256:{first.sha256[:12]}")
    assert load_model(f"sha256:{first.sha256}").info.sha256 == first.sha256


@pytest.mark.parametrize("text", ["sha256:", "sha256:0123", "sha256:xyz", "sha256:" + "0" * 65])
def test_what_is_no_hash(text: str) -> None:
    with pytest.raises(CheckpointError, match="is no sha256"):
        load_model(text)


def test_an_altered_copy_is_not_loaded(checkpoint) -> None:
    path, sha256 = checkpoint
    entry = registry().register(path, "oxide")
    assert load_model("oxide").info.sha256 == sha256
    alter(registry().folder / entry.file)
    with pytest.raises(CheckpointError, match="was altered"):
        load_model("oxide")
    with pytest.raises(CheckpointError, match="was altered"):
        load_model(f"sha256:{sha256}")


def test_unknown_names_suggest(checkpoint) -> None:
    registry().register(checkpoint[0], "my-oxide")
    with pytest.raises(CheckpointError, match=r"No model 'my-oxid'.*Did you mean 'my-oxide'"):
        load_model("my-oxid")
    with pytest.raises(CheckpointError, match="Did you mean 'dielectric'"):
        load_model("dielektric")


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_by_address(checkpoint, address: str) -> None:
    path, sha256 = checkpoint
    with pytest.raises(CheckpointError, match="does not say which file"):
        load_model(f"{address}/{path.name}")
    with pytest.raises(ArtifactError, match="should have sha256"):
        load_model(f"{address}/{path.name}#sha256={'0' * 64}")
    name = f"{address}/{path.name}#sha256={sha256}"
    assert load_model(name).info.sha256 == sha256
    path.unlink()
    assert load_model(name).info.sha256 == sha256  # not fetched again
    assert load_model(artifacts.local().path(sha256).as_uri() + f"#sha256={sha256}").info.sha256 == sha256


def test_heads(tmp_path: Path) -> None:
    path = tmp_path / "two.safetensors"
    write_checkpoint(path, heads=("pt_head", "mp-ferroelectric"))
    first, other = load_model(path), load_model(path, head="mp-ferroelectric")
    assert (first.info.head, other.info.head) == ("pt_head", "mp-ferroelectric")
    assert load_model(path, head="mp-ferroelectric") is other
    crystal = bulk("MgO", "rocksalt", 4.2)
    energies = [model.evaluate(crystal, observables=("energy",)).energy for model in (first, other)]
    expected = [
        MACEFieldModel(*load_checkpoint(path), head=head, engine="reference").evaluate(crystal, observables=("energy",))
        for head in ("pt_head", "mp-ferroelectric")
    ]
    np.testing.assert_allclose(energies, [response.energy for response in expected], rtol=1e-10)
    assert abs(energies[0] - energies[1]) > 0.1
    with pytest.raises(SettingsError, match=r"no head 'ferroelectric'.*Did you mean 'mp-ferroelectric'"):
        load_model(path, head="ferroelectric")
    with pytest.raises(SettingsError, match="toy model has no head"):
        load_model("toy", head="x")
    registry().register(path, "two")
    with pytest.raises(CheckpointError, match="give head='mp-ferroelectric'"):
        load_model("two@mp-ferroelectric")


def test_backbones_are_found_alike(checkpoint) -> None:
    path, sha256 = checkpoint
    registry().register(path, "oxide")
    path.unlink()
    for name in ("oxide", "oxide@1", f"sha256:{sha256}", f"sha256:{sha256[:9]}"):
        network, metadata = load_backbone(name)
        assert metadata.name == "oxide 0"
        assert network.config.atomic_numbers == [8, 12]
    with pytest.raises(CheckpointError, match=r"No backbone 'oxidd'.*Did you mean 'oxide'"):
        load_backbone("oxidd")


def test_a_job_finds_its_model_by_hash_where_the_name_is_unknown_or_new(checkpoint, tmp_path: Path) -> None:
    path, sha256 = checkpoint
    write_checkpoint(tmp_path / "other.safetensors", seed=1)
    registry().register(path, "oxide")
    reference, info = ModelReference.resolve("oxide")
    assert info.sha256 == sha256
    registry().register(tmp_path / "other.safetensors", "oxide", new_version=True)
    assert load_model("oxide").info.sha256 != sha256
    assert reference.open().info.sha256 == sha256
    registry().remove("oxide")
    with pytest.raises(CheckpointError, match="No model 'oxide'"):
        reference.open()
    artifacts.local().put(path)
    assert reference.open().info.sha256 == sha256
    again = ModelReference.from_dict(reference.as_dict())
    assert again == reference
