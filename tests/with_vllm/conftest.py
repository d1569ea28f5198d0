"""Tests with stock vLLM: `make test-vllm`, in an environment of its own; else none is collected.

Engines take long to start and much memory, so one pair serves all tests of a module.
"""

from __future__ import annotations

import importlib.util

import pytest

_spec = importlib.util.find_spec("vllm")
if _spec is None or _spec.origin is None:  # a folder of this name is not it
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Path of a tiny model with random weights."""
    from support.vllm.engines import make_model

    return make_model(tmp_path_factory.mktemp("model"))
