"""Events that links have in numbers: as those of the standard library, and small."""

import asyncio
import signal
import threading
import tracemalloc

import pytest

from llm_datadist._control.events import LoopEvent, ThreadEvent

EVENTS = 100


@pytest.mark.parametrize("kind", [LoopEvent, ThreadEvent])
def test_an_event_for_which_nothing_waits_is_small(kind):
    kept = [None] * EVENTS
    tracemalloc.start()
    try:
        for i in range(EVENTS):
            kept[i] = kind()
            kept[i].set()
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size / EVENTS < 130


def test_a_coroutine_waits_until_the_event_is_set():
    async def run():
        event = LoopEvent()
        waiting = [asyncio.ensure_future(event.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        assert not event.is_set()
        assert not any(each.done() for each in waiting)
        event.set()
        event.set()
        await asyncio.wait_for(asyncio.gather(*waiting), 5)
        assert event.is_set()
        await asyncio.wait_for(event.wait(), 5)

    asyncio.run(run())


def test_an_event_that_was_cleared_is_waited_for_again():
    async def run():
        event = LoopEvent()
        early = asyncio.ensure_future(event.wait())
        await asyncio.sleep(0)
        event.clear()  # it was not set: `early` still waits for it
        event.set()
        event.clear()
        assert not event.is_set()
        await asyncio.wait_for(early, 5)
        late = asyncio.ensure_future(event.wait())
        await asyncio.sleep(0)
        assert not late.done()
        event.set()
        await asyncio.wait_for(late, 5)

    asyncio.run(run())


def test_a_wait_that_is_canceled_leaves_the_event_to_others():
    async def run():
        event = LoopEvent()
        waiting = [asyncio.ensure_future(event.wait()) for _ in range(2)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        event.set()
        await asyncio.wait_for(waiting[1], 5)

    asyncio.run(run())


def test_threads_wait_until_the_event_is_set():
    event = ThreadEvent()
    assert not event.wait(0)
    woken = []
    threads = [threading.Thread(target=lambda: woken.append(event.wait(30))) for _ in range(3)]
    for thread in threads:
        thread.start()
    event.set()
    for thread in threads:
        thread.join(30)
    assert woken == [True] * 3
    assert event.is_set()
    assert event.wait()


def test_a_wait_ends_by_the_signal_handler_that_interrupts_it():
    event = ThreadEvent()
    own, woken = threading.main_thread().ident, threading.Event()

    def interrupt():
        while not event._gates and not woken.wait(0.001):
            pass
        signal.pthread_kill(own, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: event.set())
    thread = threading.Thread(target=interrupt)
    try:
        thread.start()
        assert event.wait(30)
    finally:
        woken.set()
        thread.join(30)
        signal.signal(signal.SIGUSR1, before)
    assert event._gates == []


def test_a_wait_that_times_out_leaves_nothing():
    event = ThreadEvent()
    assert not event.wait(0.001)
    assert not event.wait(-1)
    assert event._gates == []
