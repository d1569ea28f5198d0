"""NIXL backends for tests."""

import importlib.util
import time

import pytest

HAS_NIXL = any(importlib.util.find_spec(name) for name in ("nixl_cu12", "nixl_cu13"))
NEEDS_NIXL = pytest.mark.skipif(not HAS_NIXL, reason="no nixl wheel: pip install nixl-cu12")


def make_nixl(node):
    """Return a backend that uses the engine for transfers of all sizes."""
    from llm_datadist._backends.nixl.backend import NixlBackend

    backend = NixlBackend(node, small_bytes=0)
    wait_for_trial([backend])
    return backend


def wait_for_trial(backends):
    """Wait until the trial process is ready, so that its start does not count against deadlines."""
    for backend in backends:
        if backend.name == "nixl":
            assert backend._trial.loaded("", [], time.monotonic() + 60) == (0, "")
