"""Reads from another process on this host that something ends while they run."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from llm_datadist import _native

pytestmark = pytest.mark.slow  # each test starts a process


class Background(threading.Thread):
    """Repeats a large read until it fails, and looks at what each brought."""

    def __init__(self, at, check=lambda: None, **changes):
        super().__init__()
        self.at = at
        self.check = check
        self.changes = changes
        self.began = threading.Event()
        self.outcome = None
        self.start()

    def run(self):
        while True:
            self.outcome = self.at.read(**self.changes)
            self.began.set()
            if self.outcome[0] != _native.OK:
                return
            self.check()

    def ends_with(self):
        self.join(10)
        assert not self.is_alive()
        return self.outcome[0]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("close peer object", _native.CANCELLED),
        ("close own entry", _native.LOCAL_GONE),
        ("close own node", _native.CLOSED),
        ("close remote entry", _native.GONE),
        ("kill", _native.PEER_DEAD),
    ],
)
def test_a_running_read_is_stopped_and_then_writes_nothing(reading, how, code):
    at = reading(8192)
    running = Background(at)
    assert running.began.wait(10)
    if how == "close peer object":
        at.host.close()
    elif how == "close own entry":
        assert at.node.close_entry(*at.local_ref)
    elif how == "close own node":
        at.node.close()
    elif how == "close remote entry":
        assert at.peer.ask("close_entry", *at.peer.entry)
    else:
        at.peer.process.kill()
    if how in {"close peer object", "close own entry"}:
        at.write_all(255)  # those calls return only when nothing is written any more
    assert running.ends_with() == code
    if how not in {"close peer object", "close own entry"}:
        at.write_all(255)
    assert (at.own.bytes == 255).all()


@pytest.mark.usefixtures("two_threads")
def test_an_entry_is_not_written_once_its_close_has_returned(reading):
    at = reading(8192)
    spots = at.own.bytes[:: 16 * at.own.page]  # some of them in what is being written then
    for moment in range(12):
        running = Background(at)
        assert running.began.wait(10)
        time.sleep(moment / 2000)
        assert at.node.close_entry(*at.local_ref)
        spots[:] = 255
        assert running.ends_with() == _native.LOCAL_GONE
        assert (spots == 255).all()
        at.local_ref = at.node.open_entry(
            at.tools.u64(at.own.address), at.tools.u64(at.own.size), True
        )


def test_a_read_is_void_when_the_owner_uses_the_memory_again_before_its_end(reading):
    """One batch, which has begun while the entry was open."""
    before = _native.threads()
    _native.set_threads(1)
    try:
        at = reading(1000)
        expected = at.expected()[:: at.own.page]
        wrong = []

        def check():
            wrong.extend(np.flatnonzero(at.own.bytes[:: at.own.page] != expected))

        for moment in range(12):
            running = Background(at, check)
            assert running.began.wait(10)
            time.sleep(moment / 5000)
            assert at.peer.ask("close_entry_and_reuse", *at.peer.entry)
            assert running.ends_with() == _native.GONE
            assert not wrong
            at.peer.entry = tuple(at.peer.ask("restore_and_open_entry"))
    finally:
        _native.set_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_closing_an_entry_waits_for_one_batch_only(reading):
    at = reading(16384)
    running = Background(at)
    assert running.began.wait(10)
    before = time.monotonic()
    assert at.node.close_entry(*at.local_ref)
    assert time.monotonic() - before < 1.0
    assert running.ends_with() == _native.LOCAL_GONE
