"""``fieldflows dataset``."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fieldflows.cli.main import run
from tests.datasets.synthetic import dielectric_text, perovskite, write


@pytest.fixture
def config(dielectric_file, tmp_path):
    bad = perovskite("K", "Nb", "O")
    bad.charges[0] += np.eye(3)
    write(tmp_path / "bad.extxyz", dielectric_text(bad))
    path = tmp_path / "d.yaml"
    path.write_text(
        f"name: demo\nsources:\n- {{type: paper_dielectric, path: {dielectric_file.name}}}\n"
        "- {type: paper_dielectric, path: bad.extxyz}\n"
    )
    return path


def call(*words) -> int:
    with pytest.raises(SystemExit) as caught:
        run([str(word) for word in words])
    return caught.value.code


def test_build_and_inspect(config, tmp_path, capsys):
    assert call("dataset", "build", config, "--out", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "18 frames" in out
    assert "rejected 1" in out
    assert call("dataset", "inspect", tmp_path / "out", "--verify") == 0
    out = capsys.readouterr().out
    assert "KNbO3" in out
    assert "match the digest" in out
    assert "born_effective_charges" in out
    assert call("dataset", "inspect", tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["n_frames"] == 18


def test_errors_are_one_line_with_exit_code_2(config, tmp_path, capsys):
    assert call("dataset", "build", tmp_path / "nothing.yaml", "--out", tmp_path / "out") == 2
    assert call("dataset", "inspect", tmp_path) == 2
    assert call("dataset", "build", config, "--out", tmp_path / "out") == 0
    capsys.readouterr()
    assert call("dataset", "build", config, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip()
    assert "already holds a dataset" in error
    assert "\n" not in error
    assert call("dataset", "build", config, "--out", tmp_path / "out", "--force") == 0


def test_a_missing_source_is_one_line(tmp_path, capsys):
    path = tmp_path / "d.yaml"
    path.write_text("name: demo\nsources:\n- {type: paper_dielectric, path: nothing.extxyz}\n")
    assert call("dataset", "build", path, "--out", tmp_path / "out") == 2
    assert "There is no file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
