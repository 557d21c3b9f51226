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


def test_the_summary_is_drawn_unless_left_out(config, tmp_path, capsys):
    assert call("dataset", "build", config, "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "summary.png").read_bytes().startswith(b"\x89PNG")
    assert call("dataset", "build", config, "--out", tmp_path / "out", "--force", "--no-figure") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["frames.extxyz", "manifest.json"]
    assert call("dataset", "inspect", tmp_path / "out", "--figure", tmp_path / "s.svg") == 0
    assert "<svg" in (tmp_path / "s.svg").read_text()
    capsys.readouterr()
    assert call("dataset", "inspect", tmp_path / "out", "--figure", tmp_path / "s.nonsense") == 2
    assert "s.nonsense" in capsys.readouterr().err


def test_validate_says_it_by_its_exit_status(config, tmp_path, capsys):
    assert call("dataset", "build", config, "--out", tmp_path / "out", "--no-figure") == 0
    capsys.readouterr()
    assert call("dataset", "validate", tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["valid"] is True
    assert call("dataset", "validate", config) == 0
    assert "holds" in capsys.readouterr().out
    frames = tmp_path / "out" / "frames.extxyz"
    frames.write_text(frames.read_text().replace("2.5", "2.6", 1))
    assert call("dataset", "validate", tmp_path / "out") == 1
    assert "FAILS" in capsys.readouterr().out
    assert call("dataset", "validate", tmp_path / "out", "--json") == 1
    assert json.loads(capsys.readouterr().out)["valid"] is False
    assert call("dataset", "validate", tmp_path / "nothing.yaml") == 2


def test_diff_says_it_by_its_exit_status(config, dielectric_file, tmp_path, capsys):
    assert call("dataset", "build", config, "--out", tmp_path / "a", "--no-figure") == 0
    write(tmp_path / "bad.extxyz", dielectric_text(perovskite("K", "Nb", "O")))
    assert call("dataset", "build", config, "--out", tmp_path / "b", "--no-figure") == 0
    capsys.readouterr()
    assert call("dataset", "diff", tmp_path / "a", tmp_path / "a", "--json") == 0
    assert json.loads(capsys.readouterr().out)["same"] is True
    assert call("dataset", "diff", tmp_path / "a", tmp_path / "b") == 1
    out = capsys.readouterr().out
    assert "1 added, 0 removed, 0 changed, 0 moved" in out
    assert "KNbO3 (bad:0)" in out
    assert call("dataset", "diff", tmp_path / "a", tmp_path / "b", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["added"] == ["KNbO3 (bad:0)"]
    assert sum(len(names) for row in found["shared_materials"].values() for names in row.values()) == 18
    assert call("dataset", "diff", tmp_path / "a", tmp_path / "nothing") == 2
