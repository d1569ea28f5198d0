"""LLMDataDist, under the name of its own module.

Source: api.md 1.
"""

from llm_datadist._datadist import LLMDataDist

__all__ = ["LLMDataDist"]
