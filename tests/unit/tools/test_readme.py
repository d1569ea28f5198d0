"""README.zh-CN.md says what README.md says: the same headings, programs, tables and links."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ENGLISH = (ROOT / "README.md").read_text()
CHINESE = (ROOT / "README.zh-CN.md").read_text()


def levels(text):
    return re.findall(r"^(#+) ", text, re.MULTILINE)


def code_blocks(text):
    return re.findall(r"^```.*?^```$|^    \S[^\n]*$", text, re.MULTILINE | re.DOTALL)


def tables(text):
    """Return the number of rows and columns of each table, and the names in each row."""
    rows = re.findall(r"^\|.*\|$", text, re.MULTILINE)
    return [(row.count("|"), sorted(re.findall(r"`[^`]+`", row))) for row in rows]


def items(text):
    return len(re.findall(r"^\* ", text, re.MULTILINE))


def links(text):
    return sorted(re.findall(r"\]\(([^)]+)\)", text))


@pytest.mark.parametrize("part", [levels, code_blocks, tables, items, links])
def test_both_languages_have_the_same(part):
    assert part(CHINESE) == part(ENGLISH)
    assert part(ENGLISH)


def test_how_to_install_is_in_the_first_ten_lines():
    assert any("pip install" in line for line in ENGLISH.splitlines()[:10])


def test_what_is_linked_exists():
    for target in set(links(ENGLISH)):
        if not target.startswith("http"):
            assert (ROOT / target.partition("#")[0]).exists(), target
