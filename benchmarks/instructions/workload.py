"""What is counted. `python -m instructions` runs it under callgrind; alone it shows nothing.

Callgrind writes its counters to a file, one for each case, between two functions of the C library
that nothing else calls meanwhile: it starts to count at `getsid` and writes at `getppid`. So no
tool is needed inside the process. Only this thread counts, and the garbage collector does not run.
"""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMRole,
    LLMStatusCode,
)
from llm_datadist._plan import Layout, checked_blocks, plan_blocks
from llm_datadist._registry import DirectoryReader
from llm_datadist._registry.records import Added, encode_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK_BYTES, NUM_BLOCKS = 4096, 64
KEY = BlocksCacheKey(1)
TENSORS, PLANNED_BLOCKS, LISTED = 122, 16_384, 256
CACHES = 500
DEADLINE_NS = 1 << 62
WARM = 30


def start(cluster_id: int) -> LLMDataDist:
    """Start an instance; the heartbeat must not come in between."""
    config = LLMConfig()
    config.enable_cache_manager = True
    config.listen_ip_info = "127.0.0.1:0"
    config.heartbeat_ms = 0
    instance = LLMDataDist(LLMRole.MIX, cluster_id)
    instance.init(config.generate_options())
    return instance


def memory() -> np.ndarray:
    """Return memory for one tensor of blocks, each page touched."""
    return np.ones(NUM_BLOCKS * BLOCK_BYTES, np.uint8)


def owner() -> None:
    """Own a cache until the standard input ends."""
    instance, data = start(1), memory()
    desc = CacheDesc(1, [NUM_BLOCKS, BLOCK_BYTES], DataType.DT_UINT8)
    instance.cache_manager.register_blocks_cache(desc, [data.ctypes.data], KEY)
    print(json.dumps(instance.listen_address), flush=True)
    sys.stdin.read()
    instance.finalize()


@contextmanager
def linked() -> Iterator[LLMDataDist]:
    """An instance that is linked to an owner, which runs outside callgrind."""
    command = [sys.executable, __file__, "owner"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        address = json.loads(process.stdout.readline())
        instance = start(2)
        peer = LLMClusterInfo()
        peer.append_local_ip_info("127.0.0.1", 0)
        peer.append_remote_ip_info(*address)
        status, _ = instance.link_clusters([peer], 60_000)
        if status != LLMStatusCode.LLM_SUCCESS:
            raise RuntimeError(f"cannot link: {status.name}")
        yield instance
        instance.finalize()
        process.stdin.close()


def reference() -> None:
    """What other cases are compared with: about half of it the interpreter's, half numpy's.

    Two builds of one version of Python differ by a sixth in the former, and not in the latter.
    """

    class Value:
        __slots__ = ("first", "second")

        def __init__(self, first: int, second: int = 0) -> None:
            self.first, self.second = first, second

        @property
        def total(self) -> int:
            return self.first + self.second

    def add(*values: int, more: int = 1) -> int:
        return sum(values) + more

    known: dict[int, Value] = {}
    for number in range(50):
        known[number] = Value(number, second=number + 1)
        total = add(known[number].total, number, more=2)
        pair = (total, number)
        assert isinstance(pair, tuple)
        array = np.array(pair, np.uint64)
        array[:1].tolist()
    words = np.arange(1024, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(65521)
    for _ in range(3):
        words[words.argsort(kind="stable")].cumsum()


def pull(instance: LLMDataDist) -> Callable[[], None]:
    """Return a pull of one block."""
    data = memory()
    desc = CacheDesc(1, [NUM_BLOCKS, BLOCK_BYTES], DataType.DT_UINT8)
    manager = instance.cache_manager
    cache = manager.register_blocks_cache(desc, [data.ctypes.data])

    def call(*, keeps: np.ndarray = data) -> None:
        manager.pull_blocks(KEY, cache, [5], [9])

    return call


def register(instance: LLMDataDist) -> Callable[[], None]:
    """Return a registration of 122 tensors and its end."""
    desc = CacheDesc(TENSORS, [NUM_BLOCKS, BLOCK_BYTES], DataType.DT_UINT8)
    addrs = [(1 << 40) + tensor * 2 * NUM_BLOCKS * BLOCK_BYTES for tensor in range(TENSORS)]
    manager = instance.cache_manager

    def call() -> None:
        manager.unregister_cache(manager.register_blocks_cache(desc, addrs).cache_id)

    return call


def plan(num_tensors: int, listed: int) -> Callable[[], None]:
    """Return the planning of random blocks, with the checks of the lists."""
    tensor_bytes = PLANNED_BLOCKS * BLOCK_BYTES
    local, remote = (
        Layout.of(range(base, base + 2 * num_tensors * tensor_bytes, 2 * tensor_bytes),
                  tensor_bytes, PLANNED_BLOCKS)
        for base in (1 << 32, 1 << 42)
    )  # fmt: skip
    chance = random.Random(1)
    lists = [chance.sample(range(PLANNED_BLOCKS), listed) for _ in range(2)]

    def call() -> None:
        to, by = (checked_blocks("pull_blocks", "blocks", each, PLANNED_BLOCKS) for each in lists)
        plan_blocks(local, to, local.all_tensors, remote, by, remote.all_tensors)

    return call


class Log:
    """A directory of many caches, as its reader gets it."""

    def __init__(self, num_caches: int) -> None:
        self.last = num_caches
        self.bytes = b"".join(map(self.frame, range(1, num_caches + 1)))

    @staticmethod
    def frame(cache_id: int) -> bytes:
        """Return the record of one cache."""
        addrs = (1 << 40).to_bytes(8, "little")
        place = DataType.DT_UINT8.value, 1, 0
        shape = (NUM_BLOCKS, BLOCK_BYTES)
        return encode_frame(
            Added(cache_id, (cache_id, 1), True, 1, shape, *place, addrs, True, blocks_key=cache_id)
        )

    def version(self, _deadline_ns: int) -> int:
        """Return the version that says how long it is."""
        return len(self.bytes)

    def read_log(self, offset: int, size: int, _deadline_ns: int) -> bytes:
        """Return a piece."""
        return self.bytes[offset : offset + size]


def read_directory(log: Log) -> None:
    """Look up the last of all caches as the first one."""
    reader = DirectoryReader(log, 1)
    reader.resolve("pull_blocks", BlocksCacheKey(1, log.last), DEADLINE_NS, fresh=True)


def count(call: Callable[[], None], times: int) -> None:
    """Have calls counted."""
    for _ in range(min(WARM, times)):
        call()
    gc.collect()
    os.getsid(0)
    for _ in range(times):
        call()
    os.getppid()


def main() -> None:
    """Run all cases; print how many calls of each were counted, in order."""
    gc.disable()
    with linked() as instance:
        cases = {
            "reference": (reference, 10),
            "pull one block": (pull(instance), 100),
            "register and unregister 122 tensors": (register(instance), 20),
            "plan one block, one tensor": (plan(1, 1), 100),
            "plan 256 blocks, 122 tensors": (plan(TENSORS, LISTED), 5),
            f"first lookup among {CACHES} caches": (partial(read_directory, Log(CACHES)), 3),
        }
        start_counting = ["callgrind_control", "-i", "on", str(os.getpid())]
        subprocess.run(start_counting, check=True, capture_output=True)
        for call, times in cases.values():
            count(call, times)
        print(json.dumps([(name, times) for name, (_, times) in cases.items()]), flush=True)


if __name__ == "__main__":
    owner() if sys.argv[1:] == ["owner"] else main()
