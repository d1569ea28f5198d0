"""CacheManager, under the name of its own module.

Source: api.md 1.
"""

from llm_datadist._cache_manager import CacheManager

__all__ = ["CacheManager"]
