"""Which kinds of parallelism an engine may have."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llm_datadist.integrations.vllm.worker.worker import check_parallel


@pytest.mark.parametrize(
    ("sizes", "receives"),
    [
        ({}, True),
        ({"tensor_parallel_size": 4, "data_parallel_size": 2}, True),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, False),
    ],
)
def test_what_is_supported(sizes, receives):
    check_parallel(SimpleNamespace(**sizes), receives=receives)


@pytest.mark.parametrize(
    ("sizes", "receives", "text"),
    [
        ({"prefill_context_parallel_size": 2}, False, "prefill_context_parallel_size 2; use 1"),
        ({"decode_context_parallel_size": 4}, False, "decode_context_parallel_size 4; use 1"),
        (
            {"pipeline_parallel_size": 2},
            True,
            '"mode" is "push" and pipeline_parallel_size is 2.*write "mode": "pull"',
        ),
    ],
)
def test_what_is_not_supported_is_named(sizes, receives, text):
    with pytest.raises(ValueError, match=text):
        check_parallel(SimpleNamespace(**sizes), receives=receives)
