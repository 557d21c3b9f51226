"""Links between pages, and to headings, lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import ROOT, pages

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
FENCED = re.compile(r"^ *(```+).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
PAGES = pages()


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]+`", "", FENCED.sub("", text))


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as GitHub and mkdocs make it for plain text."""
    text = re.sub(r"[`*_]|\[|\]\([^)]*\)", "", heading).strip().lower()
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", text))


def anchors(page: Path) -> set[str]:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    return {anchor(match) for match in re.findall(r"^#+\s+(.+)$", text, re.MULTILINE)}


def broken(page: Path) -> list[str]:
    """Return the links of a page that lead nowhere."""
    bad = []
    for target in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (fragment and file.suffix == ".md" and fragment not in anchors(file)):
            bad.append(target)
    return bad


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert broken(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_one_title(page):
    assert len(re.findall(r"^# ", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)) == 1


def test_every_page_is_in_the_navigation():
    def leaves(node: object) -> list[str]:
        if isinstance(node, str):
            return [node]
        children = node.values() if isinstance(node, dict) else node
        return [leaf for child in children for leaf in leaves(child)]

    navigation = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    present = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert sorted(navigation) == sorted(present)


def test_a_broken_link_is_seen(tmp_path):
    (tmp_path / "other.md").write_text("# Other page\n\n## A `code` heading\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n[a](other.md#a-code-heading) [b](other.md#nowhere) [c](missing.md) `[d](no.md)`\n", encoding="utf-8"
    )
    assert broken(page) == ["other.md#nowhere", "missing.md"]
