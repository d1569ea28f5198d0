"""Workers of the vLLM connector over numpy arrays as KV tensors, in the mode of the module.

vLLM itself is not needed here; tests/with_vllm runs the same with its engines.
"""

from __future__ import annotations

import numpy as np
import pytest

from support.vllm.rank_engines import RankEngine
from support.vllm.worker_sides import Side


@pytest.fixture
def make():
    """Makes engines, and closes them."""
    made = []

    def make(*arguments, **options):
        made.append(RankEngine(*arguments, **options))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def sides(request):
    """Makes sides in the module's MODE, and closes them."""
    made = []

    def make(role, **more):
        side = Side(role, mode=request.module.MODE, **more)
        made.append(side)
        return side

    yield make
    for side in made:
        side.close()


@pytest.fixture
def pair(sides, request):
    """A producer with random KV and an empty consumer, with the options of the parameter."""
    extra = getattr(request, "param", {})
    producer, consumer = sides("producer", **extra), sides("consumer", **extra)
    producer.kv[:] = np.random.default_rng(1).integers(1, 255, producer.kv.shape, np.uint8)
    return producer, consumer
