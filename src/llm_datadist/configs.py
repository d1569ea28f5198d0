"""Configuration, under the name of its own module.

Source: api.md 1.
"""

from llm_datadist._options import LLMConfig
from llm_datadist._types import LLMClusterInfo, LLMRole

__all__ = ["LLMClusterInfo", "LLMConfig", "LLMRole", "LlmConfig"]

LlmConfig = LLMConfig
