"""LLMDataDist of the first generation, under the name of its own module.

Source: api.md 8.
"""

from llm_datadist._datadist import LLMDataDist

__all__ = ["LLMDataDist"]
