"""Options: `LLMConfig` for callers, and the parsed `Config` for the rest of the package.

The only reader of the option dictionary and of the environment.

Source: api.md 3, 4.2.
"""

from llm_datadist._options.config import LLMConfig
from llm_datadist._options.parse import parse_options, parse_switch_options
from llm_datadist._options.settings import Backend, Config, Device, Pool

__all__ = [
    "Backend",
    "Config",
    "Device",
    "LLMConfig",
    "Pool",
    "parse_options",
    "parse_switch_options",
]
