"""A log handler may call the library from any record: nothing is logged under a lock.

The library's own thread cannot wait for itself: a call there that would raises, with a remedy.
"""

import logging
import threading

import numpy as np
import pytest

from llm_datadist import BlocksCacheKey, LLMException, MemInfo, Memtype
from support.instances import Side, eventually, link
from support.setup import info_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60), pytest.mark.expects_log]


class Caller(logging.Handler):
    """Calls the public interface of some sides on every record."""

    def __init__(self, sides):
        super().__init__(logging.DEBUG)
        self._sides = sides
        self._busy = threading.local()
        self.refusals, self.lines = [], []

    def createLock(self):
        self.lock = None  # else a record of another thread waits for the calls below

    def emit(self, record):
        if getattr(self._busy, "now", False):
            return
        self._busy.now = True
        try:
            self.lines.append(record.getMessage())
            for side in self._sides:
                self._call_all(side)
        finally:
            self._busy.now = False

    def _call_all(self, side):
        instance, other = side.instance, 3 - side.id
        cache = side.held[0].cache
        for call in (
            lambda: instance.describe_link(other),
            instance.describe_relinks,
            lambda: instance.check_link_status(other),
            side.manager.faulted_ranges,
            lambda: side.manager.pull_blocks(BlocksCacheKey(other), cache, [0], [0]),
            lambda: instance.unlink_clusters([info_of(cluster_id=77)], 10),
        ):
            try:
                call()
            except LLMException as error:
                if "own thread" in str(error):
                    self.refusals.append(str(error))


@pytest.fixture
def calling():
    """Two sides whose log records call both of them."""
    sides = [Side(1, "tcp", sync_kv_timeout=500), Side(2, "tcp", sync_kv_timeout=500)]
    for side in sides:
        side.blocks(side.id, key=0)
    handler = Caller(sides)
    logger = logging.getLogger("llm_datadist")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    yield sides, handler
    logger.removeHandler(handler)
    logger.setLevel(level)
    for side in sides:
        side.instance.finalize()


def bounded(call, seconds=30):
    """Make a call on a thread of its own; fail when it does not come back."""
    done = []
    thread = threading.Thread(target=lambda: done.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it does not come back"
    assert done


def test_links_ends_and_faults(calling):
    (one, other), handler = calling

    def live():
        link(one.instance, other.address)
        one.manager.pull_blocks(BlocksCacheKey(2), one.held[0].cache, [1], [1])
        one.instance.unlink_clusters([info_of(cluster_id=2)], 2000)
        link(one.instance, other.address)
        far = one.instance._engine.links.get(2)
        one.instance._engine.links.drop(far, "a test")
        eventually(one.instance._engine.links.links, 10)
        one.blocks(7, key=0)  # takes the key from the first, which is logged in the registry
        with pytest.raises(LLMException):
            one.manager.remap_registered_memory(
                MemInfo(Memtype.MEM_TYPE_DEVICE, np.zeros(1).ctypes.data, 1)
            )
        return True

    bounded(live)
    text = "\n".join(handler.lines)
    for words in ("linked to cluster", "unlinked", "lost", "now names cache"):
        assert words in text, words
    assert handler.refusals
    assert "QueueHandler" in handler.refusals[0]


def test_finalize_on_the_librarys_own_thread_raises(calling):
    (one, other), _ = calling
    caught = []

    class Finalizer(logging.Handler):
        def emit(self, record):
            if threading.current_thread().name == "llm-datadist-control-1":
                try:
                    one.instance.finalize()
                except LLMException as error:
                    caught.append(str(error))

    handler = Finalizer()
    logging.getLogger("llm_datadist").addHandler(handler)
    try:
        bounded(lambda: link(one.instance, other.address) or True)
    finally:
        logging.getLogger("llm_datadist").removeHandler(handler)
    assert caught
    assert "own thread" in caught[0]
    assert one.instance.describe_link(2)["state"] == "LINKED"
