"""The NIXL data path."""

from __future__ import annotations

from llm_datadist._backends.nixl.backend import NixlBackend
from llm_datadist._backends.nixl.bindings import has_rdma

__all__ = ["NixlBackend", "has_rdma"]
