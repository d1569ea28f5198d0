"""Options of `llm-datadist bench`: lists, and what is measured without them."""

import re

import pytest

from llm_datadist.cli.bench.options import options, preset_lines
from llm_datadist.cli.bench.plan import SWEEP
from llm_datadist.cli.bench.presets import PRESETS


def given(**changes):
    usual = {
        "paths": "same-host,tcp",
        "operations": "pull,push",
        "block_sizes": None,
        "presets": None,
        "prompts": None,
        "tp": None,
        "vs": "",
        "limits": True,
        "seconds": 60.0,
    }
    return options(**(usual | changes))


@pytest.mark.parametrize(
    ("changes", "sizes", "models", "prompts"),
    [
        ({}, list(SWEEP), ["llama-3.1-8b"], [2048]),
        ({"seconds": 10.0}, list(SWEEP), ["llama-3.1-8b"], [512]),
        ({"block_sizes": "1M,4K,4K"}, [4096, 1 << 20], [], []),
        ({"presets": "deepseek-v3"}, [], ["deepseek-v3"], [2048]),
        ({"prompts": "1k,300"}, [], ["llama-3.1-8b"], [1024, 300]),
        ({"block_sizes": "all", "tp": 2}, list(SWEEP), ["llama-3.1-8b"], [2048]),
        ({"presets": "all"}, [], list(PRESETS), [2048]),
    ],
)
def test_what_is_measured(changes, sizes, models, prompts):
    found = given(**changes)
    assert list(found.block_sizes) == sizes
    assert [each.name for each in found.presets] == models
    assert list(found.prompts) == prompts


def test_lists_are_in_a_fixed_order_where_that_matters():
    found = given(operations="push, pull", vs="nixl", paths="tcp,pool", tp=4)
    assert found.operations == ["pull", "push"]
    assert found.paths == ["tcp", "pool"]
    assert found.settings.rivals == ["nixl"]
    assert found.presets[0].tp == 4


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"paths": "udp"}, "--path udp: unknown; give some of same-host, pool, tcp"),
        ({"paths": ","}, "--path is empty; give names or numbers"),
        ({"operations": "swap"}, "--operation swap: unknown; give some of pull, push"),
        ({"vs": "gds"}, "--vs gds: unknown; give some of nixl, mooncake"),
        ({"block_sizes": "x"}, "--block-size: 'x' is no size"),
        ({"block_sizes": "12"}, "--block-size 12: give a multiple of 8 bytes"),
        ({"block_sizes": "1G"}, "--block-size 1G: give a multiple of 8 bytes"),
        ({"prompts": "0"}, "--prompt 0: give numbers of tokens from 1"),
        ({"prompts": "many"}, "--prompt many: give numbers of tokens"),
        ({"presets": "gpt-0"}, "--preset gpt-0: unknown; give one of"),
    ],
    ids=str,
)
def test_mistakes_are_named_with_the_remedy(changes, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        given(**changes)


def test_a_line_about_each_preset():
    lines = preset_lines().splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert "TP 1: 128 KiB for each token of a rank" in lines[0]
