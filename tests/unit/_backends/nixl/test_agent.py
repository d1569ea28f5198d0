"""The end of an agent, as threads see it that come while it is on its way."""

from __future__ import annotations

import threading
import time

import pytest

from llm_datadist._backends.nixl.agent import Agent, NixlError


class Module:
    DRAM_SEG = VRAM_SEG = NIXL_INIT_AGENT = 0
    NIXL_IN_PROG, NIXL_SUCCESS = 1, 2


class FakeBindings:
    """Makes an agent that takes its time to look at a transfer, and to go."""

    module = Module

    def __init__(self):
        self.looking, self.look_on = threading.Event(), threading.Event()
        self.gone = threading.Event()

    def make_agent(self, name, engine, params):
        bindings = self

        class Made:
            def getXferStatus(self, handle):
                bindings.looking.set()
                assert bindings.look_on.wait(10)

            def releaseXferReq(self, handle):
                pass

            def __del__(self):
                time.sleep(0.05)
                bindings.gone.set()

        return Made(), 0


@pytest.fixture
def bindings():
    return FakeBindings()


def test_nobody_hears_of_the_end_before_the_engine_is_gone(bindings):
    """A fence, or the answer that a read is over, must not come while the engine still moves."""
    agent = Agent(bindings, "a", "UCX", {})
    seen = []

    def ended(call):
        call()
        seen.append(bindings.gone.is_set())

    def ask():
        assert agent.state(1) is False

    def look():
        assert agent.state(1) is False  # not a success; who asked was there before the end

    first = threading.Thread(target=look)
    first.start()
    assert bindings.looking.wait(5)
    others = [threading.Thread(target=ended, args=(agent.close,))]
    others[0].start()
    while not agent.closed:
        time.sleep(0.001)
    others += [threading.Thread(target=ended, args=(call,)) for call in (agent.close, ask)]
    for thread in others[1:]:
        thread.start()
    time.sleep(0.1)
    assert seen == []
    bindings.look_on.set()
    for thread in (first, *others):
        thread.join(5)
    assert seen == [True, True, True]
    with pytest.raises(NixlError, match="closed"):
        agent.connection_metadata()
