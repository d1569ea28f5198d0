"""One instance with its caches, driven call by call: in this process, or in another one.

Both answer alike, so that a test does not care which it has:

    answer = station.call("pull", 1, [0, 1], [2, 3])
    assert answer.status == "LLM_SUCCESS"
"""

from __future__ import annotations

import gc
import hashlib
import random
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    DataType,
    LayerSynchronizer,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    MemInfo,
    Memtype,
    RegisterMemStatus,
    TransferConfig,
)
from support.nixl_backends import wait_for_trial
from support.setup import info_of, options_of

TENSORS = 4
OK = "LLM_SUCCESS"


class Answer(NamedTuple):
    """How a call ended.

    Attributes:
        status: Name of the status: raised, returned, or LLM_SUCCESS.
        seconds: How long it took.
        value: What it returned.
        text: Of the exception.
    """

    status: str
    seconds: float
    value: object = None
    text: str = ""


class Failed(NamedTuple):
    """How a nested call ended."""

    status: str
    seconds: float


def pattern(seed, blocks, words):
    """Return memory whose words differ everywhere and between seeds: [tensor, block, word]."""
    shape = (TENSORS, blocks, words)
    return np.arange(np.prod(shape), dtype=np.uint64).reshape(shape) + np.uint64(seed << 40)


def digest(data):
    return hashlib.blake2b(np.ascontiguousarray(data).tobytes(), digest_size=16).hexdigest()


class _Ready(LayerSynchronizer):
    def synchronize_layer(self, layer_index, timeout_in_millis):
        return True


class Station:
    """An instance with a blocks cache, and calls that are measured.

    Args:
        cluster_id: Of the instance.
        listen: `ip:port`; None = client only.
        local_ip: What it links from.
        blocks, words: Blocks of the cache and words of 8 bytes of a block, in each of its tensors.
        options: Properties of LLMConfig.
    """

    def __init__(
        self,
        cluster_id,
        listen="127.0.0.1:0",
        *,
        local_ip="127.0.0.1",
        blocks=16,
        words=1024,
        **options,
    ):
        self.cluster_id = cluster_id
        self._local_ip = local_ip
        self.instance = LLMDataDist(LLMRole.MIX, cluster_id)
        options = {"mem_pool_cfg": '{"memory_size": 16777216}', **options}
        self._options = options_of(listen=listen, **options)
        self.instance.init(self._options)
        wait_for_trial(self.instance._engine.backends)
        self.data = np.zeros((TENSORS, blocks, words), np.uint64)
        self._desc = CacheDesc(TENSORS, [blocks, words], DataType.DT_UINT64)
        self._addrs = [tensor.ctypes.data for tensor in self.data]
        self.manager = self.instance.cache_manager
        self.cache = self.manager.register_blocks_cache(
            self._desc, self._addrs, BlocksCacheKey(cluster_id)
        )
        self._background = None

    def call(self, name, *args):
        """Make a call; return its exception as an answer."""
        began = time.monotonic()
        try:
            value = getattr(self, name)(*args)
            status, text = OK, ""
            if isinstance(value, LLMStatusCode):
                value, status = None, value.name
            elif isinstance(value, Failed):
                status, value = value
        except LLMException as error:
            value, status, text = None, error.status_code.name, str(error)
        return Answer(status, time.monotonic() - began, value, text)

    # ---- links ----

    def listen_address(self):
        return self.instance.listen_address

    def link(self, address, timeout_ms=5000):
        return self.instance.link_clusters([self._info(address=address)], timeout_ms)[1][0]

    def unlink(self, cluster_id, timeout_ms=3000):
        return self.instance.unlink_clusters([self._info(cluster_id)], timeout_ms)[1][0]

    def unlink_forced(self, cluster_id):
        return self.instance.unlink_clusters([self._info(cluster_id)], force=True)[1][0]

    def check(self, cluster_id):
        self.instance.check_link_status(cluster_id)

    def describe(self, cluster_id):
        """Return describe_link as plain data."""
        return plain(self.instance.describe_link(cluster_id))

    def join(self, name, ranks, table, seconds=20.0):
        """Link a rank-table domain; return its final status."""
        comm_id = self.instance.link(name, ranks, table)
        deadline = time.monotonic() + seconds
        status = RegisterMemStatus.PREPARING
        while status is RegisterMemStatus.PREPARING and time.monotonic() < deadline:
            time.sleep(0.002)
            status = self.instance.query_register_mem_status(comm_id)
        return [comm_id, status.name]

    def leave(self, comm_id):
        self.instance.unlink(comm_id)

    def switch_role(self, role, listen=None):
        options = {} if listen is None else {"llm.listenIpInfo": listen}
        self.instance.switch_role(LLMRole[role], options)

    def _info(self, cluster_id=None, address=None):
        return info_of(address, cluster_id, self._local_ip)

    # ---- transfers ----

    def pull(self, peer, src, dst):
        self.manager.pull_blocks(BlocksCacheKey(peer), self.cache, src, dst)

    def push(self, peer, src, dst):
        self.manager.push_blocks(BlocksCacheKey(peer), self.cache, src, dst)

    def layerwise(self, peer, addrs, src, dst):
        """Push layer by layer to the peer's tensors at these addresses."""
        task = self.manager.transfer_cache_async(
            self.cache, _Ready(), [TransferConfig(peer, addrs)], src, dst
        )
        return task.synchronize()

    def offer(self, req_id, seed):
        """Allocate one slot under a CacheKey for the peer to pull, and release its id."""
        key = CacheKey(self.cluster_id, req_id)
        _, blocks, words = self.data.shape
        desc = CacheDesc(TENSORS, [1, blocks, words], DataType.DT_UINT64)
        cache = self.manager.allocate_cache(desc, [key])
        for index, tensor in enumerate(pattern(seed, blocks, words)):
            cache.tensor(index)[0] = tensor
        self.manager.deallocate_cache(cache)

    def take(self, peer, req_id):
        """Pull a slot that the peer offers into the whole cache, which consumes the key."""
        blocks = list(range(self.data.shape[1]))
        self.manager.pull_blocks(CacheKey(peer, req_id), self.cache, [], blocks)

    def announce(self):
        """Change the directory, so that peers must read it again."""
        self.manager.register_blocks_cache(self._desc, self._addrs)

    def remap(self):
        """Remap the first tensor."""
        self.manager.remap_registered_memory(
            MemInfo(Memtype.MEM_TYPE_DEVICE, self._addrs[0], self.data[0].nbytes)
        )

    # ---- memory ----

    def tensor_addrs(self):
        return self._addrs

    def fill(self, seed):
        self.data[:] = pattern(seed, *self.data.shape[1:])

    def digest(self, blocks=None):
        return digest(self.data if blocks is None else self.data[:, blocks])

    def fds(self):
        """Count descriptors after a garbage collection."""
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    def received_bytes(self, device):
        return int(Path(f"/sys/class/net/{device}/statistics/rx_bytes").read_text())

    # ---- calls that go on ----

    def repeat(self, name, *args):
        """Repeat a call until it fails, for a limited time; return the duration of the failed one.

        The last argument is the number of seconds.
        """
        *args, seconds = args
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            answer = self.call(name, *args)
            if answer.status != OK:
                return Failed(answer.status, answer.seconds)
        return None

    def load(self, peer, seed, seconds):
        """Pull, push and pull back, and check every byte, until a call fails.

        Of both ends the first half of the blocks is the pattern of its cluster id, and read; the
        second half is written.

        Returns:
            How the call ended that failed; None when the time was over.
        """
        half = self.data.shape[1] // 2
        read, written = list(range(half)), list(range(half, 2 * half))
        remote = pattern(peer, *self.data.shape[1:])[:, read]
        chance = random.Random(seed)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            count = chance.choice([1, half])
            source, target = chance.sample(read, count), chance.sample(written, count)
            back = chance.choice([False, True])
            calls = [("pull", peer, source, target)]
            if back:
                calls = [("push", peer, source, target), ("pull", peer, target, target)]
            for call in calls:
                answer = self.call(*call)
                if answer.status != OK:
                    return Failed(answer.status, answer.seconds)
            right = self.data[:, source] if back else remote[:, source]
            assert (self.data[:, target] == right).all(), "a call that succeeded moved other bytes"
        return None

    def begin(self, name, *args):
        """Make a call on a thread; `end` returns its answer."""
        assert self._background is None
        answers = []
        thread = threading.Thread(target=lambda: answers.append(self.call(name, *args)))
        thread.start()
        self._background = thread, answers

    def end(self, seconds=10.0):
        (thread, answers), self._background = self._background, None
        thread.join(seconds)
        assert answers, "the call has not ended"
        return answers[0]

    def close(self):
        self.instance.finalize()
        self.manager = self.cache = None  # they keep the directory's file while they live


def plain(value):
    """Convert a value to types of msgpack."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value if isinstance(value, int | float | bool | None) else str(value)


def serve(member, cluster_id, listen, options):
    """Body of another process: a station that executes the test's commands until the group ends."""
    station = Station(cluster_id, listen, **options)
    try:
        member.send(station.listen_address())
        while True:
            name, *args = member.receive(600)
            member.send(list(station.call(name, *args)))
    finally:
        station.close()


class RemoteStation:
    """A station in another process."""

    def __init__(self, group, cluster_id, listen="127.0.0.1:0", *, command_prefix=(), **options):
        self.cluster_id = cluster_id
        self.peer = group.start(
            serve,
            cluster_id,
            listen,
            options,
            name=f"station-{cluster_id}",
            command_prefix=command_prefix,
        )
        address = self.peer.receive()
        self.address = None if address is None else tuple(address)

    def call(self, name, *args, timeout_s=None):
        self.send(name, *args)
        return self.answer(timeout_s)

    def send(self, name, *args):
        """Begin a call; `answer` waits for its end."""
        self.peer.send([name, *args])

    def answer(self, timeout_s=None):
        return Answer(*self.peer.receive(timeout_s))

    def value(self, name, *args):
        """Make a call that must not fail; return what it returns."""
        answer = self.call(name, *args)
        assert answer.status == OK, answer
        return answer.value
