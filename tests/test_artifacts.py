"""Files by their sha256: folders, web servers, damage, full disks."""

from __future__ import annotations

import errno
import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from fieldflows import artifacts
from fieldflows.artifacts import FileArtifacts, WebArtifacts
from fieldflows.errors import ArtifactError

CONTENT = b"what is in the file\x00" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDFLOWS_ARTIFACTS", str(tmp_path / "local"))
    monkeypatch.delenv("FIELDFLOWS_ARTIFACT_SOURCES", raising=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    return path


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Serve a folder on the loopback interface."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_put_and_get(source: Path, tmp_path: Path) -> None:
    folder = FileArtifacts(tmp_path / "a")
    assert folder.put(source, label="dataset/x") == SHA256
    assert folder.get(SHA256).read_bytes() == CONTENT
    assert folder.find("dataset/x") == SHA256
    assert folder.find("dataset/y") is None
    assert folder.starting_with(SHA256[:8]) == [SHA256]
    stamp = folder.get(SHA256).stat().st_mtime_ns
    assert folder.put(source) == SHA256
    assert folder.get(SHA256).stat().st_mtime_ns == stamp
    assert list((tmp_path / "a").rglob("*.tmp")) == []
    folder.remove(SHA256)
    with pytest.raises(ArtifactError, match="no artifact"):
        folder.get(SHA256)


def test_a_damaged_file_is_never_given_out(source: Path, tmp_path: Path) -> None:
    folder = FileArtifacts(tmp_path / "a")
    folder.put(source)
    folder.path(SHA256).write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(ArtifactError, match="damaged"):
        folder.get(SHA256)
    assert folder.put(source) == SHA256  # the same file heals it
    assert folder.get(SHA256).read_bytes() == CONTENT


def test_fetch_copies_verifies_and_heals(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = FileArtifacts(tmp_path / "other")
    other.put(source, label="dataset/x")
    with pytest.raises(ArtifactError, match="No place knows"):
        artifacts.fetch(SHA256)
    with artifacts.reachable(other):
        assert artifacts.find("dataset/x") == SHA256
        assert artifacts.fetch(SHA256).read_bytes() == CONTENT
    assert artifacts.find("dataset/x") is None
    assert artifacts.fetch(SHA256).is_relative_to(tmp_path / "local")

    artifacts.local().path(SHA256).write_bytes(b"")
    with pytest.raises(ArtifactError, match="damaged"):
        artifacts.fetch(SHA256)
    monkeypatch.setenv("FIELDFLOWS_ARTIFACT_SOURCES", f"{tmp_path / 'nowhere'} {other.folder}")
    assert artifacts.fetch(SHA256).read_bytes() == CONTENT

    artifacts.local().remove(SHA256)
    other.path(SHA256).write_bytes(CONTENT + b"more")
    with pytest.raises(ArtifactError, match="it is damaged"):
        artifacts.fetch(SHA256)
    assert not artifacts.local().path(SHA256).exists()


def test_a_web_server(source: Path, served, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, address = served
    FileArtifacts(folder).put(source, label="model/halides")
    monkeypatch.setenv("FIELDFLOWS_ARTIFACT_SOURCES", address)
    assert artifacts.find("model/halides") == SHA256
    assert artifacts.find("model/other") is None
    assert artifacts.fetch(SHA256).read_bytes() == CONTENT
    with pytest.raises(ArtifactError, match="No place knows"):
        artifacts.fetch("0" * 64)


def test_downloads_are_verified(source: Path, served) -> None:
    folder, address = served
    (folder / "m.bin").write_bytes(CONTENT)
    assert artifacts.download(f"{address}/m.bin", SHA256).read_bytes() == CONTENT
    (folder / "m.bin").write_bytes(b"another")
    assert artifacts.download(f"{address}/m.bin", f"sha256:{SHA256.upper()}").read_bytes() == CONTENT  # kept
    wrong = "1" * 64
    with pytest.raises(ArtifactError, match=r"should have sha256 1111.*has"):
        artifacts.download(f"{address}/m.bin", wrong)
    assert not artifacts.local().path(wrong).exists()
    with pytest.raises(ArtifactError, match="nothing at"):
        artifacts.download(f"{address}/none.bin", wrong)
    assert artifacts.download(source.as_uri(), SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize("address", ["ftp://host/file", "sftp://host/file", "/plain/path", "htps://host/file"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(ArtifactError, match="no address that files are fetched from"):
        artifacts.download(address, SHA256)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(ArtifactError, match="cannot be reached"):
        artifacts.download("http://127.0.0.1:9/file", SHA256)
    with pytest.raises(ArtifactError, match="cannot be reached"):
        WebArtifacts("http://127.0.0.1:9").find("dataset/x")


def test_a_connection_that_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:100])

        def log_message(self, *words) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Half)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(ArtifactError, match=r"cut off|broke off"):
            artifacts.download(f"http://127.0.0.1:{server.server_address[1]}/file", SHA256)
    finally:
        server.shutdown()
        server.server_close()
    assert [path for path in artifacts.local().folder.rglob("*") if path.is_file()] == []


def test_a_full_disk_is_named_and_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    folder = FileArtifacts(tmp_path / "a")
    with pytest.raises(ArtifactError, match="disk is full"):
        folder.put(source)
    assert [path for path in folder.folder.rglob("*") if path.is_file()] == []


def test_an_unwritable_folder(source: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        FileArtifacts(tmp_path / "taken").put(source)


@pytest.mark.parametrize("label", ["", "../x", "a//b", "/a", "a/../b", "a b", "ä", "x" * 300])
def test_labels_cannot_leave_the_folder(label: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no label"):
        FileArtifacts(tmp_path / "a").put(source, label=label)


@pytest.mark.parametrize("text", ["", "0123", "z" * 64, "../" + "0" * 61, "0" * 65])
def test_what_is_no_sha256_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no sha256"):
        FileArtifacts(tmp_path).path(text)


def _put(folder: str, source: str) -> str:
    return FileArtifacts(folder).put(source, label="dataset/x")


def test_several_processes_put_the_same_file(source: Path, tmp_path: Path) -> None:
    with get_context("spawn").Pool(3) as pool:
        found = pool.starmap(_put, [(str(tmp_path / "a"), str(source))] * 6)
    assert set(found) == {SHA256}
    assert FileArtifacts(tmp_path / "a").get(SHA256).read_bytes() == CONTENT
