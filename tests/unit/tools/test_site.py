"""The site has every page, and a description of every public name."""

import re
from pathlib import Path

import llm_datadist

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"


def test_every_page_is_in_the_navigation():
    listed = re.findall(
        r"- (?:[\w -]+: )?([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE
    )
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_every_public_name_has_a_description():
    pages = "".join(page.read_text() for page in (DOCS / "reference/python").glob("*.md"))
    described = set(re.findall(r"^::: llm_datadist\.(\w+)$", pages, re.MULTILINE))
    same = {"LlmConfig", "KvCache"}  # other names of LLMConfig and Cache
    assert set(llm_datadist.__all__) - same <= described
