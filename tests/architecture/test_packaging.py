"""What a fresh machine gets: pinned versions that fit the ranges, every data file, commands that exist."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import PurePosixPath

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import fieldflows
from tests.architecture.layers import PACKAGE, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
UNPINNED = {"gpu"}
"""Extras that were not tested where the pins come from."""
LARGEST_MODEL = 10 * 2**20


ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
"""The suite itself may run under make; what that passes down must not reach the makes that are tested."""


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    entries = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in entries}


def requirements() -> list[tuple[str, Requirement]]:
    found = [("", text) for text in PROJECT["project"]["dependencies"]]
    for extra, texts in PROJECT["project"]["optional-dependencies"].items():
        found += [(extra, text) for text in texts]
    return [(extra, Requirement(text)) for extra, text in found]


@pytest.mark.parametrize(("extra", "requirement"), requirements(), ids=str)
def test_the_pin_of_every_requirement_is_in_its_range(extra, requirement):
    if requirement.name == "fieldflows":
        assert requirement.extras <= set(PROJECT["project"]["optional-dependencies"])
    elif extra not in UNPINNED:
        assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


def test_requirements_have_ranges():
    assert [str(req) for _, req in requirements() if not req.specifier and req.name != "fieldflows"] == []


def test_pins_are_plain_versions():
    assert [name for name, version in pins().items() if version.local] == []
    assert pins()["torch"] == Version("2.13.0")


def test_extras_are_there():
    assert {"fireworks", "remote", "gpu", "phonons", "docs", "test", "dev"} <= set(
        PROJECT["project"]["optional-dependencies"]
    )
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    assert Marker('python_version >= "3.11"').evaluate()


def test_every_data_file_is_packaged():
    globs = PROJECT["tool"]["setuptools"]["package-data"]["fieldflows"]
    done = subprocess.run(["git", "ls-files", "fieldflows"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    names = [PurePosixPath(name).relative_to("fieldflows") for name in done.stdout.split() if not name.endswith(".py")]
    left_out = [str(name) for name in names if not any(matches(name, pattern) for pattern in globs)]
    assert left_out == []
    assert PurePosixPath("data/demo/crystals.yaml") in names


def matches(name: PurePosixPath, pattern: str) -> bool:
    """Return whether a path matches a glob in which ``**`` stands for any folders, as setuptools reads it."""
    regex = re.escape(pattern).replace(r"\*\*/", "(?:.+/)?").replace(r"\*", "[^/]*")
    return re.fullmatch(regex, str(name)) is not None


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("data/demo/x.yaml", "data/**/*", True),
        ("data/x.yaml", "data/**/*", True),
        ("models/a/x.bin", "models/*/*", True),
        ("models/x.bin", "models/*/*", False),
    ],
)
def test_globs_are_read_as_setuptools_does(name, pattern, expected):
    assert matches(PurePosixPath(name), pattern) is expected


def test_bundled_models_are_small_and_have_a_card():
    folders = [path for path in (PACKAGE / "models").iterdir() if path.is_dir() and path.name != "__pycache__"]
    for folder in folders:
        assert (folder / "model.safetensors").stat().st_size <= LARGEST_MODEL
        assert (folder / "README.md").is_file()


def test_version_is_read_from_the_package():
    assert Version(fieldflows.__version__)
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "fieldflows.__version__"}


@pytest.mark.parametrize("target", ["demo", "test", "check", "docs", "bench", "bench-gpu", "clean", "help"])
def test_the_daily_words_exist(target):
    done = subprocess.run(
        ["make", "-n", target], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_an_index_for_torch_is_used_for_torch_alone(tmp_path):
    command = ["make", "-n", "demo", f"VENV={tmp_path}", "TORCH_INDEX=https://example.invalid/wheels"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    using = [line for line in done.stdout.splitlines() if "example.invalid" in line]
    assert len(using) == 1
    assert using[0].rstrip().endswith("torch")
    assert "--no-deps" in using[0]


def test_an_old_python_is_refused_with_a_hint(tmp_path):
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    command = ["make", "demo", f"VENV={tmp_path / 'venv'}", f"PYTHON={old}"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "PYTHON=" in done.stderr


def test_continuous_integration_runs_the_default_suite(tmp_path):
    """.ci/run hands over to ``make test``, on one thread per process, with the data folder if there is one."""
    checkout = tmp_path / "checkout"
    (checkout / ".ci").mkdir(parents=True)
    (tmp_path / "shared" / "data").mkdir(parents=True)
    script = checkout / ".ci" / "run"
    script.write_bytes((ROOT / ".ci" / "run").read_bytes())
    script.chmod(0o755)
    report = "test:\n\t@echo $(OMP_NUM_THREADS) $(FIELDFLOWS_DATA)\n"
    (checkout / "Makefile").write_text(report, encoding="utf-8")
    env = {key: value for key, value in ENVIRONMENT.items() if key not in ("FIELDFLOWS_DATA", "OMP_NUM_THREADS")}
    done = subprocess.run([script], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", str(tmp_path / "shared" / "data")]
    chosen = subprocess.run(
        [script], cwd=tmp_path, env={**env, "FIELDFLOWS_DATA": "elsewhere"}, capture_output=True, text=True, check=True
    )
    assert chosen.stdout.split() == ["1", "elsewhere"]
