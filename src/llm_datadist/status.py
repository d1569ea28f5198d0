"""Status codes, under the name of their own module.

Source: api.md 1.
"""

from llm_datadist._errors import LLMException, LLMStatusCode, Status

__all__ = ["LLMException", "LLMStatusCode", "Status"]
