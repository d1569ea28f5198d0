"""Pages whose code needs torch, which this environment has; see support.pages."""

import pytest

from support.page_runs import NEED_TORCH, run_page
from support.pages import ROOT, Page


@pytest.mark.parametrize("name", NEED_TORCH)
def test_the_blocks_run(name, tmp_path, monkeypatch):
    page = Page(ROOT / name)
    run_page(page, tmp_path, monkeypatch)
    assert [block.place for block in page.left()] == []
