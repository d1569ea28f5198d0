"""What is awaited by a deadline neither outlives it nor loses what it gave."""

from __future__ import annotations

import asyncio
import gc

import pytest

from llm_datadist._control.deadline import Deadline


def test_the_result_and_the_error_are_those_of_the_work():
    async def fails():
        raise KeyError("x")

    assert asyncio.run(Deadline(5).limit(asyncio.sleep(0, "done"))) == "done"
    with pytest.raises(KeyError):
        asyncio.run(Deadline(5).limit(fails()))


@pytest.mark.parametrize("seconds", [0.0, 0.02])
def test_work_past_the_deadline_is_cancelled_when_it_is_reported(seconds):
    ended = []

    async def lasts():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(Deadline(seconds).limit(lasts()))
    assert ended == [True]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("steps", range(6))
def test_nothing_is_lost_when_the_caller_is_cancelled_as_the_work_ends(fails, steps):
    """Whatever of the two comes first: what the work opened is given to the caller or closed."""
    opened, closed, given, reports = [], [], [], []

    async def work(ready):
        opened.append(True)
        try:
            await ready
        except BaseException:
            closed.append(True)
            raise
        return "socket"

    async def call(ready):
        given.append(await Deadline(9).limit(Deadline(9).limit(work(ready))))

    async def run():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reports.append(context["message"]))
        ready = loop.create_future()
        task = loop.create_task(call(ready))
        await asyncio.sleep(0.001)
        if fails:
            ready.set_exception(KeyError("x"))
        else:
            ready.set_result(None)
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    gc.collect()
    assert len(opened) == len(given) + len(closed) == 1
    assert not reports
