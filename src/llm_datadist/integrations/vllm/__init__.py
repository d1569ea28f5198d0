"""vLLM connector: disaggregated prefill over llm_datadist on stock vLLM.

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "LLMDataDistConnector",
        "kv_connector_module_path": "llm_datadist.integrations.vllm", "kv_role": "kv_producer"}'

vLLM is imported when `LLMDataDistConnector` is first asked for. See docs/howto/vllm.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_datadist.integrations.vllm.connector import LLMDataDistConnector

__all__ = ["LLMDataDistConnector"]


def __getattr__(name: str) -> object:
    if name == "LLMDataDistConnector":
        from llm_datadist.integrations.vllm.connector import (  # noqa: PLC0415 - needs vLLM
            LLMDataDistConnector,
        )

        return LLMDataDistConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
