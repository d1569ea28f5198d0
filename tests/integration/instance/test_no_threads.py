"""A process that gets no more threads."""

import threading

import pytest

from llm_datadist import LLMException, LLMStatusCode


def test_init_names_the_limit_and_leaves_nothing_behind(instance, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(LLMException, match=r"can't start new thread.*ulimit -u") as caught:
            instance(1)
    assert caught.value.status_code is LLMStatusCode.LLM_FAILED
    instance(2)
