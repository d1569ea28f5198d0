"""The control thread."""

from __future__ import annotations

import asyncio
import threading

import pytest

from llm_datadist._control.loop import ControlLoop
from llm_datadist._errors import LLMException, LLMStatusCode


@pytest.fixture
def loop():
    made = ControlLoop("test-control")
    made.start()
    yield made
    made.stop()
    made.workers.dismiss()


async def where():
    return threading.current_thread().name


def test_work_runs_on_the_loops_thread(loop):
    assert loop.run(where(), "where") == "test-control"


def test_an_exception_comes_back(loop):
    async def fail():
        raise KeyError("x")

    with pytest.raises(KeyError):
        loop.run(fail(), "fail")


def test_stopping_ends_what_runs_and_what_comes_after(loop):
    begun = threading.Event()
    outcomes = []

    async def forever():
        begun.set()
        await asyncio.Event().wait()

    def call():
        try:
            loop.run(forever(), "forever")
        except LLMException as error:
            outcomes.append(error)

    calling = threading.Thread(target=call, daemon=True)
    calling.start()
    assert begun.wait(5)
    loop.stop()
    loop.stop()
    calling.join(5)
    with pytest.raises(LLMException) as raised:
        loop.run(where(), "where")
    for error in (*outcomes, raised.value):
        assert error.status_code is LLMStatusCode.LLM_ENGINE_FINALIZED
    assert "forever failed" in str(outcomes[0])


@pytest.mark.expects_log("a task of the control plane failed")
def test_a_background_task_that_fails_is_logged(loop):
    async def fail():
        raise KeyError("x")

    async def spawn():
        await asyncio.wait([loop.spawn(fail())])

    loop.run(spawn(), "spawn")
