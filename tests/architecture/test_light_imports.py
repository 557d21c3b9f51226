"""What a cheap command loads, and what importing mace leaves behind; each in a fresh interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

HEAVY = (
    *("torch", "matplotlib", "pymatgen", "jobflow", "maggma", "mace", "e3nn", "pandas", "atomate2"),
    *("numpy", "scipy", "ase", "spglib", "matscipy", "emmet", "monty", "pymongo", "mongomock_ng", "pydantic"),
)
"""What takes more than a hundredth of a second to import; the package has 0.3 s, its help 0.6 s."""

COMMANDS = ("screen", "campaign", "query", "publish", "store", "train", "dataset", "model", "demo", "evaluate", "path")
COMMANDS += ("dev-db", "ferroelectric", "matbench")
SWITCH = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def loaded_after(code: str, **environment: str) -> set[str]:
    report = f"\nimport sys, json\nprint('LOADED ' + json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    answer = run(code + report, **environment)
    return set(json.loads(answer.rsplit("LOADED ", 1)[1]))


def run(code: str, **environment: str) -> str:
    env = {key: value for key, value in os.environ.items() if key != SWITCH}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**env, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_is_light():
    assert loaded_after("import fieldflows; fieldflows.FieldflowsError; dir(fieldflows)") == set()


def test_the_checker_sees_a_heavy_import():
    assert loaded_after("import matplotlib") == {"matplotlib", "numpy"}


def test_every_command_is_tried():
    from fieldflows.cli.main import COMMANDS as EXISTING

    assert set(COMMANDS) == set(EXISTING)


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [(["--help"], set()), (["--version"], set()), *(([command, "--help"], {"pydantic"}) for command in COMMANDS)],
)
def test_help_is_light(arguments, allowed):
    code = (
        "import sys\n"
        f"sys.argv = ['fieldflows', *{arguments!r}]\n"
        "from fieldflows.cli.main import run\n"
        "try:\n    run()\nexcept SystemExit as stop:\n    assert stop.code in (0, None), stop.code"
    )
    assert loaded_after(code) <= allowed


@pytest.mark.parametrize("value", [None, "0", "1"])
def test_importing_mace_leaves_the_loading_switch_alone(value):
    code = f"import os, fieldflows.backends.mace_field._mace\nprint(repr(os.environ.get({SWITCH!r})))"
    environment = {} if value is None else {SWITCH: value}
    assert run(code, **environment).strip().splitlines()[-1] == repr(value)


def test_torch_still_refuses_pickled_code_after_mace_is_loaded(tmp_path):
    code = (
        "import os, pickle, torch, fieldflows.backends.mace_field._mace\n"
        "class Evil:\n    def __reduce__(self):\n        return (os.mkdir, ('executed',))\n"
        "torch.save({'x': Evil()}, 'evil.pt')\n"
        "try:\n    torch.load('evil.pt')\nexcept pickle.UnpicklingError:\n    print('refused')"
    )
    env = {key: value for key, value in os.environ.items() if key != SWITCH}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path, check=False
    )
    assert done.stdout.strip().endswith("refused"), done.stderr
    assert not (tmp_path / "executed").exists()
