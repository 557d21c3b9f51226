"""The command line as a whole: help at once, one-line errors, exit codes."""

from __future__ import annotations

import resource
import sys
import types

import pytest

from fieldflows import __version__
from fieldflows.cli import main
from fieldflows.errors import StoreError


def test_help_lists_all_commands(cli) -> None:
    for words in ((), ("--help",)):
        answer = cli(*words)
        assert answer.code == 0
        for name, (_, line) in main.COMMANDS.items():
            assert name in answer.out
            assert line.split(":")[0][:40] in answer.out


def test_version(cli) -> None:
    answer = cli("--version")
    assert (answer.code, answer.out.strip()) == (0, f"fieldflows {__version__}")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["screen"], "Missing argument"),
        (["screen", "--bogus", "x.cif"], "No such option"),
        (["query", "--limit", "many"], "Invalid value"),
        (["model", "bogus"], "No such command 'bogus'"),
    ],
)
def test_wrong_usage_is_one_line(cli, words: list[str], reason: str) -> None:
    answer = cli(*words)
    assert answer.code == 2
    assert answer.err.startswith("Error: ")
    assert reason in answer.err
    assert answer.err.count("\n") == 1
    assert answer.out == ""


def fake(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def register(app) -> None:
        def train() -> None:
            raise error

        app.command("train")(train)

    module = types.ModuleType("fake_train")
    module.register = register
    monkeypatch.setitem(sys.modules, "fake_train", module)
    monkeypatch.setitem(main.COMMANDS, "train", ("fake_train", "Fake."))


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (StoreError("Asked this,\nfound that.", "Do so."), 2, "Error: Asked this, found that. Do so."),
        (KeyboardInterrupt(), 130, ""),
        (RuntimeError("oops"), 70, "Internal error: RuntimeError: oops."),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_errors_have_codes_and_one_line(cli, monkeypatch, error, code: int, text: str) -> None:
    fake(monkeypatch, error)
    answer = cli("train")
    assert answer.code == code
    assert answer.err.startswith(text)
    assert answer.err.count("\n") <= 1
    assert "Traceback" not in answer.err


def test_traceback_on_request(cli, monkeypatch) -> None:
    fake(monkeypatch, RuntimeError("oops"))
    monkeypatch.setenv("FIELDFLOWS_TRACEBACK", "1")
    assert "Traceback" in cli("train").err


def test_a_command_that_is_not_installed_says_so(cli, monkeypatch) -> None:
    monkeypatch.setitem(main.COMMANDS, "train", ("fieldflows.cli.no_such_module", "Train a model."))
    answer = cli("train")
    assert (answer.code, answer.err) == (2, "Error: The command 'train' is not part of this installation.\n")


def test_help_comes_at_once(launch) -> None:
    """Processor time of a fresh process, so that other work on the machine does not count."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    best = float("inf")
    for _ in range(3):
        before = spent()
        out, _ = launch("--help").communicate(timeout=60)
        best = min(best, spent() - before)
        assert "screen" in out
    assert 0 < best < 0.6
