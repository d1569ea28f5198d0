"""Domains: two-sided linking with rank tables."""

from llm_datadist._domains.domains import MAX_DOMAINS, Domains

__all__ = ["MAX_DOMAINS", "Domains"]
