"""Signal handlers run while a transfer waits; what they raise ends it, quietly.

Each case is a process of its own, whose main thread transfers: only there handlers run.
"""

import os
import signal
import threading
import time

import pytest

from llm_datadist import BlocksCacheKey, LLMException
from llm_datadist.testing import PeerGroup
from support.instances import Side, finalize, link

SYNC_MS = 20_000
PROMPT_S = 1.0  # 0.2 s on a quiet machine
WORDS = 1 << 17
EVERY = list(range(8))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.expects_log("lane", "lost")]


class Stopped(BaseException):
    """What the handlers here raise."""


def stand(member, backend):
    """Body of the peer: a cache, which it reports on when asked."""
    side = Side(1, backend)
    held = side.blocks(1, key=0, words=WORDS)
    member.send(list(side.address))
    while member.receive(600) is not None:
        before = held.data.copy()
        time.sleep(0.5)
        member.send(bool((before == held.data).all()))
    finalize(side)


def interrupt(member, backend, number, call, address, react):
    """Body of the caller: make a call that cannot go on, and be interrupted."""
    side = Side(2, backend, listen=False, sync_kv_timeout=SYNC_MS, peer_timeout_ms=120_000)
    link(side.instance, tuple(address))
    held = side.blocks(3, words=WORDS)
    transfer = getattr(side.manager, call)
    transfer(BlocksCacheKey(1), held.cache, EVERY, EVERY)
    ran = []

    def handle(_number, _frame):
        ran.append(time.monotonic())
        if react == "finalize":
            side.instance.finalize()
        if react != "go on":
            raise Stopped

    signal.signal(number, handle)
    member.send("ready")
    assert member.receive() == "frozen"
    sent = []

    def send():
        time.sleep(0.3)
        sent.append(time.monotonic())
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    how = "returned"
    try:
        transfer(BlocksCacheKey(1), held.cache, EVERY, EVERY)
    except Stopped:
        how = "stopped"
    except LLMException as error:
        how = error.status_code.name
    ended = time.monotonic()
    before = held.data.copy()
    member.send([how, ran[0] - sent[0], ended - sent[0]])
    assert member.receive() == "thawed"
    time.sleep(0.5)
    assert (before == held.data).all()
    if react == "raise":  # the process and the link go on
        deadline = time.monotonic() + 10
        while True:
            try:
                transfer(BlocksCacheKey(1), held.cache, EVERY, EVERY)
                break
            except LLMException:
                assert time.monotonic() < deadline
    finalize(side)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(
    ("backend", "call"), [("tcp", "pull_blocks"), ("tcp", "push_blocks"), ("host", "push_blocks")]
)
def test_a_handler_that_raises_ends_the_call_and_nothing_lands(backend, call, number):
    how, ran, ended, quiet = play(backend, call, number, "raise")
    assert how == "stopped"
    assert ran < PROMPT_S
    assert ended < PROMPT_S
    assert quiet


def test_a_handler_that_returns_lets_the_call_go_on():
    how, ran, _, _ = play("tcp", "pull_blocks", signal.SIGTERM, "go on", thaws_first=True)
    assert how == "returned"
    assert ran < PROMPT_S


@pytest.mark.parametrize("backend", ["tcp", "host"])
def test_a_handler_may_finalize_the_instance_whose_call_it_interrupts(backend):
    how, ran, ended, quiet = play(backend, "push_blocks", signal.SIGTERM, "finalize")
    assert how == "stopped"
    assert ran < PROMPT_S
    assert ended < 3 * PROMPT_S
    assert quiet


def play(backend, call, number, react, thaws_first=False):
    """Freeze the peer, have the caller interrupted, thaw the peer: how and when it ended."""
    with PeerGroup(timeout_s=60) as group:
        peer = group.start(stand, backend)
        address = peer.receive()
        caller = group.start(interrupt, backend, number, call, address, react)
        assert caller.receive() == "ready"
        peer.freeze()
        caller.send("frozen")
        if thaws_first:
            time.sleep(1.5)
            peer.thaw()
        how, ran, ended = caller.receive()
        peer.thaw()
        peer.send("quiet?")
        quiet = peer.receive()
        caller.send("thawed")
        caller.wait()
        peer.send(None)
        peer.wait()
        return how, ran, ended, quiet


def test_a_long_read_on_the_same_host_is_interrupted():
    """Between parts: pulls of 256 MiB, one after the other."""
    with PeerGroup(timeout_s=60) as group:
        peer = group.start(hold_much)
        address = peer.receive()
        caller = group.start(read_much, address)
        how, ran = caller.receive()
        caller.wait()
        peer.send(None)
        peer.wait()
    assert how == "stopped"
    assert ran < PROMPT_S


def hold_much(member):
    side = Side(1, "host")
    side.blocks(1, key=0, words=1 << 20)
    member.send(list(side.address))
    member.receive(600)
    finalize(side)


def read_much(member, address):
    side = Side(2, "host", listen=False, sync_kv_timeout=SYNC_MS)
    link(side.instance, tuple(address))
    held = side.blocks(3, words=1 << 20)
    sent, ran = [], []

    def handle(_number, _frame):
        ran.append(time.monotonic())
        raise Stopped

    signal.signal(signal.SIGTERM, handle)

    def send():
        time.sleep(0.3)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()
    how = "returned"
    try:
        while not ran:
            side.manager.pull_blocks(BlocksCacheKey(1), held.cache, EVERY, EVERY)
    except Stopped:
        how = "stopped"
    member.send([how, ran[0] - sent[0]])
    finalize(side)
