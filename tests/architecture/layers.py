"""The layer table of docs/concepts/architecture.md, and the imports of the package, both as data."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fieldflows"
PAGE = ROOT / "docs" / "concepts" / "architecture.md"
MARKER = "<!-- layers: read by tests/architecture -->"


@dataclass(frozen=True)
class Layer:
    """One row of the table."""

    name: str
    modules: tuple[str, ...]
    may_import: frozenset[str]
    third_party: frozenset[str]


@dataclass(frozen=True)
class Import:
    """One import statement: who imports what."""

    module: str
    target: str
    line: int
    top_level: bool
    relative: bool = False
    type_checking: bool = False

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def words(cell: str) -> list[str]:
    return [] if cell.strip() in ("", "–") else [word.strip() for word in cell.split(",")]


def read_layers(page: Path = PAGE) -> list[Layer]:
    """Return the rows of the table, with "A" and "not X" worked out."""
    text = page.read_text(encoding="utf-8").split(MARKER)[1]
    rows = re.findall(r"^\|(.+)\|$", text.split("\n\n")[1], re.MULTILINE)[2:]
    layers: list[Layer] = []
    for row in rows:
        name, modules, may, third, _note = (cell.strip() for cell in row.split("|"))
        allowed: set[str] = set()
        for word in words(may):
            if word == "A":
                allowed |= {layer.name for layer in layers}
            elif word.startswith("not "):
                allowed.discard(word.removeprefix("not "))
            else:
                allowed.add(word)
        layers.append(Layer(name, tuple(words(modules)), frozenset(allowed), frozenset(words(third))))
    return layers


def module_name(path: Path) -> str:
    """Return the dotted name of a file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


class _Imports(ast.NodeVisitor):
    def __init__(self, module: str) -> None:
        self.module, self.found = module, []
        self.depth, self.checking = 0, False

    def add(self, node: ast.stmt, target: str, relative: bool = False) -> None:
        self.found.append(Import(self.module, target, node.lineno, self.depth == 0, relative, self.checking))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        for alias in node.names:
            target = f"{base}.{alias.name}"
            is_module = (ROOT / target.replace(".", "/")).is_dir() or (
                ROOT / f"{target.replace('.', '/')}.py"
            ).is_file()
            self.add(node, target if is_module else base, relative=node.level > 0)

    def visit_If(self, node: ast.If) -> None:
        before = self.checking
        self.checking = before or "TYPE_CHECKING" in ast.unparse(node.test)
        for child in node.body:
            self.visit(child)
        self.checking = before
        for child in node.orelse:
            self.visit(child)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    visit_AsyncFunctionDef = visit_FunctionDef


def imports_of(path: Path) -> list[Import]:
    """Return all imports of a file, those inside functions included."""
    visitor = _Imports(module_name(path))
    visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
    return visitor.found


def layer_of(module: str, layers: list[Layer]) -> Layer | None:
    """Return the layer of a module of ours; None for the package itself."""
    parts = module.split(".")
    if len(parts) < 2:
        return None
    return next((layer for layer in layers if parts[1] in layer.modules), None)


def violations(imports: list[Import], layers: list[Layer]) -> list[str]:
    """Return one line for each import that the table does not allow."""
    heavy = frozenset().union(*(layer.third_party for layer in layers))
    bad = []
    for item in imports:
        layer = layer_of(item.module, layers)
        if layer is None:
            continue
        top = item.target.split(".")[0]
        if top == "fieldflows":
            target = layer_of(item.target, layers)
            if target is None or target is layer or target.name in layer.may_import:
                continue
            if any(item.target == f"fieldflows.{name}" for name in layer.may_import):
                continue
            if any(item.target.startswith(f"fieldflows.{name}.") for name in layer.may_import if "." in name):
                continue
            bad.append(f"{item}: layer {layer.name} may not import layer {target.name}")
        elif top in heavy and top not in layer.third_party and not item.type_checking:
            bad.append(f"{item}: layer {layer.name} may not import {top}")
    return bad


def sibling_violations(imports: list[Import]) -> list[str]:
    """Return imports between siblings that are to stay apart, and between different backends."""
    shared = {
        "fieldflows.properties": {"base", "run", "context"},
        "fieldflows.datasets.sources": {"base"},
        "fieldflows.cli": {"options", "app", "console", "output"},
        "fieldflows.backends": {"base"},
    }
    bad = []
    for item in imports:
        for parent, free in shared.items():
            prefix = parent + "."
            if not (item.module.startswith(prefix) and item.target.startswith(prefix)):
                continue
            own, other = item.module[len(prefix) :].split(".")[0], item.target[len(prefix) :].split(".")[0]
            collector = own in ("main", "run", "registry")
            if own != other and other not in free and not collector:
                bad.append(f"{item}: siblings in {parent} stay apart")
    return bad
