"""`fieldflows train` and `fieldflows evaluate` from start to end, with the mistakes that people make."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.test_training_maker import folder  # noqa: F401  (a fixture)


def call(*words: str) -> int:
    from fieldflows.cli.main import run

    with pytest.raises(SystemExit) as caught:
        run([str(word) for word in words])
    return int(caught.value.code or 0)


def test_train_then_evaluate(folder: Path, tmp_path: Path, capsys) -> None:  # noqa: F811
    out = tmp_path / "run"
    assert call("train", folder / "train.yaml", "--dry-run", "--out", out) == 0
    assert "Would start" in capsys.readouterr().out
    assert not out.exists()

    assert call("train", folder / "train.yaml", "--out", out) == 0
    shown = capsys.readouterr().out
    assert "Mean absolute errors" in shown
    assert "ended by: epochs" in shown
    assert (out / "learning_curves.png").is_file()

    assert call("train", folder / "train.yaml", "--out", out) == 0
    assert "Going on at epoch 2" in capsys.readouterr().out

    report = tmp_path / "report"
    code = call(
        "evaluate", out / "model.safetensors", folder / "data.yaml", "--split", "all", "--json", "--out", report
    )
    assert code == 0
    document = json.loads(capsys.readouterr().out)
    assert sum(subset["frames"] for subset in document["subsets"].values()) == 7
    assert document["subsets"]["train"]["quantities"]["born_charge_diagonal"]["unit"] == "e"
    assert json.loads((report / "metrics.json").read_text())["model"] == document["model"]
    assert (report / "parity_refractive_index.png").is_file()

    assert call("evaluate", out / "model.safetensors", folder / "data.yaml", "--split", "train") == 0
    assert "MAE of baselines" in capsys.readouterr().out


def test_options_change_single_keys_and_say_so(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:  # noqa: F811
    out = tmp_path / "run"
    words = [
        "train",
        folder / "train.yaml",
        "--out",
        out,
        "--dry-run",
        "--epochs",
        "7",
        "--set",
        "run.micro_structures=1",
    ]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert call(*words, "--set", "optimizer.kind=adamw") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "run.epochs: 7 in place of " in shown
    assert "optimizer.kind: adamw in place of amsgrad." in shown
    assert "7 epochs" in shown
    assert "effective batches an epoch" in shown
    assert "over 2 processes" in shown
    assert "largest part: 1 structures" in shown
    assert "GB beside the weights (estimate)" in shown
    assert not out.exists()

    monkeypatch.setenv("RANK", "1")
    assert call(*words) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_torchrun_starts_several_processes(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """As the guide says, with the command as it is installed."""
    bin_folder = Path(sys.executable).parent
    command = [bin_folder / "torchrun", "--standalone", "--nproc-per-node", "2", bin_folder / "fieldflows", "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [*command, folder / "train.yaml", "--out", tmp_path / "run"],
        capture_output=True, text=True, env=environment, timeout=300, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("ended by: epochs") == 1
    start = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert start["processes"] == 2


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("train", "none.yaml"), "Cannot read"),
        (("train", "{folder}/train.yaml", "--set", "run.epoch=3"), "Did you mean 'epochs'"),
        (("train", "{folder}/train.yaml", "--set", "epochs"), "takes KEY=VALUE"),
        (("train", "{folder}/train.yaml", "--set", "run.epochs.x=1"), "no such place"),
        (("train", "{folder}/train.yaml", "--set", "run.seed=[1"), "no YAML value"),
        (("train", "{folder}/train.yaml", "--epochs", "0"), "greater than or equal to 1"),
        (("train", "{folder}/train.yaml", "--max-minutes", "-1"), "must be positive"),
        (("train", "{folder}/data.yaml"), "unknown key"),
        (("evaluate", "none.safetensors", "{folder}/data.yaml"), "No model"),
        (("evaluate", "toy", "{folder}/nothing"), "holds no dataset"),
        (("evaluate", "toy", "{folder}/data.yaml", "--split", "tests"), "Did you mean 'test'"),
        (("evaluate", "toy", "{folder}/data.yaml", "--split", "all", "--label", "force"), "Did you mean 'forces'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(folder: Path, tmp_path, monkeypatch, capsys, words, found) -> None:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    assert call(*(word.format(folder=folder) for word in words)) == 2
    error = capsys.readouterr().err
    assert found in error
    assert len(error.strip().splitlines()) == 1


def test_an_unwritable_run_directory(folder: Path, tmp_path, capsys) -> None:  # noqa: F811
    (tmp_path / "file").write_text("")
    assert call("train", folder / "train.yaml", "--out", tmp_path / "file") == 2
    assert "Cannot use" in capsys.readouterr().err
