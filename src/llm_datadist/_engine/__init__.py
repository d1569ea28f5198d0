"""The engine: one transfer is resolve key -> plan -> backend -> wait -> status."""

from __future__ import annotations

from llm_datadist._engine.engine import Engine

__all__ = ["Engine"]
