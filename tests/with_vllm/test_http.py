"""Two API servers and the example's router: what a client of the router gets, end to end."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from itertools import chain
from pathlib import Path

import pytest

from support.vllm.engines import BLOCK, MAX_MODEL_LEN, prompt, transfer_config
from support.vllm.pairs import ENV

ROUTER = Path(__file__).parents[2] / "examples" / "vllm_disaggregated" / "router.py"
START_S = 300
ASK_S = 120


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def process(*command):
    """A child that is ended, with its own children, however the test goes."""
    child = subprocess.Popen(command, env={**os.environ, **ENV}, start_new_session=True)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, 9)
            child.wait()


def get(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.status, answer.read()


def post(url, body):
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=ASK_S) as answer:
        return answer.read().decode()


def until_healthy(url, child, accept=lambda _: True):
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert child.poll() is None, f"{url}: ended with {child.returncode}"
        with contextlib.suppress(OSError):
            if accept(get(f"{url}/health")[1]):
                return
        time.sleep(0.5)
    raise AssertionError(f"{url} is not healthy after {START_S} s")


def server(model, port, role, mode):
    return process(
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", model, "--served-model-name", "tiny", "--host", "127.0.0.1"),
        *("--port", str(port), "--skip-tokenizer-init", "--dtype", "float32"),
        *("--block-size", str(BLOCK), "--max-model-len", str(MAX_MODEL_LEN)),
        *("--enforce-eager", "--max-num-seqs", "16", "--num-gpu-blocks-override", "400"),
        *("--kv-cache-memory-bytes", str(256 << 20)),
        *("--kv-transfer-config", json.dumps(transfer_config(role, mode=mode))),
    )


@pytest.fixture(scope="module", params=["pull", "push"])
def urls(model, request):
    """URLs of the prefill server, the decode server, and a router that knows a third, dead one."""
    ports = [free_port() for _ in range(4)]
    prefill, decode, router, dead = (f"http://127.0.0.1:{port}" for port in ports)
    with (
        server(model, ports[0], "kv_producer", request.param) as one,
        server(model, ports[1], "kv_consumer", request.param) as two,
    ):
        until_healthy(prefill, one)
        until_healthy(decode, two)
        command = [sys.executable, str(ROUTER), "--port", str(ports[2])]
        command += ["--prefill", dead, "--prefill", prefill, "--decode", dead, "--decode", decode]
        with process(*command, *["--push"] * (request.param == "push")) as three:
            until_healthy(
                router,
                three,
                lambda body: {prefill, decode} <= {*chain(*json.loads(body).values())},
            )
            yield prefill, decode, router


def completion(url, tokens, **more):
    body = {
        "model": "tiny",
        "prompt": tokens,
        "max_tokens": 16,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **more,
    }
    return post(f"{url}/v1/completions", body)


def token_ids(answer):
    return json.loads(answer)["choices"][0]["token_ids"]


def test_completions_through_the_router(urls):
    prefill, _, router = urls
    for seed, length in enumerate((3, 40, 300, 800)):
        tokens = prompt(900 + seed, length)
        through_router = token_ids(completion(router, tokens))
        assert len(through_router) == 16
        assert through_router == token_ids(completion(prefill, tokens))


def test_a_stream_through_the_router(urls):
    prefill, _, router = urls
    tokens = prompt(950, 200)
    lines = [
        json.loads(line.removeprefix("data: "))
        for line in completion(router, tokens, stream=True).splitlines()
        if line.startswith("data: {")
    ]
    streamed = [token for line in lines for token in line["choices"][0]["token_ids"] or []]
    assert streamed == token_ids(completion(prefill, tokens))


def test_the_decode_server_did_fetch(urls):
    """Its metrics count tokens that came from outside."""
    _, decode, router = urls
    completion(router, prompt(960, 500))
    text = get(f"{decode}/metrics")[1].decode()
    hits = [
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith("vllm:external_prefix_cache_hits_total")
    ]
    assert sum(hits) >= 499


def figures(url):
    """The connector's samples in a server's metrics: name and labels of its own -> value."""
    text = get(f"{url}/metrics")[1].decode()
    found = {}
    for line in text.splitlines():
        if line.startswith("vllm:llm_datadist_"):
            sample, value = line.removeprefix("vllm:llm_datadist_").rsplit(" ", 1)
            name, _, labels = sample.rstrip("}").partition("{")
            own = [each for each in labels.split(",") if not each.startswith(("engine", "model"))]
            found[" ".join([name, *own])] = float(value)
    return found


def test_both_servers_show_what_was_transferred(urls):
    """Requests, bytes and seconds of the consumer, releases of the producer, none recomputed."""
    prefill, decode, router = urls
    completion(router, prompt(969, 100))  # in push mode the first request is pulled
    before = figures(decode)
    for seed in (970, 971):
        completion(router, prompt(seed, 500))
    after = figures(decode)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown['requests_fetched_total path="host"'] == 2
    assert grown['fetch_seconds_count path="host"'] == 2
    assert 0 < grown['fetch_seconds_sum path="host"'] < ASK_S
    assert grown['fetched_bytes_total path="host"'] > 0
    assert not [name for name in grown if name.startswith("requests_recomputed")]
    completion(prefill, prompt(972, 3))  # vLLM takes the figures at the end of a step
    producer = figures(prefill)
    released = [value for name, value in producer.items() if "released_total" in name]
    assert sum(released) >= 3
    assert producer["requests_held"] == 0


def test_a_wrong_request_gets_the_servers_answer(urls):
    with pytest.raises(urllib.error.HTTPError) as caught:
        completion(urls[2], prompt(1, 10), max_tokens=-1)
    with caught.value as answer:  # it holds the connection
        assert answer.code == 400
