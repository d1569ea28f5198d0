"""The facade of an instance: LLMDataDist."""

from llm_datadist._datadist.datadist import LLMDataDist

__all__ = ["LLMDataDist"]
