"""Planning between unequal layouts: how long block lists take to become descriptor arrays.

Run `python benchmarks/layouts.py`. No memory is touched and no peer is needed. Times include the
checks of the block lists and the choice of ranks.
"""

from __future__ import annotations

import random
import statistics
import time
from functools import partial

from llm_datadist import DataType
from llm_datadist.layouts import KvLayout, PlacedLayout, dense, heads_of_rank, plan_pull
from plan import time_us

NUM_LAYERS = 61
NUM_BLOCKS = 16_384
LISTED = 1_024
HEADS = 8
GOAL_CASE = "HND, TP 4 to 1"
GOAL_MS = 5.0


def layout(axes: str, tp: int, rank: int, block_tokens: int) -> KvLayout:
    return dense(
        axes,
        layers=range(NUM_LAYERS),
        kv_heads=HEADS,
        heads=heads_of_rank(HEADS, tp, rank),
        head_size=128,
        data_type=DataType.DT_BF16,
        block_tokens=block_tokens,
    )


def latent(layers: range, block_tokens: int) -> KvLayout:
    return dense(
        ("block", "token", "element"),
        layers=layers,
        kv_heads=1,
        heads=range(1),
        head_size=576,
        data_type=DataType.DT_BF16,
        block_tokens=block_tokens,
        planes=1,
    )


def placed(made: KvLayout, number: int) -> PlacedLayout:
    size = made.tensor_bytes(NUM_BLOCKS) + 4096
    base = (number + 1) << 42
    return PlacedLayout.of(
        made, [base + place * size for place in range(made.num_tensors)], NUM_BLOCKS
    )


def pull(sources: list[KvLayout], wanted: KvLayout, num_tokens: int, seed: int = 7) -> partial:
    """Return the call that plans a pull of random blocks from every source."""
    rng = random.Random(seed)

    def blocks(of: KvLayout) -> list[int]:
        return rng.sample(range(NUM_BLOCKS), -(-num_tokens // of.block_tokens))

    ranks = [placed(source, number) for number, source in enumerate(sources, 1)]
    src_blocks = [blocks(source) for source in sources]
    return partial(plan_pull, ranks, placed(wanted, 0), src_blocks, blocks(wanted), num_tokens)


def cpu_ms(call: partial, rounds: int) -> float:
    """Return the median CPU time of one call: other programs of the machine do not count."""
    samples = []
    for _ in range(rounds):
        start = time.process_time_ns()
        call()
        samples.append((time.process_time_ns() - start) / 1e6)
    return statistics.median(samples)


def main() -> None:
    tokens = LISTED * 16
    stages = [range(low, min(low + 16, NUM_LAYERS)) for low in range(0, NUM_LAYERS, 16)]
    cases = {
        GOAL_CASE: pull(
            [layout("HND", 4, rank, 16) for rank in range(4)], layout("HND", 1, 0, 16), tokens
        ),
        "HND, TP 4 to 8 (one rank)": pull(
            [layout("HND", 4, rank, 16) for rank in range(4)], layout("HND", 8, 3, 16), tokens
        ),
        "latent, PP 4 to 1": pull(
            [latent(stage, 16) for stage in stages], latent(range(NUM_LAYERS), 16), tokens
        ),
        "latent, PP 4 to 1, blocks 16 to 64": pull(
            [latent(stage, 16) for stage in stages], latent(range(NUM_LAYERS), 64), tokens
        ),
        "NHD, equal": pull([layout("NHD", 1, 0, 16)], layout("NHD", 1, 0, 16), tokens),
        "NHD, TP 4 to 1, 128 blocks": pull(
            [layout("NHD", 4, rank, 16) for rank in range(4)], layout("NHD", 1, 0, 16), 128 * 16
        ),
        "HND to NHD, 64 blocks": pull([layout("HND", 1, 0, 16)], layout("NHD", 1, 0, 16), 64 * 16),
    }
    print(f"{NUM_LAYERS} layers, {LISTED:,} random blocks of 16 tokens unless said otherwise")
    header = ("links", "descriptors", "bytes each", "median ms", "p90 ms", "CPU ms")
    print(f"{'case':38}" + "".join(f"{word:>12}" for word in header))
    for name, call in cases.items():
        links = call()
        count = sum(len(link.plan.length) for link in links)
        each = sum(link.plan.total_bytes for link in links) // count
        median, p90 = time_us(call, rounds=50, repeats=1)
        figures = (median / 1e3, p90 / 1e3, cpu_ms(call, 50))
        goal = f"  (goal {GOAL_MS})" if name == GOAL_CASE else ""
        print(
            f"{name:38}{len(links):>12}{count:>12,}{each:>12,}"
            + "".join(f"{figure:>12.2f}" for figure in figures)
            + goal
        )


if __name__ == "__main__":
    main()
