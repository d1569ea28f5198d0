"""The engine of one instance: transfers, leases, registered memory, data planes of links."""

from __future__ import annotations

from llm_datadist._engine.engine import Engine

__all__ = ["Engine"]
