"""What becomes of a blocking call when the coroutine that awaits it is canceled."""

import asyncio
import threading
import time

import pytest

from llm_datadist._backends.cancellation import Canceled, check_canceled
from llm_datadist.aio.calls import Calls, until_done


@pytest.fixture
def calls():
    made = Calls("test", 2)
    yield made
    made.close()


class Transfer:
    """A blocking call that ends when it is canceled, or told to."""

    def __init__(self, result="moved"):
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.result = result
        self.how = "running"

    def __call__(self):
        self.begun.set()
        try:
            end = time.monotonic() + 10
            while not self.may_end.wait(0.001):
                check_canceled()
                assert time.monotonic() < end, "neither canceled nor told to end"
        except Canceled:
            self.how = "canceled"
            raise
        self.how = "ended"
        return self.result


async def begun(transfer):
    await asyncio.get_running_loop().run_in_executor(None, transfer.begun.wait)


def test_a_result_and_an_exception_are_handed_on(calls):
    async def main():
        assert await calls.transfer(lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            await calls.transfer(lambda: 1 // 0)

    asyncio.run(main())


def test_a_canceled_wait_ends_when_the_transfer_has_ended(calls):
    async def main():
        transfer = Transfer()
        waiting = asyncio.create_task(calls.transfer(transfer))
        await begun(transfer)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert transfer.how == "canceled"
        assert await calls.transfer(lambda: "the thread is free") == "the thread is free"

    asyncio.run(main())


def test_a_wait_that_is_canceled_again_goes_on_waiting(calls):
    async def main():
        may_end, held = threading.Event(), threading.Event()

        def stubborn():
            held.set()
            may_end.wait(10)

        waiting = asyncio.create_task(calls.transfer(stubborn))
        await asyncio.get_running_loop().run_in_executor(None, held.wait)
        for _ in range(3):
            waiting.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not waiting.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())


def test_a_transfer_that_has_not_begun_never_begins(calls):
    async def main():
        running = [Transfer(), Transfer()]
        first = [asyncio.create_task(calls.transfer(transfer)) for transfer in running]
        for transfer in running:
            await begun(transfer)
        queued = Transfer()
        third = asyncio.create_task(calls.transfer(queued))
        await asyncio.sleep(0)
        third.cancel()
        with pytest.raises(asyncio.CancelledError):
            await third
        for transfer in running:
            transfer.may_end.set()
        assert await asyncio.gather(*first) == ["moved", "moved"]
        assert queued.how == "running"
        assert not queued.begun.is_set()

    asyncio.run(main())


def test_the_result_of_a_canceled_short_call_is_undone(calls):
    async def main():
        call, undone = Transfer("made"), []
        waiting = asyncio.create_task(calls.finish(call, undone.append))
        await begun(call)
        waiting.cancel()
        await asyncio.sleep(0)
        call.may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (call.how, undone) == ("ended", ["made"])
        assert await calls.finish(lambda: 3, undone.append) == 3
        assert undone == ["made"]

    asyncio.run(main())


def test_an_undo_runs_also_if_the_wait_is_canceled_again(calls):
    async def main():
        call, undo = Transfer("made"), Transfer()
        waiting = asyncio.create_task(calls.finish(call, lambda _: undo()))
        await begun(call)
        waiting.cancel()
        await asyncio.sleep(0)
        call.may_end.set()
        await begun(undo)
        for _ in range(3):
            waiting.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not waiting.done()
        undo.may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert undo.how == "ended"

    asyncio.run(main())


def test_a_canceled_wait_is_canceled_also_if_its_undo_fails(calls):
    async def main():
        call = Transfer()
        waiting = asyncio.create_task(calls.finish(call, lambda _: 1 // 0))
        await begun(call)
        waiting.cancel()
        await asyncio.sleep(0)
        call.may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())


def test_calls_that_wait_for_a_thread_end_as_calls_when_the_node_is_closed(calls):
    """Not as canceled waits: a task group would pass over them."""

    async def main():
        running = [Transfer(), Transfer()]
        tasks = [asyncio.create_task(calls.transfer(transfer)) for transfer in running]
        for transfer in running:
            await begun(transfer)
        queued = asyncio.create_task(calls.transfer(lambda: 1 // 0))
        await asyncio.sleep(0)
        closing = asyncio.get_running_loop().run_in_executor(None, calls.close)
        for transfer in running:
            transfer.may_end.set()
        assert await asyncio.gather(*tasks) == ["moved", "moved"]
        with pytest.raises(ZeroDivisionError):
            await queued
        await closing
        with pytest.raises(RuntimeError, match="node 'test' is closed"):
            await calls.transfer(lambda: 1)

    asyncio.run(main())


def test_a_close_that_is_canceled_goes_on_to_its_end():
    async def main():
        closing = Transfer()
        running = asyncio.get_running_loop().run_in_executor(None, closing)
        waiting = asyncio.create_task(until_done(running))
        await begun(closing)
        waiting.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        closing.may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert closing.how == "ended"

    asyncio.run(main())


@pytest.mark.parametrize(("max_calls", "error"), [(0, ValueError), ("2", TypeError)])
def test_there_is_at_least_one_thread(max_calls, error):
    with pytest.raises(error, match="max_calls"):
        Calls("test", max_calls)
