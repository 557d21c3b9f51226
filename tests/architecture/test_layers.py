"""Imports point down: the table in docs/concepts/architecture.md holds for every file."""

from __future__ import annotations

import re

import pytest

from tests.architecture.layers import (
    PACKAGE,
    Import,
    imports_of,
    layer_of,
    package_files,
    read_layers,
    sibling_violations,
    violations,
)

LAYERS = read_layers()
IMPORTS = [item for path in package_files() for item in imports_of(path)]


def test_the_table_covers_the_tree():
    listed = {module for layer in LAYERS for module in layer.modules}
    present = {
        path.stem if path.suffix == ".py" else path.name
        for path in PACKAGE.iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").is_file()
    }
    assert present - listed == set(), "new modules need a row in docs/concepts/architecture.md"
    assert listed - present == set(), "rows of docs/concepts/architecture.md that name nothing"


def test_imports_point_down():
    assert violations(IMPORTS, LAYERS) == []


def test_siblings_stay_apart():
    assert sibling_violations(IMPORTS) == []


def test_no_relative_imports():
    assert [str(item) for item in IMPORTS if item.relative] == []


def test_no_utils_layer():
    assert [path for path in package_files() if re.fullmatch(r"_?(utils?|helpers?|misc)", path.stem)] == []


def test_mace_is_imported_in_one_place():
    places = {item.module for item in IMPORTS if item.target.split(".")[0] in ("mace", "e3nn")}
    allowed = "fieldflows.backends.mace_field._mace"
    lazily = {item.module for item in IMPORTS if item.target.startswith("mace.") and not item.top_level}
    assert places - lazily <= {allowed}
    assert all(module.startswith("fieldflows.backends.mace_field.") for module in lazily)


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("fieldflows.physics.optics", "fieldflows.backends.base"),
        ("fieldflows.properties.dielectric", "fieldflows.backends.mace_field.model"),
        ("fieldflows.datasets.labels", "fieldflows.backends.base"),
        ("fieldflows.schemas.dielectric", "torch"),
        ("fieldflows.physics.optics", "jobflow"),
        ("fieldflows.units", "fieldflows.physics.optics"),
    ],
)
def test_the_checker_sees_a_forbidden_import(module, target):
    assert len(violations([Import(module, target, 1, True)], LAYERS)) == 1


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("fieldflows.properties.dielectric", "fieldflows.properties.piezoelectric"),
        ("fieldflows.cli.screen", "fieldflows.cli.query"),
        ("fieldflows.backends.toy", "fieldflows.backends.mace_field.model"),
    ],
)
def test_the_checker_sees_a_sibling_import(module, target):
    assert len(sibling_violations([Import(module, target, 1, True)])) == 1


def test_the_checker_allows_what_the_table_allows():
    assert violations([Import("fieldflows.properties.dielectric", "fieldflows.backends.base", 1, True)], LAYERS) == []
    assert layer_of("fieldflows.backends.mace_field.model", LAYERS).name == "backends"
