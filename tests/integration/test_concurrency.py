"""Many transfers at once, and who does not hold them up: checklist items 51 and 52."""

import functools
import sys
import threading
import time

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
)
from llm_datadist.testing import PeerGroup
from support.instances import Side, finalize, link, pattern


def in_threads(*bodies):
    """Run bodies at once; raise what the first of them raised."""
    errors = []
    start = threading.Barrier(len(bodies))

    def run(body):
        try:
            start.wait(20)
            body()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_twelve_pushers_to_one_peer(backend):
    """Item 51: each writes its own blocks of one cache, again and again; no status but success."""
    target_side = Side(1, backend)
    pushers = [Side(number, backend, listen=False) for number in range(2, 14)]
    try:
        target = target_side.blocks(key=0, units=48)
        for pusher in pushers:
            link(pusher.instance, target_side.address)
        sources = [pusher.blocks(pusher.id, units=4) for pusher in pushers]

        def push(number):
            chosen = list(range(4 * number, 4 * number + 4))
            for turn in range(20):
                sources[number].data[:] = pattern((4, 4, 128), 100 * number + turn + 1)
                pushers[number].manager.push_blocks(
                    BlocksCacheKey(1), sources[number].cache, [0, 1, 2, 3], chosen
                )
                assert (target.data[:, chosen] == sources[number].data).all()

        in_threads(*(lambda number=number: push(number) for number in range(12)))
        for number, source in enumerate(sources):
            assert (target.data[:, 4 * number : 4 * number + 4] == source.data).all()
    finally:
        finalize(target_side, *pushers)


def test_pulls_and_pushes_at_once_on_one_link(sides):
    """Item 51: from both ends, by several threads each, small and large."""
    first, second = sides
    big = {"tensors": 2, "units": 16, "words": 8192}
    held = {}
    for side in sides:
        held[side.id, "source"] = side.blocks(side.id, key=0, **big)
        held[side.id, "target"] = side.blocks(key=1, **big)
        held[side.id, "slots"] = side.slots(10 + side.id, units=16, words=64)
    every = list(range(8))
    upper = list(range(8, 16))

    def pull(side, other):
        own = side.blocks(**big)
        for _ in range(12):
            own.data[:] = 0
            side.manager.pull_blocks(other.blocks_key(0), own.cache, every, upper)
            assert (own.data[:, upper] == held[other.id, "source"].data[:, every]).all()

    def push(side, other):
        source = held[side.id, "source"]
        for _ in range(12):
            side.manager.push_blocks(other.blocks_key(1), source.cache, every, upper)
            assert (held[other.id, "target"].data[:, upper] == source.data[:, every]).all()

    def pull_slots(side, other):
        own, remote = side.slots(words=64), held[other.id, "slots"]
        for turn in range(150):
            side.manager.pull_cache(remote.slot(turn % 16), own.cache, turn % 8)
            assert (own.data[:, turn % 8] == remote.data[:, turn % 16]).all()

    directions = ((first, second), (second, first))
    in_threads(
        *(
            lambda body=body, ends=ends: body(*ends)
            for body in (pull, push, pull_slots)
            for ends in directions
        )
    )


def test_registrations_during_transfers(sides):
    """Items 37 and 51: of other caches, at the owner; what is asked for is found every time."""
    owner, user = sides
    stop = threading.Event()
    source, target = owner.blocks(1, key=0), user.blocks()

    def register():
        number = 0
        while not stop.is_set():
            number += 1
            data = np.full((2, 2, 16), number, np.uint64)
            held = owner.slots(data=data, keys=[CacheKey(1, number)])
            own = user.slots(tensors=2, units=2, words=16)
            user.manager.pull_cache(CacheKey(1, number), own.cache)
            assert (own.data[:, 0] == number).all()
            owner.manager.unregister_cache(held.id)
            user.manager.unregister_cache(own.id)

    def pull():
        try:
            for turn in range(400):
                block = turn % 8
                user.manager.pull_blocks(owner.blocks_key(), target.cache, [block], [7 - block])
                assert (target.data[:, 7 - block] == source.data[:, block]).all()
        finally:
            stop.set()

    in_threads(register, pull)


class Ticking:
    """A Python thread that ticks while the GIL lets it, and notes the longest pause."""

    def __init__(self):
        self.longest = 0.0
        self._stop = threading.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        last = time.monotonic()
        while not self._stop.is_set():
            now = time.monotonic()
            self.longest = max(self.longest, now - last)
            last = now
            self._started.set()

    def __enter__(self):
        self._thread.start()
        self._started.wait()
        self.longest = 0.0
        return self

    def __exit__(self, *exc):
        self._stop.set()
        self._thread.join()


def lets_others_run(call):
    """Whether another thread ticked all through a call: in one of some tries, on busy cores."""
    for _ in range(10):
        with Ticking() as ticking:
            start = time.monotonic()
            call()
            took = time.monotonic() - start
        if ticking.longest < took / 2:
            return True
    return False


def own_blocks(member, backend, data, key=0):
    """Register a blocks cache in a peer process; return (instance, addresses)."""
    side = Side(1, backend)
    desc = CacheDesc(len(data), list(data.shape[1:]), DataType.DT_UINT64)
    side.manager.register_blocks_cache(
        desc, [tensor.ctypes.data for tensor in data], BlocksCacheKey(1, key)
    )
    member.set_event("address", list(side.address))
    return side


def serve_large(member, backend):
    data = pattern((2, 64, 65536), 1)
    side = own_blocks(member, backend, data)
    member.wait_end()
    finalize(side)


def test_the_gil_is_released_while_bytes_move(backend):
    """Item 52: another Python thread goes on during one call that takes a while."""
    with PeerGroup() as group:
        group.start(serve_large, backend)
        user = Side(2, backend, listen=False, sync_kv_timeout=30000)
        try:
            link(user.instance, group.wait_for("address"))
            held = user.blocks(tensors=2, units=64, words=65536)
            every = list(range(64))
            for operation in ("pull_blocks", "push_blocks"):
                call = getattr(user.manager, operation)
                call(BlocksCacheKey(1), held.cache, every, every)  # pages are there from now on
                arguments = (BlocksCacheKey(1), held.cache, every, every)
                assert lets_others_run(functools.partial(call, *arguments))
        finally:
            finalize(user)


def test_the_gil_is_released_while_waiting_for_a_frozen_peer(backend):
    """Item 52: a call that waits for its deadline holds up no other thread."""
    with PeerGroup() as group:
        peer = group.start(serve_large, backend)
        user = Side(2, backend, listen=False, sync_kv_timeout=100)
        try:
            link(user.instance, group.wait_for("address"))
            held = user.blocks(tensors=2, units=64, words=65536)
            peer.freeze()

            def push():
                with pytest.raises(RuntimeError, match="LLM_TIMEOUT"):
                    user.manager.push_blocks(BlocksCacheKey(1), held.cache, [0], [0])

            assert lets_others_run(push)
            peer.thaw()
        finally:
            finalize(user)


def busy_owner(member, backend):
    """Body: compute without ever giving the GIL away, until block 7 is written."""
    data = pattern((2, 8, 512), 1)
    side = own_blocks(member, backend, data)
    desc = CacheDesc(2, [2, 64], DataType.DT_UINT64)
    slots = pattern((2, 2, 64), 2)
    side.manager.register_cache(desc, [tensor.ctypes.data for tensor in slots], [CacheKey(1, 5)])
    member.wait_for("linked")
    member.set_event("busy")
    sys.setswitchinterval(1000)
    stop = time.monotonic() + 30
    while data[1, 7, 511] != 2**63 and time.monotonic() < stop:
        pass
    sys.setswitchinterval(0.005)
    member.set_event("seen", bool(data[1, 7, 511] == 2**63))
    member.wait_end()
    finalize(side)


def test_a_busy_interpreter_at_the_owner(backend):
    """Item 52: lookups, pulls of all kinds of keys, consumption, pushes: all are served."""
    with PeerGroup() as group:
        group.start(busy_owner, backend)
        user = Side(2, backend, listen=False, sync_kv_timeout=5000)
        try:
            link(user.instance, group.wait_for("address"))
            group.set_event("linked")
            group.wait_for("busy")
            held, slots = user.blocks(tensors=2, words=512), user.slots(tensors=2, words=64)
            manager = user.manager
            start = time.monotonic()
            manager.pull_blocks(BlocksCacheKey(1), held.cache, [1, 3], [1, 3])
            assert (held.data[:, [1, 3]] == pattern((2, 8, 512), 1)[:, [1, 3]]).all()
            manager.pull_cache(CacheKeyByIdAndIndex(1, 2, 1), slots.cache)
            assert (slots.data[:, 0] == pattern((2, 2, 64), 2)[:, 1]).all()
            manager.pull_cache(CacheKey(1, 5), slots.cache, 1)
            with pytest.raises(RuntimeError, match="LLM_KV_CACHE_NOT_EXIST"):
                manager.pull_cache(CacheKey(1, 5), slots.cache, 1)
            for _ in range(200):
                manager.push_blocks(BlocksCacheKey(1), held.cache, [2], [4])
            assert time.monotonic() - start < 5
            held.data[:, 0] = 2**63
            manager.push_blocks(BlocksCacheKey(1), held.cache, [0], [7])  # this ends its loop
            assert group.wait_for("seen")
        finally:
            finalize(user)
