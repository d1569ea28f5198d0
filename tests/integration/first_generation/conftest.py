"""A prompt and a decoder in one process, linked for a module."""

import contextlib
import gc

import pytest

from llm_datadist import CacheKey, LLMRole
from support.first_generation import link, started


@pytest.fixture(scope="module")
def linked():
    """A PROMPT, cluster 1, and a DECODER, cluster 2."""
    with contextlib.ExitStack() as stack:
        prompt = stack.enter_context(started(LLMRole.PROMPT, 1))
        decoder = stack.enter_context(started(LLMRole.DECODER, 2))
        link(decoder, prompt)
        yield prompt, decoder


@pytest.fixture
def managers(linked):
    """The two managers of caches; what keys hold ends with the test."""
    yield tuple(instance.kv_cache_manager for instance in linked)
    prompt, _ = linked
    gc.collect()  # tracebacks of expected errors hold caches
    for req_id, model_id, prefix_id in list(prompt._engine.registry._tables.keys):
        prompt.kv_cache_manager.remove_cache_key(CacheKey(1, req_id, model_id, prefix_id))


@pytest.fixture
def instance():
    """Make instances, which are finalized with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **named: stack.enter_context(started(*args, **named))
