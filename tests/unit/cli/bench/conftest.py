"""A made-up run of `llm-datadist bench`."""

import pytest

from llm_datadist.cli.bench.results import Latency, Limit, Machine, Run
from support.bench_results import result


@pytest.fixture
def run():
    model = {"kind": "model", "preset": "llama-3.1-8b", "tp": 1, "prompt_tokens": 2048}
    return Run(
        version="0.1.0",
        started="2026-01-02T03:04:05+00:00",
        machine=Machine("a processor", 2, 1 << 34, "6.1", "3.12.0"),
        results=[
            result(contender="bare", is_limit=True, gbps=[9.0]),
            result(gbps=[2.0, 3.0, 1.0]),
            result(block_bytes=256, gbps=[0.5]),
            result(operation="push", gbps=[4.0]),
            result(contender="NIXL", gbps=[], problem="NIXL: ERR"),
            result(contender="NIXL", operation="push", gbps=[], problem="NIXL: ERR"),
            result(**model, gbps=[1.5]),
        ],
        latencies=[Latency("tcp", "llm-datadist (tcp)", 20.4, 61.6)],
        limits=[Limit("tcp", "iperf3 -P 2", 3.25)],
        notes=["tcp: no time for 64 MiB: give more --seconds"],
    )
