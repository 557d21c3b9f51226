"""The tables of keys in the guide to campaigns say what the models of a campaign file say."""

from __future__ import annotations

import re

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from fieldflows.campaigns import config
from tests.docs.pages import ROOT

PAGE = ROOT / "docs/guides/campaigns.md"
TABLES = dict(re.findall(r"<!-- keys: (\w+) -->\n+((?:\|.*\n)+)", PAGE.read_text(encoding="utf-8")))
WORDS = {
    "CampaignConfig.stages": "one stage `dielectric`",
    "StageConfig.after": "the stage before",
    "StageConfig.model": "that of the campaign",
}
"""Defaults that are said in words."""


def default(model: type[BaseModel], name: str) -> str:
    """Return what the table should say of a default."""
    field = model.model_fields[name]
    if f"{model.__name__}.{name}" in WORDS:
        return WORDS[f"{model.__name__}.{name}"]
    if field.is_required():
        return "required"
    value = field.default
    if value is PydanticUndefined or value in (None, "", ()):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def test_every_section_has_a_table() -> None:
    sections = {kind.__name__ for kind in config.Section.__subclasses__()}
    assert set(TABLES) == sections


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_the_keys_and_defaults(name: str) -> None:
    model: type[BaseModel] = getattr(config, name)
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in TABLES[name].splitlines()[2:]]
    assert [row[0].strip("`") for row in rows] == list(model.model_fields)
    assert {row[0].strip("`"): row[1] for row in rows} == {key: default(model, key) for key in model.model_fields}
    assert all(len(row) == 3 and row[2] for row in rows)
