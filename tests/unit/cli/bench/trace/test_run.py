"""Replays: caches that fit, figures, and one with every byte checked."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llm_datadist.cli.app import app
from llm_datadist.cli.bench.presets import preset
from llm_datadist.cli.bench.trace.replay import Served, Shape
from llm_datadist.cli.bench.trace.requests import Request
from llm_datadist.cli.bench.trace.run import TraceOptions, shape_of, summary

GIB = 1 << 30
OPTIONS = TraceOptions(
    file=Path("a.jsonl"),
    most=None,
    preset=preset("llama-3.1-8b"),
    layers=None,
    path="same-host",
    memory_bytes=GIB,
    block_tokens=512,
    speed=1.0,
    parallel=4,
    late_ms=100.0,
)


def of(blocks):
    return [Request(0, 512 * blocks, 1, list(range(blocks)))]


def test_caches_have_the_blocks_that_the_memory_has_room_for():
    shape = shape_of(OPTIONS, of(16))
    assert (shape.block_bytes, shape.capacity, shape.per_block) == (64 << 20, 16, 32)
    case = shape.case()
    assert (case.total_bytes, case.count, case.tensors) == (GIB, 16 * 32, 64)
    assert shape_of(replace(OPTIONS, layers=8), of(16)).capacity == 64


@pytest.mark.parametrize(
    ("changes", "blocks", "text"),
    [
        ({}, 17, "a request has 17 blocks .* --memory is 1 GiB: give more, or --layers 30 "),
        ({"memory_bytes": 1 << 20}, 17, "give more, or --requests"),
        ({"layers": 33}, 1, "--layers 33: llama-3.1-8b has 32; give no more"),
        ({"block_tokens": 100}, 1, "--block-tokens 100: .* of 16 tokens; give a multiple"),
    ],
)
def test_what_does_not_fit_is_named_with_the_remedy(changes, blocks, text):
    with pytest.raises(ValueError, match=text):
        shape_of(replace(OPTIONS, **changes), of(blocks))


def test_figures():
    shape = Shape(preset("llama-3.1-8b"), 512, 16)
    served = [
        Served(due_s=0.0, begun_s=0.0, pulled_s=0.05, done_s=0.05, blocks=4, hits=0),
        Served(due_s=0.0, begun_s=0.02, pulled_s=0.07, done_s=0.08, blocks=5, hits=4),
        Served(due_s=1.0, begun_s=1.0, pulled_s=1.0, done_s=1.0, blocks=2, hits=2),
        Served(due_s=1.0, begun_s=1.1, pulled_s=1.13, done_s=1.13, blocks=1, hits=0),
    ]
    found = summary(OPTIONS, shape, served)
    assert (found.requests, found.blocks, found.hits, found.hit_ratio) == (4, 12, 6, 0.5)
    assert found.total_bytes == 6 * 64 << 20
    assert found.gbps == pytest.approx(6 * (64 << 20) / 0.1 / 1e9, rel=1e-3)
    assert (found.latency_ms.max, found.latency_ms.p50) == pytest.approx((130.0, 80.0))
    assert (found.pull_ms.p50, found.pull_ms.max) == pytest.approx((50.0, 50.0))
    assert found.late_ratio == 0.25
    assert found.seconds == 1.13


def a_trace(path, requests=30):
    """Conversations that grow: each request has the blocks of the one before it, and some more."""
    choose = random.Random(1)
    talks, new = [[0, 1] for _ in range(3)], 2
    with path.open("w") as lines:
        for number in range(requests):
            talk = choose.choice(talks)
            talk.append(new)
            new += 1
            line = {
                "timestamp": number * 10,
                "input_length": 16 * len(talk),
                "output_length": 1,
                "hash_ids": talk[-6:],
            }
            lines.write(json.dumps(line) + "\n")


@pytest.mark.slow
def test_a_replay_in_which_every_byte_is_checked(tmp_path):
    path, file = tmp_path / "trace.jsonl", tmp_path / "result.json"
    a_trace(path)
    options = ["--layers", "1", "--block-tokens", "16", "--memory", "2M", "--speed", "10"]
    arguments = ["bench", "trace", str(path), *options, "--json", str(file)]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    assert "trace.jsonl: 30 requests in " in outcome.stdout
    found = json.loads(file.read_text())
    assert list(found) == [
        *("schema", "version", "started", "machine", "trace", "preset", "tp", "layers", "path"),
        *("speed", "parallel", "block_tokens", "block_bytes", "cache_blocks"),
        *("requests", "seconds", "blocks", "hits", "hit_ratio", "total_bytes", "gbps"),
        *("latency_ms", "pull_ms", "late_ms", "late_ratio"),
    ]
    assert (found["requests"], found["cache_blocks"], found["block_bytes"]) == (30, 32, 65536)
    assert found["total_bytes"] == (found["blocks"] - found["hits"]) * 65536
    assert list(found["latency_ms"]) == ["p50", "p90", "p99", "max"]


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        (["/no-such-file"], 2, "trace /no-such-file cannot be read: No such file"),
        (["x", "--path", "udp"], 2, "--path udp: unknown; give one of same-host, pool, tcp"),
        (["x", "--memory", "big"], 2, "--memory: 'big' is no size"),
        (["x", "--preset", "gpt-0"], 2, "--preset gpt-0: unknown; give one of"),
    ],
)
def test_mistakes_are_named(options, status, text):
    outcome = CliRunner().invoke(app, ["bench", "trace", *options])
    assert outcome.exit_code == status
    assert text in outcome.stderr
