"""Every code block of the documentation runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import EXECUTED, PARSED, PLAIN, ROOT, Block, blocks, commands, pages, script

PAGES = pages()
RELATIVE = [str(page.relative_to(ROOT)) for page in PAGES]
MAKE = f'make() {{ command make --no-print-directory -n -C "{ROOT}" "$@" >/dev/null; }}; '


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a fresh user: empty home, no store configured, the commands on the path."""
    dropped = ("FIELDFLOWS_STORE", "JOBFLOW_CONFIG_FILE", "JOBFLOW_JOB_STORE", "PYTEST_CURRENT_TEST", "MAKEFLAGS")
    env = {key: value for key, value in os.environ.items() if key not in dropped}
    env.update(
        HOME=str(home),
        XDG_DATA_HOME=str(home / "data"),
        MPLCONFIGDIR=str(home / "matplotlib"),
        MPLBACKEND="Agg",
        OMP_NUM_THREADS="1",
        PYTHONPATH=str(ROOT),
        SHELL_PRELUDE=MAKE,
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}",
    )
    return env


def run_page(page: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the blocks of a page, in order, in an empty working directory."""
    work, home = folder / "work", folder / "home"
    work.mkdir()
    home.mkdir()
    env = environment(home)
    program = folder / f"page_{page.stem}.py"  # not the name of a package that the page imports
    program.write_text(script(page, env), encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(program)], cwd=work, env=env, capture_output=True, text=True, check=False, timeout=600
    )


def test_there_is_something_to_test():
    assert {"README.md", "docs/quickstart.md"} <= set(RELATIVE)
    assert sum(block.language in EXECUTED for page in PAGES for block in blocks(page)) >= 5


@pytest.mark.parametrize("page", PAGES, ids=RELATIVE)
def test_every_fence_says_what_it_is(page):
    for block in blocks(page):
        where = f"{page.relative_to(ROOT)}:{block.line}"
        assert block.language in EXECUTED | PARSED | PLAIN, f"{where}: {block.language!r} is not known"
        assert block.skip is None or len(block.skip) >= 15, f"{where}: say why the block is skipped"


@pytest.mark.parametrize("page", PAGES, ids=RELATIVE)
def test_data_blocks_parse(page):
    parsers = {"yaml": yaml.safe_load, "json": json.loads, "toml": tomllib.loads}
    for block in blocks(page):
        if block.language in PARSED and not block.skip:
            assert parsers[block.language](block.code) is not None, f"{page}:{block.line}"


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.language in EXECUTED for block in blocks(page))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_code_runs(page, tmp_path):
    done = run_page(page, tmp_path)
    assert done.returncode == 0, f"{page.relative_to(ROOT)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def write(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


SHARED = """\
# Page

```python
x = 2
```

```yaml title="conf/a.yaml"
b: 3
```

```console
$ cat conf/a.yaml > copy.txt
b: 3
```

1. item

    ```python
    text = open("copy.txt").read()
    assert (x, text) == (2, "b: 3\\n")
    raise ValueError("here")
    ```
"""


def test_blocks_share_names_files_and_line_numbers(tmp_path):
    done = run_page(write(tmp_path, SHARED), tmp_path)
    assert done.returncode == 1
    assert "ValueError: here" in done.stderr
    line = next(i for i, text in enumerate(SHARED.splitlines(), 1) if "raise" in text)
    assert f"line {line}" in done.stderr


@pytest.mark.parametrize("code", ["false", "fieldflows no-such-command", "make no-such-target", "echo $UNSET_NAME"])
def test_a_failing_command_fails_the_page(tmp_path, code):
    assert run_page(write(tmp_path, f"```bash\n{code}\ntrue\n```\n"), tmp_path).returncode != 0


def test_make_targets_are_looked_up_and_not_made(tmp_path):
    assert run_page(write(tmp_path, "```bash\nmake demo\nmake test\n```\n"), tmp_path).returncode == 0


def test_markers_skip(tmp_path):
    skipped = "<!-- skip: this one cannot be run here -->\n```python\n1 / 0\n```\n\n"
    needing = "<!-- needs: NO_SUCH -->\n```bash\nfalse\n```\n"
    page = write(tmp_path, skipped + needing)
    assert [(block.skip, block.needs) for block in blocks(page)] == [
        ("this one cannot be run here", None),
        (None, "NO_SUCH"),
    ]
    assert run_page(page, tmp_path).returncode == 0


def test_console_blocks_hold_commands_and_answers():
    block = Block(Path("p.md"), 1, "console", "$ one \\\n    two\nanswer\n$ three")
    assert commands(block) == "one \\\n    two\nthree"


def test_an_open_fence_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="not closed"):
        blocks(write(tmp_path, "```python\nx = 1\n"))
