"""Fetching a request between engines of unequal parallel sizes: the vLLM connector without vLLM.

Run `PYTHONPATH=tests python benchmarks/vllm_ranks.py`. All workers are in one process, with numpy
arrays as KV memory: 16 layers, 8 KV heads of 128, 32-bit elements, 24 blocks of 32 tokens. A fetch
is timed from the scheduler's order to the worker's report, in turns over all kinds of producer.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from support.vllm import rank_engines

LAYERS, BLOCKS, BLOCK_SIZE = 16, 24, 32
ROUNDS, WARM_UP = 12, 2
WHOLE = (range(LAYERS),)
HALVES = (range(LAYERS // 2), range(LAYERS // 2, LAYERS))
PRODUCERS = {
    "equal": (1, WHOLE),
    "tensor parallel size 2": (2, WHOLE),
    "pipeline parallel size 2": (1, HALVES),
    "both 2": (2, HALVES),
}
GOAL = 1.3
"""Times the fetch from an equal producer."""


def fetch_ms(producer: Any, consumer: Any) -> float:
    """Offer a prompt and fetch it; returns the milliseconds of the fetch."""
    blocks = list(range(1, BLOCKS + 1))
    params = producer.offer(BLOCKS * BLOCK_SIZE, blocks)
    began = time.perf_counter()
    consumer.load(BLOCKS * BLOCK_SIZE, params, blocks[::-1])
    worker = consumer.sides[0].worker
    while not worker.take_ended()[1]:
        time.sleep(0.0002)
    took = time.perf_counter() - began
    if worker.take_failed_blocks():
        raise RuntimeError("the fetch failed: see the log")
    consumer.forget()
    producer.sent()
    return 1e3 * took


def main() -> None:
    """Measure and print one line for each kind of producer."""
    rank_engines.LAYERS, rank_engines.BLOCKS = LAYERS, BLOCKS + 2
    options = {"kv_heads": 8, "head_size": 128, "block_size": BLOCK_SIZE, "lease_ms": 30_000}
    consumer = rank_engines.RankEngine("consumer", stages=WHOLE, **options)
    engines = {
        name: rank_engines.RankEngine("producer", tp_size, stages=stages, **options)
        for name, (tp_size, stages) in PRODUCERS.items()
    }
    for engine in (consumer, *engines.values()):
        for side in engine.sides:
            side.kv[:] = 1  # so that all pages are there
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            times[name].append(fetch_ms(engine, consumer))
    equal = statistics.median(times["equal"][WARM_UP:])
    for name, each in times.items():
        median = statistics.median(each[WARM_UP:])
        print(f"{name:26} {median:6.1f} ms, {median / equal:.2f} of equal (goal {GOAL})")
    for engine in (consumer, *engines.values()):
        engine.close()


if __name__ == "__main__":
    main()
