"""Registrations, and the first lookup in the directory of a peer with very many caches.

Run `python benchmarks/registry.py`. CPU time of the calling thread, which hardly depends on what
else the machine does; the best and the median of some rounds.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import TYPE_CHECKING

from instructions.workload import Log, read_directory, register, start
from llm_datadist import BlocksCacheKey, CacheDesc, DataType

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_datadist import LLMDataDist

MANY_CACHES = 60_000
MANY_REGISTRATIONS = 20_000


def one_after_the_other(instance: LLMDataDist) -> None:
    """Register and unregister one tensor, again and again."""
    desc, key = CacheDesc(1, [64, 4096], DataType.DT_UINT8), BlocksCacheKey(1)
    manager = instance.cache_manager
    for _ in range(MANY_REGISTRATIONS):
        manager.unregister_cache(manager.register_blocks_cache(desc, [1 << 40], key).cache_id)


def show(name: str, limit_ms: float, rounds: int, call: Callable[[], None]) -> None:
    """Time a call, and print its times beside the goal."""
    taken = []
    for _ in range(rounds):
        began = time.thread_time_ns()
        call()
        taken.append((time.thread_time_ns() - began) / 1e6)
    best, median = min(taken), statistics.median(taken)
    print(f"{name:46} best {best:9.3f} ms, median {median:9.3f} ms, goal {limit_ms:g} ms")


def main() -> None:
    """Print all times."""
    instance = start(1)
    show("register and unregister 122 tensors", 0.1, 500, register(instance))
    show(f"the same {MANY_REGISTRATIONS} times, one tensor each", 4000, 3,
         partial(one_after_the_other, instance))  # fmt: skip
    instance.finalize()
    show(f"first lookup among {MANY_CACHES} caches of a peer", 150, 7,
         partial(read_directory, Log(MANY_CACHES)))  # fmt: skip


if __name__ == "__main__":
    main()
