"""Markdown pages as scripts: every fenced block of a page, in order, as a program that keeps the page's line numbers.

What a fence says decides what happens to it:

- ``python``: executed; all python blocks of a page share one namespace;
- ``bash`` or ``console``: executed by bash in the working directory of the page (``console``: the lines that start with
  ``$ ``); ``make`` only checks that the target exists;
- ``yaml``, ``json``, ``toml``, ``text`` with ``title="name"``: written to that file, for the blocks that follow;
- ``yaml``, ``json``, ``toml``: parsed; ``text``, ``mermaid``, ``bibtex``: left alone;
- a comment ``<!-- skip: reason -->`` above the fence skips it, ``<!-- needs: VARIABLE -->`` skips it unless that
  environment variable is set.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXECUTED = {"python", "bash", "console"}
PARSED = {"yaml", "json", "toml"}
PLAIN = {"text", "mermaid", "bibtex"}
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>```+)(?P<info>.*)$")
MARKER = re.compile(r"<!--\s*(?P<kind>skip|needs):\s*(?P<value>.+?)\s*-->")
TITLE = re.compile(r'title="(?P<name>[^"]+)"')


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: File that holds it.
        line: Line of the opening fence, from 1.
        language: First word of the info string.
        code: Content, dedented.
        title: File name that it is written to.
        skip: Reason for which it is not executed.
        needs: Environment variable without which it is not executed.
    """

    page: Path
    line: int
    language: str
    code: str
    title: str | None = None
    skip: str | None = None
    needs: str | None = None


def pages() -> list[Path]:
    """Return README, CONTRIBUTING and everything below docs/."""
    top = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
    return [*top, *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page.

    Raises:
        ValueError: If a fence is not closed.
    """
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        number += 1
        if not opening:
            continue
        start = number
        closing = re.compile(rf"^ *{opening['ticks']} *$")
        while number < len(lines) and not closing.match(lines[number]):
            number += 1
        if number == len(lines):
            raise ValueError(f"{page}:{start}: the fence is not closed")
        info = opening["info"].strip()
        title = TITLE.search(info)
        marker = MARKER.search(lines[start - 2]) if start >= 2 else None
        found.append(
            Block(
                page=page,
                line=start,
                language=info.split()[0].split("{")[0] if info else "",
                code=textwrap.dedent("\n".join(lines[start:number])),
                title=title["name"] if title else None,
                skip=marker["value"] if marker and marker["kind"] == "skip" else None,
                needs=marker["value"].split(",")[0].strip() if marker and marker["kind"] == "needs" else None,
            )
        )
        number += 1
    return found


def commands(block: Block) -> str:
    """Return the bash code of a bash or console block."""
    if block.language == "bash":
        return block.code
    lines, going_on = [], False
    for line in block.code.splitlines():
        if line.startswith("$ ") or going_on:
            text = line.removeprefix("$ ")
            lines.append(text)
            going_on = text.rstrip().endswith("\\")
    return "\n".join(lines)


PRELUDE = (
    "import subprocess as _s, pathlib as _p, os as _o;"
    "_bash = lambda code: _s.run(['bash', '-euo', 'pipefail', '-c', _o.environ['SHELL_PRELUDE'] + code], check=True);"
    "_write = lambda name, text: (_p.Path(name).parent.mkdir(parents=True, exist_ok=True),"
    " _p.Path(name).write_text(text, encoding='utf-8'))"
)


def script(page: Path, environment: dict[str, str]) -> str:
    """Return one Python program that does what the blocks of a page say; its line numbers are those of the page."""
    lines = [""] * (len(page.read_text(encoding="utf-8").splitlines()) + 1)
    lines[0] = PRELUDE
    for block in blocks(page):
        if block.skip or (block.needs and not environment.get(block.needs)):
            continue
        statements = [lines[block.line - 1]] if lines[block.line - 1] else []
        if block.title:
            statements.append(f"_write({block.title!r}, {block.code + chr(10)!r})")
        if block.language in ("bash", "console"):
            statements.append(f"_bash({commands(block)!r})")
        lines[block.line - 1] = "; ".join(statements)
        if block.language == "python":
            lines[block.line : block.line + block.code.count("\n") + 1] = block.code.split("\n")
    return "\n".join(lines) + "\n"
