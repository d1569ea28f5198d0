"""The reference pages say what the package does."""

import re
from pathlib import Path

import pytest

import llm_datadist
from llm_datadist import LLMConfig, LLMStatusCode

PAGES = Path(__file__).parents[2] / "docs" / "reference"
OPTIONS = (PAGES / "options.md").read_text()
ROWS = re.findall(r"^\| `(\w+)`([^|]*)\|[^|]*\| `([\w.]+)` \| (.*) \|$", OPTIONS, re.MULTILINE)
CODES = (PAGES / "status-codes.md").read_text()


def test_every_option_has_a_row():
    assert sorted(name for name, *_ in ROWS) == sorted(LLMConfig._properties)


@pytest.mark.parametrize(("name", "mark", "key", "text"), ROWS)
def test_an_option_is_what_its_row_says(name, mark, key, text):
    item = LLMConfig.__dict__[name]
    assert item.key == key
    assert ("(ext.)" in mark) is ("*(extension)*" in item.__doc__)
    assert item.__doc__.replace(" *(extension)*", "").replace("|", "\\|") == text


def test_every_environment_variable_is_named():
    from llm_datadist._options import keys

    names = [value for name, value in vars(keys).items() if name.startswith("ENV_")]
    assert names
    assert [name for name in names if f"`{name}`" not in OPTIONS] == []


def test_every_status_code_is_explained_once():
    raised = re.findall(r"^\| (LLM_\w+) \|", CODES, re.MULTILINE)
    (others,) = re.findall(r"Never raised;[^\n]*: (.*?)\.\n\n", CODES, re.DOTALL)
    named = raised + re.findall(r"LLM_\w+", others)
    codes = {code.name for code in LLMStatusCode} - {"LLM_SUCCESS"}
    assert sorted(named) == sorted(codes)


def test_what_is_added_exists():
    """The names of the parity page's last table."""
    added = (PAGES / "parity.md").read_text().partition("## Added")[2]
    for kind in ("LLMDataDist", "CacheDesc", "Cache", "CacheManager", "CacheTask"):
        (row,) = re.findall(rf"^\| `{kind}` \| (.*) \|$", added, re.MULTILINE)
        for name in re.findall(r"`(\w+)(?:\([\w, ]*\))?`", row):
            assert hasattr(getattr(llm_datadist, kind), name), (kind, name)
