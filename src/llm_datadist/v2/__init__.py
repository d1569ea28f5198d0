"""The cache-manager generation by module: llm_types, llm_datadist, cache_manager.

Source: api.md 1.
"""
