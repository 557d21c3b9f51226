"""What no file of the package or the repository may hold."""

from __future__ import annotations

import ast
import re
import subprocess

import pytest

from tests.architecture.layers import PACKAGE, ROOT, package_files

UNSAFE_CALLS = {
    "pickle.load", "pickle.loads", "torch.load", "cloudpickle.load", "joblib.load", "yaml.load", "yaml.unsafe_load",
    "eval", "exec", "os.system",
}  # fmt: skip
PICKLES = PACKAGE / "backends" / "mace_field" / "pickles.py"
MACHINE_PATHS = re.compile(r"/(?:home|Users|root|work|scratch|mnt)/(?!\*)[\w.-]+")


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def unsafe(tree: ast.AST) -> list[str]:
    return [
        f"line {node.lineno}: {name}"
        for name, node in calls(tree)
        if name in UNSAFE_CALLS
        and not any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
    ]


@pytest.mark.parametrize("path", package_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_that_is_loaded_can_execute(path):
    found = unsafe(ast.parse(path.read_text(encoding="utf-8")))
    assert path == PICKLES or found == []


@pytest.mark.parametrize("code", ["pickle.load(f)", "torch.load(f)", "torch.load(f, weights_only=False)", "eval('1')"])
def test_the_checker_sees_unsafe_calls(code):
    assert len(unsafe(ast.parse(code))) == 1


def test_weights_only_loading_is_allowed():
    assert unsafe(ast.parse("torch.load(f, weights_only=True)")) == []


def test_no_print_and_no_bare_except():
    for path in package_files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert "print" not in {name for name, _ in calls(tree)}, path
        bare = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler) and n.type is None]
        assert bare == [], path


def repository_files() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return done.stdout.splitlines()


def test_no_file_names_a_machine():
    found = []
    for name in repository_files():
        path = ROOT / name
        if not path.is_file():
            continue
        text = path.read_bytes().decode("utf-8", errors="replace")  # checkpoints hold text too
        own = str(ROOT) + "/"
        if own in text or (MACHINE_PATHS.search(text) and name != "tests/architecture/test_source.py"):
            found.append(name)
    assert found == []


def test_no_file_is_large():
    limit = 12 * 2**20
    assert [
        name for name in repository_files() if (ROOT / name).is_file() and (ROOT / name).stat().st_size > limit
    ] == []
