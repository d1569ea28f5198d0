"""Element types, under the name of their own module.

Source: api.md 1.
"""

from llm_datadist._types import DataType

__all__ = ["DataType"]
