"""Instances through the public interface, in this process and in processes of their own."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import NamedTuple

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    DataType,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
)
from llm_datadist.testing import PeerGroup
from support.setup import LOOPBACK, info_of, options_of
from support.world import World


class Tensors(NamedTuple):
    """A registered blocks cache and the memory behind it."""

    cache: Cache
    memory: np.ndarray


def register_blocks(instance, value, key=None, *, num_blocks=8):
    """Register two tensors of blocks of 1 KiB, filled with a value; the key is the instance's."""
    memory = np.full((2, num_blocks, 256), value, np.float32)
    desc = CacheDesc(2, [num_blocks, 256], DataType.DT_FLOAT)
    cache = instance.cache_manager.register_blocks_cache(
        desc,
        [tensor.ctypes.data for tensor in memory],
        BlocksCacheKey(instance.cluster_id) if key is None else key,
    )
    return Tensors(cache, memory)


def serve(near_end, cluster_id, options, value):
    """Body of a peer: an instance with one blocks cache, which then executes commands."""
    with LLMDataDist(LLMRole.PROMPT, cluster_id) as instance:
        instance.init(options)
        _, memory = register_blocks(instance, value)
        near_end.send(list(instance.listen_address))
        while True:
            command, *arguments = near_end.receive()
            near_end.send(_done(instance, memory, command, arguments))


def _done(instance, memory, command, arguments):
    try:
        match command:
            case "link":
                return instance.link_clusters([info_of(arguments)])[0].name
            case "check":
                instance.check_link_status(*arguments)
            case "finalize":
                instance.finalize()
            case "first":
                return float(memory[0, 0, 0])
    except LLMException as error:
        return error.status_code.name
    return "done"


class Remote:
    """An instance in a process of its own."""

    def __init__(self, group, cluster_id, value, options):
        self.cluster_id = cluster_id
        self.peer = group.start(serve, cluster_id, options, value)
        self.listen_address = tuple(self.peer.receive())

    def ask(self, *command):
        self.peer.send(list(command))
        return self.peer.receive()

    def kill(self):
        self.peer.kill()
        self.peer.wait()


@pytest.fixture(scope="session")
def options():
    return options_of


@pytest.fixture(scope="session")
def info():
    return info_of


@pytest.fixture(scope="module")
def world(options, info):
    """Two linked instances with caches, and good arguments of every method."""
    made = World(options, info)
    yield made
    made.close()


@pytest.fixture
def blocks():
    """Register blocks caches whose memory lives as long as the test."""
    kept = []

    def register(*arguments, **named):
        kept.append(register_blocks(*arguments, **named))
        return kept[-1]

    return register


@pytest.fixture
def instance(blocks):
    """Make initialized instances, which are finalized with the test."""
    with contextlib.ExitStack() as stack:

        def make(cluster_id=1, role=LLMRole.MIX, **properties):
            made = stack.enter_context(LLMDataDist(role, cluster_id))
            made.init(options_of(**properties))
            return made

        yield make


@pytest.fixture
def pair(instance):
    """Two linked instances: cluster 1, which accepted, and cluster 2, which dialled."""
    near, far = instance(1), instance(2)
    assert far.link_clusters([info_of(near)]) == (
        LLMStatusCode.LLM_SUCCESS,
        [LLMStatusCode.LLM_SUCCESS],
    )
    return near, far


@pytest.fixture
def remote():
    """Start instances in processes of their own, which end with the test."""
    with PeerGroup() as group:

        def start(cluster_id=9, value=9.0, **properties):
            return Remote(group, cluster_id, value, options_of(**properties))

        yield start
        for peer in group.peers:  # a frozen one could not end
            if peer.exit is None:
                peer.thaw()


@pytest.fixture
def black_hole():
    """An address where only the kernel accepts connections."""
    with socket.create_server((LOOPBACK, 0)) as sock:
        yield sock.getsockname()


@pytest.fixture
def refusing():
    """An address that is taken, where nothing listens."""
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        yield sock.getsockname()


class Background(threading.Thread):
    """Calls something on a thread of its own; `result()` is what it returned or raised."""

    def __init__(self, call):
        super().__init__(daemon=True)
        self._call = call
        self._outcome = None
        self.ended_at = None
        self.start()

    def run(self):
        try:
            self._outcome = self._call()
        except Exception as error:
            self._outcome = error
        self.ended_at = time.monotonic()

    def result(self, seconds=10.0):
        self.join(seconds)
        assert not self.is_alive(), "the call has not come back"
        return self._outcome


@pytest.fixture
def background():
    """Run a call on another thread."""
    return Background


@pytest.fixture
def failure():
    """Run a call that has to raise LLMException; return the exception."""

    def of(call, *arguments, **named):
        with pytest.raises(LLMException) as caught:
            call(*arguments, **named)
        return caught.value

    return of
