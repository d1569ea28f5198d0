"""Planning alone: how long block lists take to become descriptor arrays.

Run `python benchmarks/plan.py`. No memory is touched and no peer is needed. Times include the
checks of the block lists and their conversion, as a call of pull_blocks pays for them.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import TYPE_CHECKING

from llm_datadist._plan import Layout, Plan, blocks_array, plan_blocks, plan_slots

if TYPE_CHECKING:
    from collections.abc import Callable

NUM_TENSORS = 122  # 61 layers
NUM_BLOCKS = 16_384
LISTED = 1_024
BLOCK_BYTES = 32_768
LIMITS_US = {"122 tensors x 1,024 random blocks": 2_000}


def caches(num_tensors: int, *, gap: int = 4_096) -> tuple[Layout, Layout]:
    """Return a local and a remote cache; with no gap their tensors touch."""
    tensor_bytes = NUM_BLOCKS * BLOCK_BYTES
    offsets = [i * (tensor_bytes + gap) for i in range(num_tensors)]
    local, remote = (
        Layout.of([base + offset for offset in offsets], tensor_bytes, NUM_BLOCKS)
        for base in (1 << 32, 1 << 42)
    )
    return local, remote


def pull(
    layouts: tuple[Layout, Layout], dst_blocks: list[int], src_blocks: list[int]
) -> Callable[[], Plan]:
    local, remote = layouts

    def call() -> Plan:
        dst = blocks_array("pull_blocks", "dst_blocks", dst_blocks, NUM_BLOCKS, unique=True)
        src = blocks_array("pull_blocks", "src_blocks", src_blocks, NUM_BLOCKS)
        return plan_blocks(local, dst, local.all_tensors, remote, src, remote.all_tensors)

    return call


def one_slot(layouts: tuple[Layout, Layout]) -> Callable[[], Plan]:
    local, remote = layouts
    return lambda: plan_slots(
        local, 3, local.all_tensors, remote, 4, remote.all_tensors, BLOCK_BYTES
    )


def planning_only(layouts: tuple[Layout, Layout]) -> Callable[[], Plan]:
    local, remote = layouts
    block = blocks_array("pull_blocks", "dst_blocks", [5], NUM_BLOCKS)
    tensors = local.all_tensors
    return lambda: plan_blocks(local, block, tensors, remote, block, tensors)


def time_us(call: Callable[[], object], *, rounds: int, repeats: int) -> tuple[float, float]:
    """Return the median and the 90th percentile of one call, in microseconds."""
    samples = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        for _ in range(repeats):
            call()
        samples.append((time.perf_counter_ns() - start) / repeats / 1_000)
    samples.sort()
    return statistics.median(samples), samples[len(samples) * 9 // 10]


def main() -> None:
    rng = random.Random(7)
    dst = rng.sample(range(NUM_BLOCKS), LISTED)
    src = rng.sample(range(NUM_BLOCKS), LISTED)
    ends = [0, NUM_BLOCKS - 1]
    run = list(range(LISTED))
    shuffled = rng.sample(run, LISTED)
    apart, touching = caches(NUM_TENSORS), caches(NUM_TENSORS, gap=0)
    one, two = caches(1), caches(2)
    inner = [block for block in dst if block not in ends][: LISTED - 2]
    cases = {
        "122 tensors x 1,024 random blocks": pull(apart, dst, src),
        "the same, tensors touching": pull(touching, ends + inner, ends + inner[::-1]),
        "122 tensors x 1,024 blocks in a row": pull(apart, run, run),
        "the same blocks, shuffled": pull(apart, shuffled, shuffled),
        "122 tensors x 1 block": pull(apart, [5], [7]),
        "122 tensors, one slot": one_slot(apart),
        "2 tensors x 1 block": pull(two, [5], [7]),
        "1 tensor x 1 block": pull(one, [5], [7]),
        "1 tensor x 1 block, lists checked before": planning_only(one),
    }
    print(f"{'case':44}{'descriptors':>12}{'median us':>12}{'p90 us':>12}")
    for name, call in cases.items():
        descriptors = len(call().length)
        median, p90 = time_us(call, rounds=100, repeats=1 if descriptors > 1_000 else 100)
        limit = f"  (goal {LIMITS_US[name]:,})" if name in LIMITS_US else ""
        print(f"{name:44}{descriptors:>12,}{median:>12.2f}{p90:>12.2f}{limit}")


if __name__ == "__main__":
    main()
