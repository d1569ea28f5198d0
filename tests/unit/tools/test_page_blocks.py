"""Every code block of every page runs, or says why it does not."""

import re

import pytest

from support.page_runs import run_page
from support.pages import FENCE, INDENTED, ROOT, Page, pages, parse

PAGES = {str(path.relative_to(ROOT)): path for path in pages()}
# The code of a page in Chinese is that of the English one, see test_readme.
WITH_CODE = [
    name for name, path in PAGES.items() if Page(path).left() and not name.endswith(".zh-CN.md")
]


@pytest.mark.slow
@pytest.mark.expects_log("met a fault in local memory")  # in the page about memory faults
@pytest.mark.parametrize("name", WITH_CODE)
def test_the_blocks_run(name, tmp_path, monkeypatch):
    page = Page(PAGES[name])
    run_page(page, tmp_path, monkeypatch)
    assert [block.place for block in page.left()] == []


@pytest.mark.parametrize("name", PAGES)
def test_the_blocks_of_a_page(name):
    """Each has a language, can be parsed, and is in the test that it names."""
    text = PAGES[name].read_text()
    blocks = Page(PAGES[name]).blocks
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(blocks), "give it a language"
    assert INDENTED.findall(FENCE.sub("", text)) == [], "put code into a fence with a language"
    for block in blocks:
        parse(block)
        test = (ROOT / block.by).read_text() if block.by else PAGES[name].stem
        assert PAGES[name].stem in test, f"{block.place}: {block.by} does not run it"


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Make a page of a text."""
    monkeypatch.setattr("support.pages.ROOT", tmp_path)

    def make(text):
        path = tmp_path / "page.md"
        path.write_text(text)
        return Page(path)

    return make


def test_blocks_without_a_mark_are_left(page):
    made = page(
        "```python\n1\n```\n"
        '```sh title="not tested: needs root"\nreboot\n```\n'
        "<!-- tested by a_test.py -->\n```python\n2\n```\n"
        "```text\n3\n```\n```sh\nls\n```\n"
    )
    assert [block.place for block in made.left()] == ["page.md:1", "page.md:14"]


def test_a_command_that_no_test_can_run_needs_a_mark(page):
    with pytest.raises(AssertionError, match=r"page\.md:1: a test cannot run 'reboot'"):
        page("```sh\nreboot\n```\n").run({})


def test_output_is_compared(page):
    text = '```python\nprint("a", b)\n```\n\n```text title="output"\na 1\n```\n'
    page(text).run({"b": 1})
    with pytest.raises(AssertionError, match=r"page\.md:5"):
        page(text).run({"b": 2})


def test_an_error_names_the_line_of_the_page(page):
    with pytest.raises(ZeroDivisionError) as caught:
        page("# Title\n\n```python\n\n1 / 0\n```\n").run({})
    assert str(caught.traceback[-1].path).endswith("page.md:3")
    assert caught.traceback[-1].lineno + 1 == 5


@pytest.mark.parametrize("kind", ["python", "sh", "json"])
def test_a_block_that_is_no_code_of_its_language(page, kind):
    with pytest.raises((SyntaxError, ValueError, AssertionError)):
        parse(page(f'```{kind} title="not tested: why"\n( [\n```\n').blocks[0])
