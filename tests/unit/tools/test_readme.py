"""A page in Chinese says what the English one says: headings, programs, tables, items and links."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ENGLISH = (ROOT / "README.md").read_text()
TRANSLATED = sorted([*ROOT.glob("*.zh-CN.md"), *(ROOT / "docs").rglob("*.zh-CN.md")])


def levels(text):
    return re.findall(r"^(#+) ", text, re.MULTILINE)


def code_blocks(text):
    return re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)


def tables(text):
    """Return the number of rows and columns of each table, and the names in each row."""
    rows = re.findall(r"^\|.*\|$", text, re.MULTILINE)
    return [(row.count("|"), sorted(re.findall(r"`[^`]+`", row))) for row in rows]


def items(text):
    return len(re.findall(r"^(?:\*|\d+\.) ", text, re.MULTILINE))


def links(text):
    """Return what the page leads to; a page in Chinese may lead to others in Chinese."""
    return sorted(re.findall(r"\]\(([^)]+)\)", text.replace(".zh-CN.md", ".md")))


@pytest.mark.parametrize("part", [levels, code_blocks, tables, items, links])
@pytest.mark.parametrize("page", TRANSLATED, ids=[path.name for path in TRANSLATED])
def test_both_languages_have_the_same(page, part):
    english = page.with_name(page.name.replace(".zh-CN", "")).read_text()
    assert part(page.read_text()) == part(english)
    assert levels(english)


def test_there_is_chinese():
    names = {path.name.partition(".")[0] for path in TRANSLATED}
    assert names >= {"README", "two-processes", "from-ascend"}


def test_how_to_install_is_in_the_first_ten_lines():
    assert any("pip install" in line for line in ENGLISH.splitlines()[:10])


def test_what_is_linked_exists():
    for target in set(links(ENGLISH)):
        if not target.startswith("http"):
            assert (ROOT / target.partition("#")[0]).exists(), target
