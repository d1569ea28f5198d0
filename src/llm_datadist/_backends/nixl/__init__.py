"""The NIXL data path: `NixlBackend`, and whether this host has what it is for."""

from __future__ import annotations

from llm_datadist._backends.nixl.backend import NixlBackend
from llm_datadist._backends.nixl.bindings import has_rdma

__all__ = ["NixlBackend", "has_rdma"]
