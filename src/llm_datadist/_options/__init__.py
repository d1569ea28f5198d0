"""Options: `LLMConfig` for callers; `parse` makes the `Config` of `settings` for the rest.

The only reader of the option dictionary and of the environment. `parse` and `settings` are not
imported here, to keep the import of the package short.

Source: api.md 3, 4.2.
"""

from llm_datadist._options.config import LLMConfig

__all__ = ["LLMConfig"]
