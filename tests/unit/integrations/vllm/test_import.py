"""vLLM is imported when the connector is asked for, and not before."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys

import pytest

MODULE = "llm_datadist.integrations.vllm"
LOOK = """
import sys
import llm_datadist.integrations.vllm, llm_datadist.integrations.vllm.worker.worker
assert not {"vllm", "torch"} & set(sys.modules)
"""


def test_the_package_imports_no_engine():
    subprocess.run([sys.executable, "-c", LOOK], check=True)


def test_without_vllm_the_connector_says_what_is_missing():
    module = importlib.import_module(MODULE)
    spec = importlib.util.find_spec("vllm")
    if spec is not None and spec.origin is not None:
        pytest.skip("vLLM is installed")
    with pytest.raises(ModuleNotFoundError, match="vllm"):
        _ = module.LLMDataDistConnector


def test_other_names():
    with pytest.raises(AttributeError, match="has no attribute 'Other'"):
        _ = importlib.import_module(MODULE).Other
