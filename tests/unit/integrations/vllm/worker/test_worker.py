"""Which kinds of parallelism an engine may have."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llm_datadist.integrations.vllm.worker.worker import check_parallel


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"tensor_parallel_size": 4, "data_parallel_size": 2},
        {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
    ],
)
def test_what_is_supported(sizes):
    check_parallel(SimpleNamespace(**sizes))


@pytest.mark.parametrize("option", ["prefill", "decode"])
def test_what_is_not_supported_is_named(option):
    sizes = {f"{option}_context_parallel_size": 2}
    with pytest.raises(ValueError, match=f"{option}_context_parallel_size 2; use 1"):
        check_parallel(SimpleNamespace(**sizes))
