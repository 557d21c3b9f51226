"""Running the command line in this process, and as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write

from fieldflows.cli.main import run


@dataclass
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Callable[..., Answer]:
    """Run a command in an empty folder, with the embedded store in it and no configuration of this machine."""
    for name in ("FIELDFLOWS_STORE", "JOBFLOW_CONFIG_FILE", "JOBFLOW_JOB_STORE", "FIELDFLOWS_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    for name in ("FIELDFLOWS_ARTIFACTS", "FIELDFLOWS_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home" / "data"))
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Answer:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run([str(word) for word in words])
        captured = capsys.readouterr()
        return Answer(int(stop.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def crystals(tmp_path: Path) -> Path:
    """A file with three crystals."""
    return save(
        tmp_path / "three.extxyz",
        bulk("MgO", "rocksalt", 4.21),
        bulk("NaCl", "rocksalt", 5.64),
        bulk("GaAs", "zincblende", 5.65),
    )


def save(path: Path, *frames: Atoms) -> Path:
    write(path, list(frames), format="extxyz")
    return path


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start the command line as a process of its own."""

    def start(*words: object, env: dict[str, str] | None = None, **options) -> subprocess.Popen[str]:
        # a suite that runs in the background of a shell ignores Ctrl-C, and its children would inherit that
        options.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        return subprocess.Popen(
            [sys.executable, "-c", "from fieldflows.cli.main import run; run()", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "XDG_DATA_HOME": str(tmp_path / "home" / "data"), "OMP_NUM_THREADS": "1", **(env or {})},
            **options,
        )

    return start
